"""One log line for each verdict: whether, whom, from where, and for what; never a token.

Refusals are written at once. Lines of requests that were let in wait for each other (`LateLines`).
"""

from __future__ import annotations

import logging
import time

from hilbert.logs import LateLines

logger = logging.getLogger("hilbert.access")

PASSED = 0
"""In place of a status: the request may pass."""


class Verdicts:
    """The verdicts of one server; used on its event loop only.

    Args:
        passed: the word for a request that may pass. It is no status: whoever logs here has not answered the
            request yet, unless the verdict itself is the answer, as in `hilbert authz`.
    """

    def __init__(self, passed: str = "ok") -> None:
        self._passed = passed
        self._lines = LateLines(logger)

    def log(self, status: int, client: str, label: str, method: str, path: str) -> None:
        """Say who was let in or not.

        Args:
            status: `PASSED`, else what the request was answered.
            client: its true address.
            label: of its key; ``""`` where it has none that is known.
            path: without the query, which may hold anything.
        """
        level = logging.INFO if status == PASSED else logging.WARNING
        if not logger.isEnabledFor(level):
            return
        if not path.isascii() or not path.isprintable():
            path = ascii(path)
        word = self._passed if status == PASSED else f"{status} deny"
        fields = {"verdict": word, "client": client, "key": label or "-", "method": method, "path": path}
        event = (time.time(), f"{word} {client} [{label or '-'}] {method} {path}", fields)
        self._lines.add(level, event, may_wait=status == PASSED)
