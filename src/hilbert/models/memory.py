"""One memory and the models in it: carries out what `residency` decides.

It loads on first use, lets a model finish before it leaves, measures what each one takes, and answers
everybody who waits. It does not know where engines live (`Loader` does) and decides nothing itself.
Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine, Iterable
from time import monotonic
from typing import Any, NamedTuple, Protocol

from hilbert.core import ModelSpec
from hilbert.errors import (
    ClientError,
    EngineError,
    ModelLoading,
    ModelUnavailable,
    Overloaded,
    ServingError,
    ShuttingDown,
)
from hilbert.models.entry import Entry
from hilbert.models.residency import Residency, State
from hilbert.models.served import ServedModel

logger = logging.getLogger(__name__)

# Between two looks at the memory while batches run; a look costs some 50 microseconds.
_LOOK_SECONDS = 0.1
# What a model takes at the very least; a difference of two measurements may even be negative.
_MIN_BYTES = 1_000_000


class Retired(Exception):
    """The entry is no longer configured: look the name up again."""


class Loader(Protocol):
    """Brings models up and takes them down."""

    async def resolve(self, entry: Entry) -> ModelSpec:
        """Find its files, on this machine or on the hub.

        Raises:
            ServingError: they cannot be had.
        """
        ...

    async def load(self, entry: Entry, spec: ModelSpec) -> ServedModel:
        """Bring it up; returns when it can answer.

        Raises:
            ServingError: it cannot be loaded.
        """
        ...

    async def unload(self, entry: Entry) -> None:
        """Give its memory back. Nobody is inside any more."""
        ...

    def used_bytes(self) -> int:
        """What is taken of this memory now, the processes themselves included."""
        ...

    def epoch(self) -> int | None:
        """How many workers were lost so far; None while what they held is not all back."""
        ...

    def size_of(self, entry: Entry, spec: ModelSpec) -> int:
        """What it will take: as measured before, else estimated from its files."""
        ...

    def remember_size(self, entry: Entry, spec: ModelSpec, size_bytes: int) -> None:
        """Keep what was measured for the next start."""
        ...


class _Reading(NamedTuple):
    """What is taken of this memory, and in which epoch."""

    used_bytes: int
    epoch: int | None

    def until(self, later: _Reading) -> int | None:
        """Bytes that came until then; None where a worker and all that it held came or went between."""
        is_told = self.epoch is not None and self.epoch == later.epoch
        return later.used_bytes - self.used_bytes if is_told else None


class _Arrival:
    """One load, for those who wait for it.

    Attributes:
        future: the loaded model, or why there is none.
        num_waiting: those who have not taken that in yet.
    """

    __slots__ = ("future", "num_waiting")

    def __init__(self) -> None:
        self.future: asyncio.Future[ServedModel] = asyncio.get_running_loop().create_future()
        self.num_waiting = 0


class _Stay:
    """What an entry is going through.

    Attributes:
        next: the load that is waited for; None while nobody waits.
        last: the load that made it what it is now.
        leaving: the model that finishes what it has.
        reason: why it leaves, for the metrics.
        num_departures: how often it has left.
        is_outdated: its files are looked at again once it has left.
        resolving: the search for its files.
    """

    __slots__ = ("is_outdated", "last", "leaving", "next", "num_departures", "reason", "resolving")

    def __init__(self) -> None:
        self.next: _Arrival | None = None
        self.last: _Arrival | None = None
        self.leaving: ServedModel | None = None
        self.reason = ""
        self.num_departures = 0
        self.is_outdated = False
        self.resolving: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a load."""
        return 0 if self.next is None else self.next.num_waiting


