"""Who is in memory, who comes next, and who must leave. Sans-IO: no clock, no engine, no file.

It decides on sizes, on what was measured, and on when each model was last used. It does not know what a
model is. The owner tells it what happens, and carries out what `plan` says:

===========  =============================================================  =====================
state        meaning                                                        next
===========  =============================================================  =====================
available    not in memory                                                  `plan` → loading
loading      on its way in                                                  `loaded` or `failed`
loaded       answers requests                                               `plan` → leaving
leaving      takes nothing new, finishes what it has                        `gone`
failed       could not be loaded; tried again after `retry_at`              `plan` → loading
===========  =============================================================  =====================

Rules, in this order:

- While somebody leaves nobody comes, and while somebody comes nobody is sent away, so that what is measured
  is what the decision was about. Several may come together, where all have room.
- Who waits longest is loaded next. It gets room from those who were used least recently, the idle before
  the busy, the pinned never. An eager one (loaded at start, asked for by nobody) makes nobody leave.
- Above the budget, the least recently used leaves, unless it is the only one.
- Who was idle for `idle_unload_seconds` leaves.
- A model that fits neither beside the pinned ones nor alone is refused, with the numbers.

Each load serves those who waited for it before it may leave: the owner lets a leaving model finish. So
with `n` models waiting, a request is served after `n` loads at most, however small the budget.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from hilbert.errors import NoRoom, ServingError

UNKNOWN_BYTES = sys.maxsize
"""A budget that nobody can tell before the first model is there: until then they come one by one."""

_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 300.0


class State(StrEnum):
    """Where a model is between the disk and an answer."""

    AVAILABLE = "available"
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "unloading"
    FAILED = "failed"


class Resident:
    """One model, as far as memory is concerned.

    Attributes:
        key: its name here.
        size_bytes: what it takes in memory: estimated, measured once it was loaded.
        is_pinned: never leaves by itself.
        is_kept: loaded at start; tried again by itself after a failure.
        state: see the table above.
        last_used: when a request last came or went.
        wanted_at: since when somebody waits for it; None where nobody does.
        is_eager: wanted only where there is room.
        error: why the last load failed.
        num_failures: loads in a row that failed.
        retry_at: when a failed one may be tried again.
    """

    __slots__ = (
        "error",
        "is_eager",
        "is_kept",
        "is_pinned",
        "key",
        "last_used",
        "num_failures",
        "retry_at",
        "size_bytes",
        "state",
        "wanted_at",
    )

    def __init__(self, key: str, size_bytes: int, *, is_pinned: bool = False, is_kept: bool = False) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.is_pinned = is_pinned
        self.is_kept = is_kept
        self.state = State.AVAILABLE
        self.last_used = -math.inf
        self.wanted_at: float | None = None
        self.is_eager = False
        self.error: ServingError | None = None
        self.num_failures = 0
        self.retry_at = -math.inf


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now.

    Attributes:
        load: begin to load these, in this order.
        unload: these take nothing new; unload each once it is idle.
        refused: this one does not fit at all; its `error` says why.
        wake_at: plan again at this time, if nothing happens before.
        is_idle: who is to be unloaded was not used for long; else there is no room.
    """

    load: tuple[Resident, ...] = ()
    unload: tuple[Resident, ...] = ()
    refused: Resident | None = None
    wake_at: float | None = None
    is_idle: bool = False


class Residency:
    """The models that share one memory.

    Args:
        budget_bytes: what everything together may take, the processes themselves included.
        idle_unload_seconds: unload what nobody used for so long; None keeps it.
        remedy: what the operator can do where a model does not fit.

    Attributes:
        floor_bytes: what is taken when no model is loaded.
    """

    def __init__(
        self,
        budget_bytes: int,
        idle_unload_seconds: float | None = None,
        remedy: str = "raise it with --memory",
    ) -> None:
        self.budget_bytes = budget_bytes
        self._remedy = remedy
        self.idle_unload_seconds = idle_unload_seconds
        self.floor_bytes = 0
        self._residents: dict[str, Resident] = {}

    @property
    def residents(self) -> tuple[Resident, ...]:
        """Everybody, in the order in which they came."""
        return tuple(self._residents.values())

    def set_budget(self, budget_bytes: int) -> None:
        """Keep to another budget; whoever did not fit into the old one may come at once."""
        self.budget_bytes = budget_bytes
        for resident in self._residents.values():
            if resident.state is State.FAILED and isinstance(resident.error, NoRoom):
                resident.num_failures, resident.retry_at = 0, -math.inf

    def add(self, resident: Resident) -> None:
        """Make a model known."""
        assert resident.key not in self._residents, resident.key
        self._residents[resident.key] = resident

    def remove(self, resident: Resident) -> None:
        """Forget a model that is not in memory."""
        assert resident.state in (State.AVAILABLE, State.FAILED), resident.state
        del self._residents[resident.key]

    def want(self, resident: Resident, now: float, *, is_eager: bool = False) -> None:
        """Somebody waits for it.

        Raises:
            ServingError: it failed a moment ago; says why, and when it will be tried again.
        """
        if resident.state is State.FAILED and now < resident.retry_at:
            assert resident.error is not None
            raise again(resident.error, resident.retry_at - now)
        if resident.wanted_at is None:
            resident.wanted_at = now
            resident.is_eager = is_eager
        elif not is_eager:
            resident.is_eager = False

    def unwant(self, resident: Resident) -> None:
        """Nobody waits for it any more."""
        resident.wanted_at = None

    def leave(self, resident: Resident) -> None:
        """It was told to go, whatever the memory says."""
        assert resident.state is State.LOADED, resident.state
        resident.state = State.LEAVING

    def loaded(self, resident: Resident, now: float, size_bytes: int) -> None:
        """It can answer, and takes so much."""
        resident.state, resident.wanted_at = State.LOADED, None
        resident.error, resident.num_failures = None, 0
        resident.size_bytes = size_bytes
        resident.last_used = now

    def failed(self, resident: Resident, now: float, error: ServingError) -> None:
        """It could not be loaded: whoever waits is told, and the next try is later each time."""
        resident.state, resident.wanted_at, resident.error = State.FAILED, None, error
        resident.num_failures += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (resident.num_failures - 1), _MAX_PAUSE_SECONDS)
        resident.retry_at = now + pause

    def gone(self, resident: Resident) -> None:
        """Its memory was given back, or it was not loaded after all."""
        resident.state = State.AVAILABLE

    def plan(self, now: float, used_bytes: int, busy: Collection[str]) -> Plan:
        """Decide, and mark whoever is to be loaded or unloaded.

        Args:
            now: seconds, of any clock.
            used_bytes: what is taken now, as measured.
            busy: keys of the models with requests inside.
        """
        residents = self._residents.values()
        if any(r.state is State.LEAVING for r in residents):
            return Plan()
        coming = [r for r in residents if r.state is State.LOADING]
        if coming:
            return Plan(load=self._also(used_bytes + sum(r.size_bytes for r in coming)))
        loaded = [r for r in residents if r.state is State.LOADED]
        if not loaded and used_bytes:
            self.floor_bytes = used_bytes if not self.floor_bytes else min(self.floor_bytes, used_bytes)
        self._want_again(now)
        idle, wake_at = self._idle(loaded, now, busy)
        if idle:
            return Plan(unload=self._send_away(idle), is_idle=True)
        movable = sorted((r for r in loaded if not r.is_pinned), key=lambda r: (r.key in busy, r.last_used))
        while (resident := self._next()) is not None:
            plan = self._make_room(resident, now, used_bytes, loaded, movable)
            if plan is not None and plan.load:
                return Plan(load=(*plan.load, *self._also(used_bytes + resident.size_bytes)))
            if plan is not None:
                return plan
        if used_bytes > self.budget_bytes and len(loaded) > 1 and movable:
            return Plan(unload=self._send_away(movable[:1]))
        return Plan(wake_at=wake_at)

    def _also(self, taken_bytes: int) -> tuple[Resident, ...]:
        """Who else may come at once: whoever is next, while there is room beside all that are coming."""
        coming: list[Resident] = []
        while self.budget_bytes != UNKNOWN_BYTES and (resident := self._next()) is not None:
            taken_bytes += resident.size_bytes
            if taken_bytes > self.budget_bytes:
                break
            resident.state = State.LOADING
            coming.append(resident)
        return tuple(coming)

    def _next(self) -> Resident | None:
        """Who waits longest."""
        waiting = [
            r
            for r in self._residents.values()
            if r.wanted_at is not None and r.state in (State.AVAILABLE, State.FAILED)
        ]
        return min(waiting, key=lambda r: (r.is_eager, r.wanted_at or 0.0), default=None)

    def _make_room(
        self, resident: Resident, now: float, used_bytes: int, loaded: list[Resident], movable: list[Resident]
    ) -> Plan | None:
        """Load it, or who must leave for it; None where an eager one gives up."""
        missing = used_bytes + resident.size_bytes - self.budget_bytes
        if missing <= 0:
            resident.state = State.LOADING
            return Plan(load=(resident,))
        fits_alone = self.floor_bytes + resident.size_bytes <= self.budget_bytes
        if resident.is_eager and fits_alone:
            self.unwant(resident)
            return None
        pinned_bytes = sum(r.size_bytes for r in loaded if r.is_pinned)
        if self.floor_bytes + pinned_bytes + resident.size_bytes > self.budget_bytes:
            self.failed(resident, now, self._too_large(resident, pinned_bytes))
            return Plan(refused=resident)
        if not movable:  # by its size it fits, so what is measured will come down
            resident.state = State.LOADING
            return Plan(load=(resident,))
        leaving = []
        for candidate in movable:
            if missing <= 0:
                break
            missing -= candidate.size_bytes
            leaving.append(candidate)
        return Plan(unload=self._send_away(leaving))

    def _too_large(self, resident: Resident, pinned_bytes: int) -> NoRoom:
        pinned = f", pinned models hold {_megabytes(pinned_bytes)}" if pinned_bytes else ""
        return NoRoom(
            f"{resident.key} takes about {_megabytes(resident.size_bytes)}; the server itself holds "
            f"{_megabytes(self.floor_bytes)}{pinned}, and the budget is {_megabytes(self.budget_bytes)}: "
            f"{self._remedy}"
        )

    def _idle(
        self, loaded: list[Resident], now: float, busy: Collection[str]
    ) -> tuple[list[Resident], float | None]:
        """Who has been idle for too long, and when to look again."""
        limit = self.idle_unload_seconds
        due = [r.retry_at for r in self._residents.values() if r.state is State.FAILED and r.is_kept]
        idle: list[Resident] = []
        if limit is not None:
            for r in loaded:
                if r.is_pinned:
                    continue
                since = now if r.key in busy else r.last_used
                if now - since >= limit:
                    idle.append(r)
                else:
                    due.append(since + limit)
        return idle, min(due, default=None)

    def _want_again(self, now: float) -> None:
        for r in self._residents.values():
            if r.state is State.FAILED and r.is_kept and r.retry_at <= now:
                self.want(r, now, is_eager=True)

    def _send_away(self, residents: list[Resident]) -> tuple[Resident, ...]:
        for r in residents:
            r.state = State.LEAVING
        return tuple(residents)


def again(error: ServingError, seconds: float) -> ServingError:
    """The error of a load that failed before, for somebody who asks while it is not tried again yet."""
    return type(error)(
        f"{error.message} (tried a moment ago; the next try is in {max(seconds, 0.0):.0f} s)",
        param=error.param,
        retry_after_seconds=max(seconds, 0.0),
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
