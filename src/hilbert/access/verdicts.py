"""One log line for each verdict: whether, whom, from where, and for what; never a token.

Refusals are written at once. Lines of requests that were let in wait up to 20 ms, so that
many are written together: one by one a line costs as much as all else that is decided about its request
(bench/http_cost.py). Whatever waits is written when the process ends.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import time
from itertools import groupby
from weakref import WeakSet

from hilbert.logs import Event, log_together

logger = logging.getLogger("hilbert.access")

_DELAY_SECONDS = 0.02
_MAX_WAITING = 1000

PASSED = 0
"""In place of a status: the request may pass."""

_Verdict = tuple[float, int, str, str, str, str]


class Verdicts:
    """The verdicts of one server; used on its event loop only.

    Args:
        passed: the word for a request that may pass. It is no status: whoever logs here has not answered the
            request yet, unless the verdict itself is the answer, as in `hilbert authz`.
    """

    def __init__(self, passed: str = "ok") -> None:
        self._passed = passed
        self._waiting: list[_Verdict] = []
        _all.add(self)

    def log(self, status: int, client: str, label: str, method: str, path: str) -> None:
        """Say who was let in or not.

        Args:
            status: `PASSED`, else what the request was answered.
            client: its true address.
            label: of its key; ``""`` where it has none that is known.
            path: without the query, which may hold anything.
        """
        if status == PASSED and not logger.isEnabledFor(logging.INFO):
            return
        self._waiting.append((time.time(), status, client, label, method, path))
        num_waiting = len(self._waiting)
        if status != PASSED or num_waiting >= _MAX_WAITING:
            self.flush()
        elif num_waiting == 1:
            asyncio.get_running_loop().call_later(_DELAY_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        for is_in, verdicts in groupby(waiting, lambda verdict: verdict[1] == PASSED):
            level = logging.INFO if is_in else logging.WARNING
            if logger.isEnabledFor(level):
                log_together(logger, level, [self._event(verdict) for verdict in verdicts])

    def _event(self, verdict: _Verdict) -> Event:
        seconds, status, client, label, method, path = verdict
        if not path.isascii() or not path.isprintable():
            path = ascii(path)
        word = self._passed if status == PASSED else f"{status} deny"
        fields = {"verdict": word, "client": client, "key": label or "-", "method": method, "path": path}
        return seconds, f"{word} {client} [{label or '-'}] {method} {path}", fields


_all: WeakSet[Verdicts] = WeakSet()


@atexit.register
def _flush_all() -> None:
    for verdicts in list(_all):
        verdicts.flush()
