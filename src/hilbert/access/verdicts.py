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

from hilbert.logs import log_together

logger = logging.getLogger("hilbert.access")

_DELAY_SECONDS = 0.02
_MAX_WAITING = 1000

_Verdict = tuple[float, int, str, str, str, str]


class Verdicts:
    """The verdicts of one server; used on its event loop only."""

    def __init__(self) -> None:
        self._waiting: list[_Verdict] = []
        _all.add(self)

    def log(self, status: int, client: str, label: str, method: str, path: str) -> None:
        """Say who was let in or not.

        Args:
            status: 204 where the request may pass, else what it was answered.
            client: its true address.
            label: of its key; ``""`` where it has none that is known.
            path: without the query, which may hold anything.
        """
        if status == 204 and not logger.isEnabledFor(logging.INFO):
            return
        self._waiting.append((time.time(), status, client, label, method, path))
        num_waiting = len(self._waiting)
        if status != 204 or num_waiting >= _MAX_WAITING:
            self.flush()
        elif num_waiting == 1:
            asyncio.get_running_loop().call_later(_DELAY_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        for is_in, verdicts in groupby(waiting, lambda verdict: verdict[1] == 204):
            level = logging.INFO if is_in else logging.WARNING
            if logger.isEnabledFor(level):
                log_together(logger, level, [_line(verdict) for verdict in verdicts])


_all: WeakSet[Verdicts] = WeakSet()


@atexit.register
def _flush_all() -> None:
    for verdicts in list(_all):
        verdicts.flush()


def _line(verdict: _Verdict) -> tuple[float, str]:
    seconds, status, client, label, method, path = verdict
    if not path.isascii() or not path.isprintable():
        path = ascii(path)
    word = "ok" if status == 204 else "deny"
    return seconds, f"{status} {word} {client} [{label or '-'}] {method} {path}"
