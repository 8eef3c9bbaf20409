"""The log: one line an event, on the standard error stream, the same in the front and in its workers."""

from __future__ import annotations

import logging
import sys
import time

_TRACE_LEVEL = 5


class LineFormatter(logging.Formatter):
    """``2026-11-21 11:35:57,123 INFO hilbert.access: …``.

    The second is written once for all lines of it: with a line for each request, telling the time was a
    third of its cost.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._second = -1
        self._shown = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Local time to the millisecond."""
        second = int(record.created)
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._shown},{int(record.msecs):03d}"


def log_to_stderr(level: str) -> None:
    """Our own log at `level`; libraries only from warnings on, unless everything is wanted."""
    # None of these is shown, and each costs a look-up a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.addLevelName(_TRACE_LEVEL, "TRACE")
    number = _TRACE_LEVEL if level == "trace" else logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(
        handlers=[handler], level=number if number <= logging.DEBUG else max(number, logging.WARNING)
    )
    logging.getLogger("hilbert").setLevel(number)
