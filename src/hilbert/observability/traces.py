"""Traces of requests for OpenTelemetry: a server span for each, and a child for each stage of its work.

Spans are made when a request is over, from the times that it kept, so a request that is not traced pays
for nothing but the question whether it is. Who called is taken from W3C's `traceparent`. The SDK is imported
here only, when tracing is switched on (extra ``otel``); everything that it reads from the environment
(``OTEL_*``: sampler, headers, resource, batches, timeouts) keeps its meaning.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from hilbert.errors import InvalidInput, MissingDependency, in_short

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

DEFAULT_SERVICE_NAME = "hilbert"
_HTTP_PORT = 4318  # what OpenTelemetry registered; gRPC has 4317
_TRACES_PATH = "/v1/traces"
# A client chooses paths and names of models. Collectors refuse a whole batch that exceeds 4 MB.
_MAX_ATTRIBUTE_CHARS = 1024
# A collector that does not answer must not keep a server from ending.
_FLUSH_SECONDS = 2.0


class Stage(NamedTuple):
    """A part of a request's work, from when to when (`time.perf_counter`)."""

    name: str
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request, over.

    Attributes:
        parent, state: the caller's `traceparent` and `tracestate`; ``""`` where it sent none.
        started, ended: `time.perf_counter`.
    """

    name: str
    parent: str
    state: str
    started: float
    ended: float
    attributes: Mapping[str, str | int | Sequence[str]]
    stages: tuple[Stage, ...]
    is_failed: bool


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where traces go.

    Attributes:
        endpoint: as in ``--otlp-endpoint``; ``""`` leaves it to the environment.
        service_name: as in ``--otlp-service-name``; ``""`` likewise.
        is_http: OTLP over HTTP; else over gRPC.
    """

    endpoint: str
    service_name: str
    is_http: bool

    @staticmethod
    def of(endpoint: str, service_name: str, environ: Mapping[str, str]) -> TraceSettings | None:
        """What flags and OpenTelemetry's own environment say together; None where nobody wants traces.

        The flag wins. The protocol is the one that the environment names, else what the endpoint looks like:
        HTTP on its registered port or with a path, gRPC otherwise.

        Raises:
            InvalidInput: the endpoint is none.
        """
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
            return None
        known = (
            endpoint
            or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
            or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        )
        if not known:
            return None
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "") or environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", ""
        )
        is_http = protocol.startswith("http") if protocol else _looks_like_http(known)
        return TraceSettings(endpoint, service_name, is_http)


class Tracer:
    """Sends the traces of one server, in batches, from a thread of its own.

    Raises:
        MissingDependency: the extra ``otel`` is not installed.
        InvalidInput: a variable of OpenTelemetry's has a value that its SDK does not take.
    """

    def __init__(self, settings: TraceSettings) -> None:
        try:
            self._provider = _provider(settings)
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"traces need {error.name}, which is not installed; run: pip install 'hilbert[otel]'"
            ) from None
        except Exception as error:  # the SDK has no one kind for what it finds in the environment
            raise InvalidInput(
                f"traces cannot be sent as the variables OTEL_… say: {in_short(error)}; correct or unset them"
            ) from None
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = self._provider.get_tracer("hilbert")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._within = set_span_in_context

    def record(self, request: RequestTrace) -> str:
        """Keep one request.

        Returns:
            The id of its trace, in hex.
        """
        offset = time.time_ns() - time.perf_counter_ns()

        def at(seconds: float) -> int:
            return offset + int(seconds * 1e9)

        context = None
        if request.parent:
            carrier = {"traceparent": request.parent, "tracestate": request.state}
            context = self._propagator.extract(carrier)
        span = self._tracer.start_span(
            request.name,
            context,
            self._kind,
            dict(request.attributes),
            start_time=at(request.started),
        )
        if span.is_recording():
            if request.is_failed:
                span.set_status(self._failed)
            inside = self._within(span, context)
            for stage in request.stages:
                child = self._tracer.start_span(stage.name, inside, start_time=at(stage.started))
                child.end(at(stage.ended))
            span.end(at(request.ended))
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what is left, if somebody takes it soon."""
        end = threading.Thread(target=self._provider.shutdown, name="hilbert-traces", daemon=True)
        end.start()
        end.join(_FLUSH_SECONDS)


def _looks_like_http(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        return parts.port == _HTTP_PORT or parts.path not in ("", "/")
    except ValueError as error:
        raise InvalidInput(
            f"traces cannot be sent to {endpoint!r}: {error}; name an address such as http://localhost:4317"
        ) from None


def _provider(settings: TraceSettings) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = _exporter(settings)
    named = {"service.name": settings.service_name} if settings.service_name else {}
    resource = Resource.create({"service.name": DEFAULT_SERVICE_NAME}).merge(
        Resource.create(named) if named else Resource.create()
    )
    limits = SpanLimits()
    if limits.max_span_attribute_length is None:
        limits = SpanLimits(max_span_attribute_length=_MAX_ATTRIBUTE_CHARS)
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(settings: TraceSettings) -> SpanExporter:
    endpoint = settings.endpoint
    if settings.is_http:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        if endpoint and not endpoint.rstrip("/").endswith(_TRACES_PATH):
            endpoint = endpoint.rstrip("/") + _TRACES_PATH
        if endpoint and "://" not in endpoint:
            endpoint = f"http://{endpoint}"
        return HttpExporter(endpoint=endpoint or None)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    # Without a scheme, or with http, the connection is plain, as in TEI.
    is_plain = None if not endpoint else not endpoint.startswith("https://")
    return GrpcExporter(endpoint=endpoint or None, insecure=is_plain)
