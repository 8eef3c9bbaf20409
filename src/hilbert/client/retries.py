"""When a request is sent again, and how long to wait before. No I/O."""

from __future__ import annotations

import random
import time

from hilbert.errors import ServingError

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 8.0
# What "at once" means, which a server says in so many words, or by a date that has passed on this machine.
_SHORTEST_WAIT_SECONDS = 0.05


class Patience:
    """How long one request is tried.

    Args:
        seconds: from the first failure until the last try; 0 for one try.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._wait = _FIRST_WAIT_SECONDS

    def wait_after(self, error: ServingError) -> float:
        """Seconds to wait until the next try: what the server says, else twice as long as the last time.

        Raises:
            ServingError: `error`, where another try is no use or would come too late.
        """
        if not error.retryable:
            raise error
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._seconds
        # Spread out, so that those who were refused together do not come back together.
        if error.retry_after_seconds is None:
            wait = self._wait * random.uniform(0.5, 1.0)
            self._wait = min(2 * self._wait, _LONGEST_WAIT_SECONDS)
        else:
            wait = max(_SHORTEST_WAIT_SECONDS, error.retry_after_seconds) * random.uniform(1.0, 1.1)
        if now + wait > self._deadline:
            raise error
        return wait
