"""Whose turn it is on a device: a lock that is fair by measured seconds.

It decides which of the waiting engines runs next. It does not know batches, models or what a device is.

Every engine has a virtual time: the seconds that it has held the device. The waiter with the least goes
first; within an engine, the one that came first. An engine that comes back after a pause starts at the
virtual time of whoever ran last, so a pause banks no credit. Two engines at once on the same cores lose
12 % against one after the other (two 2-thread models on two cores), hence the lock.

A turn cannot be interrupted, so whoever comes next waits for the end of it. An engine whose batches take long
therefore cuts them while an engine with short ones is about: to twice the usual turn of the other, so that
waiting and computing together take the other one three times its turn at most. Equals do not cut each other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from types import TracebackType

from hilbert.errors import WorkerLost

# An engine that had no turn for so long does not count any more.
_ABOUT_SECONDS = 1.0
# A turn is never cut below this: smaller batches waste more than they save.
_MIN_SLICE_SECONDS = 0.004
# How much the newest turn counts in the usual one.
_NEWEST_SHARE = 0.2


class Device:
    """The turn on one device. Thread-safe; nobody polls.

    Use ``with device.turn(engine): ...`` around what computes.

    Args:
        name: for messages.
        clock: monotonic seconds.
    """

    def __init__(self, name: str = "device", clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below; held for microseconds
        self._holder: Turn | None = None
        self._waiting: list[Turn] = []  # in order of arrival; as long as there are step threads
        self._used_seconds: dict[Hashable, float] = {}  # virtual times
        self._usual_turns: dict[Hashable, tuple[float, float]] = {}  # seconds of a turn, and when it ended
        self._virtual_now = 0.0
        self._failure: str | None = None

    def turn(self, owner: Hashable) -> Turn:
        """A context manager that holds the device for `owner` inside its block.

        Raises:
            WorkerLost: on entry, once the device has failed.
        """
        return Turn(self, owner)

    def slice_seconds(self, owner: Hashable) -> float:
        """How long a turn of `owner` should take at most; infinity where nobody else is about."""
        with self._lock:
            now = self._clock()
            others = [
                seconds
                for other, (seconds, ended_at) in self._usual_turns.items()
                if other is not owner and now - ended_at < _ABOUT_SECONDS
            ]
        return max(2.0 * min(others), _MIN_SLICE_SECONDS) if others else math.inf

    def leave(self, owner: Hashable) -> None:
        """Forget an engine that was unloaded."""
        with self._lock:
            self._used_seconds.pop(owner, None)
            self._usual_turns.pop(owner, None)

    def fail(self, reason: str) -> None:
        """The device is lost: everybody who waits for it, and everybody who will, gets WorkerLost."""
        with self._lock:
            self._failure = reason
            waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.wake.release()

    def _enter(self, turn: Turn) -> None:
        with self._lock:
            self._raise_if_failed()
            used = self._used_seconds.get(turn.owner, 0.0)
            self._used_seconds[turn.owner] = max(used, self._virtual_now)
            if self._holder is None:
                self._grant(turn)
                return
            turn.wake.acquire()
            self._waiting.append(turn)
        turn.wake.acquire()  # until `_exit` of another turn, or `fail`, releases it
        if self._holder is not turn:
            self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise WorkerLost(f"{self.name} was lost: {self._failure}")

    def _exit(self, turn: Turn) -> None:
        with self._lock:
            if turn.owner in self._used_seconds:
                now = self._clock()
                seconds = now - turn.started_at
                self._used_seconds[turn.owner] += seconds
                usual, _ = self._usual_turns.get(turn.owner, (seconds, now))
                self._usual_turns[turn.owner] = usual + _NEWEST_SHARE * (seconds - usual), now
            self._holder = None
            if self._waiting:
                following = min(self._waiting, key=lambda waiter: self._used_seconds.get(waiter.owner, 0.0))
                self._waiting.remove(following)
                self._grant(following)
                following.wake.release()

    def _grant(self, turn: Turn) -> None:
        turn.started_at = self._clock()
        self._holder = turn
        self._virtual_now = max(self._virtual_now, self._used_seconds.get(turn.owner, 0.0))


class Turn:
    """One stay on the device."""

    __slots__ = ("_device", "owner", "started_at", "wake")

    def __init__(self, device: Device, owner: Hashable) -> None:
        self._device = device
        self.owner = owner
        self.started_at = 0.0
        self.wake = threading.Lock()  # held while waiting; whoever hands over the turn releases it

    def __enter__(self) -> Turn:
        self._device._enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._device._exit(self)