class Memory:
    """The models that share one memory.

    Args:
        residency: decides.
        loader: acts.
        load_timeout_seconds: how long a request waits for its model.
        device: whose memory it is: ``"cpu"``, or a device that has its own.
    """

    def __init__(
        self, residency: Residency, loader: Loader, load_timeout_seconds: float = 60.0, device: str = "cpu"
    ) -> None:
        self.device = device
        self.residency = residency
        self.load_timeout_seconds = load_timeout_seconds
        self._loader = loader
        self._entries: dict[str, Entry] = {}
        self._stays: dict[str, _Stay] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._changed: asyncio.Future[None] | None = None
        self._num_loading = 0
        self._before = _Reading(0, None)
        self._is_closed = False

    @property
    def used_bytes(self) -> int:
        """What is taken now."""
        return self._loader.used_bytes()

    def add(self, entry: Entry) -> None:
        """Make a model known; it is loaded when somebody asks for it, or by `begin`."""
        self._entries[entry.resident.key] = entry
        self._stays[entry.resident.key] = _Stay()
        self.residency.add(entry.resident)

    def begin(self, entries: Iterable[Entry]) -> None:
        """Load these as far as there is room, in this order."""
        for entry in entries:
            self._want(entry, is_eager=True)
        self._turn()

    async def until_settled(self, entries: Iterable[Entry]) -> None:
        """Return when each of these is loaded, has failed, or was found not to fit."""
        waiting = list(entries)
        while any(self._is_under_way(entry) for entry in waiting):
            await self._change()

    async def hold(self, entry: Entry) -> ServedModel:
        """The loaded model; whoever holds it enters its admission before the next `await`.

        Raises:
            ModelLoading: it was not loaded in time.
            Overloaded: too many wait for it already.
            ServingError: it cannot be loaded.
            Retired: it is no longer configured.
        """
        if entry.served is not None:
            return entry.served
        stay = self._stays.get(entry.resident.key)
        if stay is None or entry.is_retired:
            raise Retired
        limit = entry.admission.max_concurrent_requests
        if stay.num_waiting >= limit:
            raise Overloaded(
                f"{stay.num_waiting} requests wait for {entry.name} to be loaded; the limit is {limit} "
                "(--max-concurrent-requests).",
                retry_after_seconds=1.0,
            )
        self._want(entry)
        if stay.next is None:
            stay.next = _Arrival()
        arrival = stay.next
        arrival.num_waiting += 1
        self._turn()
        try:
            async with asyncio.timeout(self.load_timeout_seconds):
                return await asyncio.shield(arrival.future)
        except TimeoutError:
            raise ModelLoading(
                f"{entry.name} was not loaded within {self.load_timeout_seconds:g} s (--load-timeout); it is "
                "still on its way: try again.",
                retry_after_seconds=5.0,
            ) from None
        finally:
            arrival.num_waiting -= 1
            if stay.leaving is not None:
                # Whoever was refused before admission leaves nothing behind that would tell.
                asyncio.get_running_loop().call_soon(self.on_idle, entry)

    async def unload(self, entry: Entry) -> None:
        """Give its memory back once it has finished what it has; harmless where it is not loaded.

        Whoever asks for it meanwhile has it loaded again, and that is not waited for.
        """
        stay = self._stays[entry.resident.key]
        num_departures = stay.num_departures
        while stay.num_departures == num_departures:
            self._leave_now(entry)
            if entry.state not in (State.LOADING, State.LEAVING):
                return
            await self._change()

    async def reload(self, entry: Entry) -> ServedModel:
        """Unload it, look at its files again, and load it."""
        stay = self._stays[entry.resident.key]
        stay.is_outdated = True
        await self.unload(entry)
        self._forget_files(entry, stay)
        entry.resident.retry_at = 0.0
        return await self.hold(entry)

    async def retire(self, entry: Entry) -> None:
        """Forget a model: who is inside finishes, who waits is sent to look again."""
        entry.is_retired = True
        key = entry.resident.key
        stay = self._stays[key]
        if stay.resolving is not None:
            stay.resolving.cancel()
        self._settle(entry, Retired())
        self.residency.unwant(entry.resident)
        await self.unload(entry)
        self.residency.remove(entry.resident)
        del self._entries[key], self._stays[key]
        self._turn()

    def look(self) -> None:
        """A batch has run: whoever grew beyond the budget is noticed here."""
        now = monotonic()
        if now - self._looked_at < _LOOK_SECONDS or self._is_closed:
            return
        self._looked_at = now
        if self._loader.used_bytes() > self.residency.budget_bytes:
            self._turn()

    def on_idle(self, entry: Entry) -> None:
        """The last request has left."""
        entry.resident.last_used = monotonic()
        stay = self._stays.get(entry.resident.key)
        if stay is None or (served := stay.leaving) is None or self._is_busy(entry):
            return
        stay.leaving = None
        self._start(self._unload(entry, served))

    async def close(self) -> None:
        """Answer whoever waits. The loader ends what is loaded."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for entry in self._entries.values():
            self._settle(entry, ShuttingDown("the server is shutting down"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- inside -----------------------------------------------------------------------------------

    def _is_busy(self, entry: Entry) -> bool:
        last = self._stays[entry.resident.key].last
        return entry.admission.num_requests > 0 or (last is not None and last.num_waiting > 0)

    def _is_under_way(self, entry: Entry) -> bool:
        stay = self._stays.get(entry.resident.key)
        if stay is None:
            return False
        is_wanted = entry.resident.wanted_at is not None
        return stay.resolving is not None or is_wanted or entry.state is State.LOADING

    def _want(self, entry: Entry, *, is_eager: bool = False) -> None:
        """Have it loaded; its files are looked for first, which may take minutes and stops nobody else."""
        resident, stay = entry.resident, self._stays[entry.resident.key]
        self.residency.want(resident, monotonic(), is_eager=is_eager)
        if entry.spec is None and resident.state is not State.LOADING:  # else its load looks for them
            self.residency.unwant(resident)
            if stay.resolving is None:
                stay.resolving = self._start(self._resolve(entry, is_eager))

    async def _resolve(self, entry: Entry, is_eager: bool) -> None:
        stay = self._stays[entry.resident.key]
        try:
            entry.spec = await self._loader.resolve(entry)
            entry.resident.size_bytes = self._loader.size_of(entry, entry.spec)
        except Exception as error:
            self._fail(entry, error)
            return
        finally:
            stay.resolving = None
            self._pulse()
        self.residency.want(entry.resident, monotonic(), is_eager=is_eager and not stay.num_waiting)
        self._turn()

    def _turn(self) -> None:
        """Ask what is to be done, and begin it."""
        if self._is_closed:
            return
        while True:
            now = monotonic()
            busy = {key for key, entry in self._entries.items() if self._is_busy(entry)}
            plan = self.residency.plan(now, self._loader.used_bytes(), busy)
            if plan.refused is None:
                break
            entry = self._entries[plan.refused.key]
            assert plan.refused.error is not None
            self._tell(entry, plan.refused.error)
        for resident in plan.unload:
            self._leave(self._entries[resident.key], "idle" if plan.is_idle else "evicted")
        if plan.load and not self._num_loading:
            self._before = self._read()
        for resident in plan.load:
            self._num_loading += 1
            self._start(self._load(self._entries[resident.key]))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if plan.wake_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, plan.wake_at - now), self._turn)
        self._pulse()

    async def _load(self, entry: Entry) -> None:
        started, spec = monotonic(), entry.spec
        try:
            if spec is None:  # its files were not found the last time
                spec = entry.spec = await self._loader.resolve(entry)
            served = await self._loader.load(entry, spec)
        except asyncio.CancelledError:
            self.residency.gone(entry.resident)
            raise
        except Exception as error:
            self._num_loading -= 1
            self._fail(entry, error)
            return
        self._num_loading -= 1
        now, before = monotonic(), self._before
        # Several that come together are built one after the other.
        self._before = self._read()
        size = entry.resident.size_bytes
        if (measured := before.until(self._before)) is not None:
            size = max(measured, _MIN_BYTES)
            self._loader.remember_size(entry, spec, size)
        self.residency.loaded(entry.resident, now, size)
        served.on_idle = lambda: self.on_idle(entry)
        entry.served = served
        entry.observe()
        info = served.engine.info
        entry.metrics.on_load(now - started, info.is_from_cache)
        logger.info(
            "%s: %s, %s on %s in %s, %.0f MB, loaded in %.2f s",
            entry.name, info.program, info.engine, info.device, info.dtype, size / 1e6, now - started,
        )  # fmt: skip
        stay = self._stays[entry.resident.key]
        stay.last, stay.next = stay.next, None
        if stay.last is not None:
            stay.last.future.set_result(served)
        self._turn()

    def _leave_now(self, entry: Entry) -> None:
        if entry.state is State.LOADED:
            self.residency.leave(entry.resident)
            self._leave(entry, "asked")

    def _leave(self, entry: Entry, reason: str) -> None:
        """From now on nobody enters; `on_idle` goes on from here."""
        stay = self._stays[entry.resident.key]
        stay.leaving, entry.served, stay.reason = entry.served, None, reason
        last_used = entry.resident.last_used
        self.on_idle(entry)
        entry.resident.last_used = last_used

    async def _unload(self, entry: Entry, served: ServedModel) -> None:
        before, spec = self._read(), served.spec
        # Nobody holds it now: its tokenizer goes, and the loader gives the memory back.
        self._stays[entry.resident.key].last = None
        del served
        gc.unfreeze()  # what the server has frozen at its start may be garbage now
        try:
            await self._loader.unload(entry)
        except EngineError as error:
            logger.error("%s: %s", entry.name, error.message)
        # A worker builds nothing while it drops something: whoever is loading is measured from here.
        self._before = self._read()
        freed, resident = self._before.until(before), entry.resident
        if freed is not None and freed > resident.size_bytes:  # it has grown while it was used
            resident.size_bytes = freed
            self._loader.remember_size(entry, spec, freed)
        self.residency.gone(resident)
        stay = self._stays[resident.key]
        stay.num_departures += 1
        self._forget_files(entry, stay)
        entry.metrics.on_unload(stay.reason)
        logger.info(
            "%s: unloaded, %.0f MB in use, %.0f MB before",
            entry.name, self._before.used_bytes / 1e6, before.used_bytes / 1e6,
        )  # fmt: skip
        self._turn()

    def _forget_files(self, entry: Entry, stay: _Stay) -> None:
        if stay.is_outdated:
            entry.spec, stay.is_outdated = None, False

    def _read(self) -> _Reading:
        return _Reading(self._loader.used_bytes(), self._loader.epoch())

    def _fail(self, entry: Entry, raised: Exception) -> None:
        if isinstance(raised, ServingError):
            error = raised
            if len(self._entries) > 1 or any(
                entry.metrics.loads.values()
            ):  # else the server ends, and says why
                logger.error("%s cannot be loaded: %s", entry.name, error.message)
                if isinstance(error, ClientError):  # a setting is at fault, and no caller
                    error = ModelUnavailable(f"{entry.name} cannot be served as configured: {error.message}")
        else:
            error = EngineError(f"{entry.name} cannot be loaded: {type(raised).__name__}; see the log")
            logger.error("%s cannot be loaded", entry.name, exc_info=raised)
        self.residency.failed(entry.resident, monotonic(), error)
        self._tell(entry, error)
        self._turn()

    def _tell(self, entry: Entry, error: ServingError) -> None:
        entry.metrics.on_load_failure()
        self._settle(entry, error)

    def _settle(self, entry: Entry, error: Exception) -> None:
        stay = self._stays[entry.resident.key]
        arrival, stay.next = stay.next, None
        if arrival is not None:
            arrival.future.set_exception(error)
            arrival.future.exception()  # whoever waited may have left

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _change(self) -> None:
        """Return when something has changed."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _pulse(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)
