"""One log line for each verdict: whether, whom, from where, and for what; never a token.

Refusals are written at once. Lines of requests that were let in wait for each other (`LateLines`).
"""

from __future__ import annotations

import logging
import time

from hilbert.logs import MAX_PATH_CHARS, Form, LateLines

logger = logging.getLogger("hilbert.access")

PASSED = 0
"""In place of a status: the request may pass."""

_MAX_METHOD_CHARS = 32
_NAMES = ("verdict", "client", "key", "method", "path")


class Verdicts:
    """The verdicts of one server; used on its event loop only.

    Args:
        passed: the word for a request that may pass. It is no status: whoever logs here has not answered the
            request yet, unless the verdict itself is the answer, as in `hilbert authz`.
    """

    def __init__(self, passed: str = "ok") -> None:
        self._passed = passed
        self._lines = LateLines(logger, Form(_said, _named))

    def log(self, status: int, client: str, label: str, method: str, path: str) -> None:
        """Say who was let in or not.

        Args:
            status: `PASSED`, else what the request was answered.
            client: its true address.
            label: of its key; ``""`` where it has none that is known.
            path: without the query, which may hold anything.
        """
        level = logging.INFO if status == PASSED else logging.WARNING
        if logger.isEnabledFor(level):
            word = self._passed if status == PASSED else f"{status} deny"
            values = (word, client, label or "-", method[:_MAX_METHOD_CHARS], path[:MAX_PATH_CHARS])
            self._lines.add(level, (time.time(), values), may_wait=status == PASSED)


def _said(values: tuple[str, ...]) -> str:
    verdict, client, key, method, path = values
    return f"{verdict} {client} [{key}] {_plain(method)} {_plain(path)}"


def _plain(text: str) -> str:
    return text if text.isascii() and text.isprintable() else ascii(text)


def _named(values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(_NAMES, values, strict=True))
