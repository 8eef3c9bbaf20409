"""A clock that moves only when told. For tests of everything that takes `now` or a clock function."""

from __future__ import annotations


class ManualClock:
    """Seconds since an arbitrary start; call it to read it, as `time.monotonic`.

    Example:
        >>> clock = ManualClock()
        >>> clock.advance(1.5)
        >>> clock()
        1.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """The time now, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward. A monotonic clock never goes back, so neither does this one."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds
