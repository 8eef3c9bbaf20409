"""The log: one line an event, on the standard error stream, the same in the front and in its workers.

Lines are made for people, or are JSON objects for machines. What a client sent is not in them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakSet

_TRACE_LEVEL = 5
# They show URLs with queries, which may be signed, and whole headers.
_TELLTALES = ("httpx2", "httpcore2", "uvicorn.asgi")

# Of a path in a line: ours are shorter by far, and a client, or a proxy for it, may send 64 KB.
MAX_PATH_CHARS = 512

# How long a line may wait for others.
_DELAY_SECONDS = 0.02
_MAX_WAITING = 1000

Event = tuple[float, Any]
"""When it happened (unix time), and its values."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a kind of events is to be shown as, once somebody looks.

    Attributes:
        say: its values as one line for people.
        name: its values by name.
    """

    say: Callable[[Any], str]
    name: Callable[[Any], Mapping[str, object]]


PLAIN = Form(str, lambda _: {})
"""Events that are no more than a message."""


if TYPE_CHECKING:
    _Stream = logging.StreamHandler[TextIO]
else:
    _Stream = logging.StreamHandler


# What would end a line, or move a terminal's cursor.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROLS |= {0x2028: "\\u2028", 0x2029: "\\u2029"}


class LineFormatter(logging.Formatter):
    """``2026-11-21 11:35:57,123 INFO hilbert.access: …``.

    The second is written once for all lines of it: with a line for each request, telling the time was a
    third of its cost.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._second = -1
        self._shown = ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line, whatever a client has put into a name or a path. Tracebacks follow it as they are."""
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Local time to the millisecond."""
        return self._moment(record.created)

    def line(self, level: str, name: str, form: Form, event: Event) -> str:
        """An event without a record."""
        return f"{self._moment(event[0])} {level} {name}: {form.say(event[1])}"

    def _moment(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._shown},{int(seconds % 1 * 1000):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC), level, logger, message, an exception's text, and the named values."""

    def format(self, record: logging.LogRecord) -> str:
        """A record; its values are what `extra={"fields": …}` gave it."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _object(record.levelname, record.name, record.created, record.getMessage(), fields)

    def line(self, level: str, name: str, form: Form, event: Event) -> str:
        """An event without a record."""
        seconds, values = event
        return _object(level, name, seconds, form.say(values), form.name(values))


def _object(level: str, name: str, seconds: float, message: str, fields: Mapping[str, object]) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    said = {
        "timestamp": f"{moment}.{int(seconds % 1 * 1000):03d}Z",
        "level": level,
        "logger": name,
        "message": message,
    }
    return json.dumps(said | dict(fields), default=str)


class LineHandler(_Stream):
    """Writes to the standard error stream."""

    def __init__(self, *, is_json: bool = False) -> None:
        super().__init__(sys.stderr)
        self.lines = JsonFormatter() if is_json else LineFormatter()
        self.setFormatter(self.lines)

    def write_all(self, level: str, name: str, form: Form, events: Iterable[Event]) -> None:
        """Write lines in one piece, each with its time; where they cannot be written they are lost.

        A log on a full disk, or a pipe whose reader has left, is no reason to fail whoever is logged.
        """
        line = self.lines.line
        text = "".join([line(level, name, form, event) + "\n" for event in events])
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def log_together(logger: logging.Logger, level: int, form: Form, events: list[Event]) -> None:
    """Log events that have waited, with their own times.

    Where the log is only our own lines, they are written in one piece: a fifth of the cost of a record each.
    """
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handlers[0], LineHandler) and not logger.handlers:
        handlers[0].write_all(logging.getLevelName(level), logger.name, form, events)
        return
    for seconds, values in events:
        record = logging.LogRecord(logger.name, level, __file__, 0, form.say(values), None, None)
        record.created, record.msecs = seconds, seconds % 1 * 1000
        record.fields = form.name(values)
        logger.handle(record)


class LateLines:
    """The lines of one logger, where they may be many at a time; used on one event loop only.

    They wait for each other, as one by one a line costs as much as all else that is decided about its request
    (bench/http_cost.py). What waits is written when the process ends.
    """

    def __init__(self, logger: logging.Logger, form: Form) -> None:
        self._logger = logger
        self._form = form
        self._waiting: list[tuple[int, Event]] = []
        _all_late.add(self)

    def add(self, level: int, event: Event, *, may_wait: bool = True) -> None:
        """Log an event, at once or within 20 ms; they stay in the order in which they come."""
        waiting = self._waiting
        if not waiting and may_wait:
            import asyncio  # workers log as well, and have no loop

            asyncio.get_running_loop().call_later(_DELAY_SECONDS, self.flush)
        waiting.append((level, event))
        if not may_wait or len(waiting) >= _MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        for level, lines in groupby(waiting, lambda line: line[0]):
            if self._logger.isEnabledFor(level):
                log_together(self._logger, level, self._form, [event for _, event in lines])


_all_late: WeakSet[LateLines] = WeakSet()


@atexit.register
def _flush_all() -> None:
    for lines in list(_all_late):
        lines.flush()


def log_to_stderr(level: str, *, is_json: bool = False) -> None:
    """Our own log at `level`; libraries only from warnings on, unless everything is wanted.

    Those that would quote what a client sent are kept to warnings even then.
    """
    # None of these is shown, and each costs a look-up a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.addLevelName(_TRACE_LEVEL, "TRACE")
    number = _TRACE_LEVEL if level == "trace" else logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(
        handlers=[LineHandler(is_json=is_json)],
        level=number if number <= logging.DEBUG else max(number, logging.WARNING),
    )
    logging.getLogger("hilbert").setLevel(number)
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(logging.WARNING)


def without_message(error: BaseException) -> RuntimeError:
    """What the log may say of a failure that nobody expected: its message may quote an input."""
    shown = RuntimeError(type(error).__name__).with_traceback(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    shown.__cause__ = None if cause is None else without_message(cause)
    return shown
