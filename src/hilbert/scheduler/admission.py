"""Decides whether one more request may come in, before any work is spent on it. Sans-IO.

It counts what has been let in and not yet answered, and how fast answers leave. It does not know texts,
models or clocks. Tokens are estimates here (the text is not tokenized yet); as backlog and rate are
measured in the same estimates, the error cancels in the waiting time.

Not thread-safe: the front calls it from its event loop.
"""

from __future__ import annotations

import math

from hilbert.errors import Overloaded

# Seconds of work over which the rate forgets: long enough to even out batches, short enough to follow
# a change in the kind of texts.
_RATE_WINDOW_SECONDS = 5.0
# What a refused client is told while nothing has been measured, and the bounds of what it is told later.
_DEFAULT_RETRY_SECONDS = 1.0
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 60.0


class Admission:
    """The door of one model.

    Args:
        max_queued_tokens: tokens let in and not answered, beyond which requests are refused.
        max_concurrent_requests: requests let in and not answered, likewise.

    Attributes:
        num_queued_tokens: tokens let in and not answered.
        num_requests: requests let in and not answered.
    """

    __slots__ = (
        "_busy_seconds",
        "_measured_at",
        "_served_tokens",
        "max_concurrent_requests",
        "max_queued_tokens",
        "num_queued_tokens",
        "num_requests",
    )

    def __init__(self, max_queued_tokens: int, max_concurrent_requests: int) -> None:
        self.max_queued_tokens = max_queued_tokens
        self.max_concurrent_requests = max_concurrent_requests
        self.num_queued_tokens = 0
        self.num_requests = 0
        self._served_tokens = 0.0
        self._busy_seconds = 0.0
        self._measured_at = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens answered per second of having work; None before anything was measured."""
        return self._served_tokens / self._busy_seconds if self._busy_seconds > 0 else None

    @property
    def backlog_seconds(self) -> float:
        """How long it takes to answer what was let in; a guess before anything was measured."""
        rate = self.tokens_per_second
        if rate:
            return self.num_queued_tokens / rate
        return _DEFAULT_RETRY_SECONDS if self.num_requests else 0.0

    def admit(self, num_tokens: int, now: float) -> None:
        """Let a request in. Whoever is let in must leave by `complete` or `release`, with the same count.

        An empty house lets in every request, however large: waiting would never make it fit.

        Raises:
            Overloaded: full; says when to come back.
        """
        if self.num_requests == 0:
            self._measured_at = now  # time without work says nothing about speed
        self.check_room(num_tokens)
        self.num_requests += 1
        self.num_queued_tokens += num_tokens

    def check_room(self, num_tokens: int = 1) -> None:
        """Refuse a request that `admit` would refuse now; by default the smallest that there is.

        Raises:
            Overloaded: full; says when to come back.
        """
        if self.num_requests == 0:
            return
        if self.num_requests >= self.max_concurrent_requests:
            raise self._refusal(
                f"{self.num_requests} requests are in progress; the limit is {self.max_concurrent_requests} "
                "(--max-concurrent-requests)",
                self.num_queued_tokens / self.num_requests,
            )
        if self.num_queued_tokens + num_tokens > self.max_queued_tokens:
            raise self._refusal(
                f"about {self.num_queued_tokens} tokens are queued and this request has {num_tokens}; the "
                f"limit is {self.max_queued_tokens} (--max-queued-tokens)",
                min(self.num_queued_tokens + num_tokens - self.max_queued_tokens, self.num_queued_tokens),
            )

    def complete(self, num_tokens: int, now: float) -> None:
        """A request was answered with vectors: it leaves, and tells how fast things go."""
        elapsed = now - self._measured_at
        self._measured_at = now
        kept = math.exp(-elapsed / _RATE_WINDOW_SECONDS)
        self._served_tokens = self._served_tokens * kept + num_tokens
        self._busy_seconds = self._busy_seconds * kept + elapsed
        self.release(num_tokens)

    def release(self, num_tokens: int) -> None:
        """A request leaves without an answer: cancelled, failed, or too late."""
        assert self.num_requests > 0, "release without admit"
        self.num_requests -= 1
        self.num_queued_tokens -= num_tokens

    def _refusal(self, reason: str, excess_tokens: float) -> Overloaded:
        rate = self.tokens_per_second
        wait = _DEFAULT_RETRY_SECONDS if not rate else excess_tokens / rate
        wait = min(max(wait, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
        return Overloaded(f"{reason}. Try again in {wait:.2f} s.", retry_after_seconds=wait)
