"""The configured models of a server: made from the settings, and kept in step when these change."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Iterable, Iterator
from itertools import count
from typing import Any

from hilbert.cli.devices import DeviceLoader
from hilbert.cli.fleet import Fleet, device_of
from hilbert.cli.loader import ModelLoader
from hilbert.config import ModelSettings, ServerSettings, available_memory_bytes
from hilbert.config.sizes import size_bytes
from hilbert.engine.stats import BatchStats
from hilbert.errors import InvalidInput, ServingError
from hilbert.models import Entry, Memory, Registry, Residency, Resident, State
from hilbert.models.residency import UNKNOWN_BYTES
from hilbert.observability import DeviceReading, Metrics, ModelMetrics
from hilbert.scheduler import Admission

logger = logging.getLogger(__name__)

_numbers = count(2)
# What takes effect without a restart, beside the models.
_LIVE = ("memory", "idle_unload_seconds", "load_timeout")


class Roster:
    """All models of one server.

    Args:
        settings: what is served, and how.
        fleet: where engines live.

    Attributes:
        registry: the models by name.
        loader: brings them up.
        memory: what those share that compute in the machine's memory; each GPU has one of its own.
    """

    def __init__(self, settings: ServerSettings, fleet: Fleet) -> None:
        """Make the models known; nothing is loaded.

        Raises:
            ValueError: two models have one name or prefix.
        """
        self.settings = settings
        self.loader = ModelLoader(settings, fleet)
        self._fleet = fleet
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.memory = Memory(
            Residency(self._budget(settings), settings.idle_unload_seconds),
            self.loader,
            settings.load_timeout,
        )
        self._memories = {self.memory.device: self.memory}
        self.registry = Registry([self._entry(model) for model in settings.models])

    async def apply(self, settings: ServerSettings) -> list[str]:
        """Serve what these settings say from now on; requests that are inside finish where they are.

        Models whose entry has not changed stay as they are. A changed one is loaded beside the old one where
        there is room, and takes over when it can answer.

        Returns:
            The names of changed settings that count only after a restart.

        Raises:
            ServingError: a new or changed model cannot be had; nothing has changed.
            ValueError: two models have one name or prefix; likewise.
        """
        before, residency = self.settings, self.memory.residency
        budget = residency.budget_bytes if settings.memory == before.memory else self._budget(settings)
        if budget < residency.floor_bytes:
            raise ValueError(_too_small(settings, residency.floor_bytes))
        old = {self.loader.models[entry.resident.key]: entry for entry in self.entries}
        by_name = {entry.name: entry for entry in self.entries}
        live = {name: getattr(settings, name) for name in ("models", *_LIVE)}
        self.settings = dataclasses.replace(before, **live)
        made: list[Entry] = []
        try:
            entries = []
            for model in settings.models:
                entry = old.get(model)
                if entry is None:
                    entry = self._entry(model, by_name.get(model.name))
                    made.append(entry)
                entries.append(entry)
            await self._bring(made, by_name)
            self.registry.replace(entries)
        except BaseException:
            self.settings = before
            for entry in made:
                await self._retire(entry)
            for entry in by_name.values():
                entry.observe()
            raise
        for entry in made:
            entry.observe()
        if budget != residency.budget_bytes:
            residency.set_budget(budget)
        for memory in self._memories.values():
            memory.residency.idle_unload_seconds = settings.idle_unload_seconds
            memory.load_timeout_seconds = settings.load_timeout
        self._begin(made)
        for entry in set(by_name.values()) - set(entries):
            self._start(self._retire(entry))
        names = [field.name for field in dataclasses.fields(settings)]
        return [n for n in names if getattr(settings, n) != getattr(self.settings, n)]

    async def _bring(self, made: list[Entry], by_name: dict[str, Entry]) -> None:
        """See the files of new models; load those that take over from one that answers requests now."""
        for entry in made:
            try:
                entry.spec = await self.loader.resolve(entry)
            except ServingError as error:
                raise type(error)(f"the model {entry.name}: {error.message}") from None
            entry.resident.size_bytes = self.loader.size_of(entry, entry.spec)
        for entry in made:
            predecessor = by_name.get(entry.name)
            if predecessor is not None and predecessor.served is not None:
                await _memory_of(entry).hold(entry)

    async def _retire(self, entry: Entry) -> None:
        await _memory_of(entry).retire(entry)
        key = entry.resident.key
        del self._entries[key], self.loader.models[key]

    def _budget(self, settings: ServerSettings) -> int:
        return size_bytes(settings.memory, available_memory_bytes() + self.loader.used_bytes())

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every model, in the order of the settings."""
        return self.registry.list()

    def begin(self) -> None:
        """Load what is to be loaded at start, as far as there is room."""
        self.registry.is_starting = True
        self._begin(self.entries)

    def _begin(self, entries: Iterable[Entry]) -> None:
        kept = list(self._kept(entries))
        for memory in self._memories.values():
            memory.begin(entry for entry in kept if entry.memory is memory)

    async def until_started(self) -> None:
        """Return when everything that is loaded at start is there, or is known to stay away.

        Raises:
            ServingError: no model can be served at all, or nothing would fit beside the server itself.
        """
        kept = list(self._kept(self.entries))
        for memory in self._memories.values():
            await memory.until_settled(entry for entry in kept if entry.memory is memory)
        failed = [entry for entry in self.entries if entry.state is State.FAILED]
        if len(failed) == len(self.entries) and isinstance(failed[0].error, ServingError):
            raise failed[0].error
        self._check_budget()
        for entry in kept:
            if entry.state is State.AVAILABLE:
                logger.warning(
                    "%s does not fit into memory beside the others; it is loaded on first use", entry.name
                )
        self.registry.is_starting = False
        self._start(self._look())

    async def _look(self) -> None:
        """Learn what models are that are loaded on first use, for lists and for requests without a name."""
        for entry in self.entries:
            if entry.spec is None and not entry.is_retired:
                await self.loader.look(entry)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_budget(self) -> None:
        """Refuse to come up where not even one model could ever be loaded.

        Raises:
            InvalidInput: the server alone takes more than the budget.
        """
        used = self.memory.used_bytes
        if all(entry.served is None for entry in self.entries) and used > self.memory.residency.budget_bytes:
            raise InvalidInput(_too_small(self.settings, used))

    def on_batch(self, key: str, stats: BatchStats) -> None:
        """An engine has run a batch."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.metrics.on_batch(stats)
            _memory_of(entry).look()

    def devices(self) -> list[DeviceReading]:
        """Memory of the CPU, against the budget, and of the devices that have their own."""
        cpu = DeviceReading("cpu", self.memory.used_bytes, self.memory.residency.budget_bytes)
        return [cpu, *self._fleet.devices()]

    def metrics(self) -> Metrics:
        """What all models and processes have to say."""
        metrics = Metrics(lambda: [entry.metrics for entry in self.entries])
        metrics.read_devices = self.devices
        metrics.read_workers = self._fleet.workers
        return metrics

    async def close(self) -> None:
        """Answer whoever waits for a model."""
        for memory in self._memories.values():
            await memory.close()
        await self.loader.close()

    def _kept(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        return (entry for entry in entries if self.loader.models[entry.resident.key].preload)

    def _entry(self, model: ModelSettings, predecessor: Entry | None = None) -> Entry:
        key = model.name if model.name not in self._entries else f"{model.name} ({next(_numbers)})"
        settings, memory = self.settings, self._memory_for(model)
        entry = Entry(
            model.name,
            Admission(settings.max_queued_tokens, settings.max_concurrent_requests),
            ModelMetrics(model.name, has_tei_names=settings.tei_metrics)
            if predecessor is None
            else predecessor.metrics,  # counters go on
            aliases=aliases_of(model, settings),
            prefix=model.prefix,
            resident=Resident(key, 0, is_pinned=model.pin, is_kept=model.preload),
            memory=memory,
        )
        if predecessor is not None:
            predecessor.observe()  # it answers until the new one takes over
        self.loader.models[key] = model
        self._entries[key] = entry
        memory.add(entry)
        return entry

    def _memory_for(self, model: ModelSettings) -> Memory:
        """The memory that a model will lie in: a GPU's own where it computes on one."""
        device = device_of(model)
        if not device.startswith("cuda"):
            return self.memory
        if device not in self._memories:
            remedy = "take a smaller --dtype, or another --device"
            residency = Residency(UNKNOWN_BYTES, self.settings.idle_unload_seconds, remedy)
            loader = DeviceLoader(self.loader, self._fleet, device, residency)
            self._memories[device] = Memory(residency, loader, self.settings.load_timeout, device)
        return self._memories[device]


def _memory_of(entry: Entry) -> Memory:
    assert entry.memory is not None, "every configured model has one"
    return entry.memory


def _too_small(settings: ServerSettings, floor_bytes: int) -> str:
    return (
        f"memory (--memory) is {settings.memory}, and the server takes {floor_bytes / 1e6:.0f} MB without "
        "any model; give more"
    )


def aliases_of(model: ModelSettings, settings: ServerSettings) -> tuple[str, ...]:
    """Those that were given, and the id where no other model has it as a name or came first with it."""
    taken = {other.name for other in settings.models} | {a for m in settings.models for a in m.aliases}
    first = next(other for other in settings.models if other.model_id == model.model_id)
    is_free = first is model and model.model_id not in taken
    return (*model.aliases, model.model_id) if is_free else model.aliases
