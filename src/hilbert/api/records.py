"""What is kept of every answered request: numbers, a trace, and a line where it failed or was slow.

The one place that all requests pass on their way out. What a client sent or was sent is nowhere kept: not its
inputs, not its key, not the query of its URL; the message of a client's error is not either, as it may
quote what was wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from hilbert.api.call import Asked, Call
from hilbert.errors import CapacityError, Overloaded
from hilbert.logs import MAX_PATH_CHARS, Form, LateLines
from hilbert.models import outcome_of
from hilbert.observability import Metrics, RequestTrace, Stage, Tracer

logger = logging.getLogger("hilbert.requests")

_CLIENT_GONE = 499
_UNKNOWN_ROUTE = "unknown"


class Records:
    """The books of one server; used on its event loop only.

    Args:
        metrics: where requests are counted.
        slow_seconds: a request that takes longer has a line in the log.
        tracer: where traces go; None where nobody wants them.
    """

    def __init__(self, metrics: Metrics, slow_seconds: float, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._slow_seconds = slow_seconds
        self._tracer = tracer
        self._lines = LateLines(logger, Form(_said, dict))

    @property
    def is_tracing(self) -> bool:
        """Whether requests are to be opened."""
        return self._tracer is not None

    def open(self, call: Call) -> None:
        """A request has come, and is to be traced."""
        call.asked = Asked()

    def gone(self, call: Call) -> None:
        """Its client has left without an answer."""
        self.close(call, _CLIENT_GONE)

    def close(self, call: Call, status: int) -> None:
        """It was answered; the status is the one that its client sees."""
        route = call.route
        if route is not None and route.is_open:
            return
        ended = time.perf_counter()
        metrics = self._metrics.no_model if call.entry is None else call.entry.metrics
        outcome = "ok" if status < 400 else _outcome(call, status)
        metrics.on_answer(_UNKNOWN_ROUTE if route is None else route.path, outcome, ended - call.started)
        if call.computed_at and call.replied_at:
            metrics.serialize_seconds.observe(call.replied_at - call.computed_at)
        if isinstance(call.error, CapacityError):
            metrics.on_rejection(call.error.code)
        trace_id = ""
        if self._tracer is not None:
            trace_id = self._tracer.record(_trace(call, status, ended))
        if outcome != "ok" or ended - call.started > self._slow_seconds:
            self._write(call, status, ended, trace_id)

    def _write(self, call: Call, status: int, ended: float, trace_id: str) -> None:
        level = logging.WARNING if status >= 500 else logging.INFO
        if not logger.isEnabledFor(level):
            return
        fields: dict[str, object] = {
            "request_id": call.request_id.decode(),
            "method": call.method,
            "path": (call.prefix + call.path)[:MAX_PATH_CHARS],
            "status": status,
        }
        if call.entry is not None:
            fields["model"] = call.entry.name
        if call.error is not None:
            fields["code"] = call.error.code
            if call.error.param:
                fields["param"] = call.error.param
            if status >= 500:  # what went wrong here; a client's own mistakes may quote its input
                fields["error"] = call.error.message
        fields["seconds"] = round(ended - call.started, 6)
        if call.waited_at:
            fields["model_load_seconds"] = round(call.wait_seconds, 6)
        if (timing := call.timing) is not None:
            if timing.load_seconds:
                fields["media_load_seconds"] = round(timing.load_seconds, 6)
            fields["tokenize_seconds"] = round(timing.tokenize_seconds, 6)
            fields["queue_seconds"] = round(timing.queue_seconds, 6)
            fields["inference_seconds"] = round(timing.inference_seconds, 6)
            fields["tokens"] = call.num_tokens
        if trace_id:
            fields["trace_id"] = trace_id
        is_one_of_many = isinstance(call.error, Overloaded)
        self._lines.add(level, (time.time(), fields), may_wait=is_one_of_many)


def _outcome(call: Call, status: int) -> str:
    if status == _CLIENT_GONE:
        return "cancelled"
    if call.error is not None:
        return outcome_of(call.error)
    return "client_error" if status < 500 else "server_error"


def _said(fields: dict[str, Any]) -> str:
    """``name=value …``; a value that would not stay on the line is written as a Python string."""
    word = "failed" if fields["status"] >= 400 else "slow"
    text = " ".join([f"{name}={value}" for name, value in fields.items()])
    if not (text.isascii() and text.isprintable() and text.count(" ") == len(fields) - 1):
        text = " ".join([f"{name}={_plain(str(value))}" for name, value in fields.items()])
    return f"{word} request: {text}"


def _plain(text: str) -> str:
    return text if text.isascii() and text.isprintable() and " " not in text else ascii(text)


def _trace(call: Call, status: int, ended: float) -> RequestTrace:
    route, asked, error = call.route, call.asked, call.error
    attributes: dict[str, str | int | Sequence[str]] = {
        "http.request.method": call.method,
        "http.response.status_code": status,
        "url.path": call.prefix + call.path,
        "hilbert.request_id": call.request_id.decode(),
    }
    if route is not None:
        attributes["http.route"] = route.path
    if asked is not None and asked.task is not None:
        attributes |= _gen_ai(call, asked)
    if error is not None:
        attributes["error.type"] = error.code
    elif status >= 500:
        attributes["error.type"] = str(status)
    return RequestTrace(
        name=call.method if route is None else f"{call.method} {route.path}",
        parent=call.headers.get(b"traceparent", b"").decode("latin-1"),
        state=call.headers.get(b"tracestate", b"").decode("latin-1"),
        started=call.started,
        ended=ended,
        attributes=attributes,
        stages=_stages(call),
        is_failed=status >= 500,
    )


_OPERATIONS = {"rerank": "rerank", "classify": "classify", "extract": "extract"}


def _gen_ai(call: Call, asked: Asked) -> dict[str, str | int | Sequence[str]]:
    """OpenTelemetry's names for generative AI; it has a word for embeddings and none for the others."""
    assert asked.task is not None
    attributes: dict[str, str | int | Sequence[str]] = {
        "gen_ai.operation.name": _OPERATIONS.get(asked.task.value, "embeddings"),
        "gen_ai.provider.name": "hilbert",
    }
    if asked.model:
        attributes["gen_ai.request.model"] = asked.model
    if asked.encoding:
        attributes["gen_ai.request.encoding_formats"] = (asked.encoding,)
    if call.entry is not None:
        attributes["gen_ai.response.model"] = call.entry.name
    if call.num_tokens:
        attributes["gen_ai.usage.input_tokens"] = call.num_tokens
    if asked.dimensions:
        attributes["gen_ai.embeddings.dimension.count"] = asked.dimensions
    return attributes


def _stages(call: Call) -> tuple[Stage, ...]:
    """Where the time went, one after the other; what was needed to fetch images comes before."""
    timing = call.timing
    waiting = (Stage("load model", call.waited_at, call.waited_at + call.wait_seconds),)
    before = waiting if call.waited_at else ()
    if timing is None:
        return before
    tokenizing = call.worked_at + timing.load_seconds
    queued = tokenizing + timing.tokenize_seconds
    taken = queued + timing.queue_seconds
    stages = [Stage("tokenize", tokenizing, queued), Stage("queue", queued, taken)]
    if timing.load_seconds:
        stages.insert(0, Stage("load media", call.worked_at, tokenizing))
    # A batch is laid out and waits for the device before it runs, so it is the end that is known.
    running = max(taken, call.computed_at - timing.inference_seconds)
    stages.append(Stage("inference", running, running + timing.inference_seconds))
    return (*before, *stages)
