"""Traces of a real server, as real collectors receive them over gRPC and over HTTP."""

from __future__ import annotations

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("grpc")

import itertools

from otlp_house import attributes, grpc_collector, http_collector

from hilbert.cli.serve import _prepare
from hilbert.config import load
from hilbert.errors import InvalidInput
from hilbert.observability import RequestTrace, Tracer, TraceSettings, traces

SECRET = "attack at dawn"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOT_SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00"


def test_spans_over_grpc_with_the_callers_context_and_no_input(start, static) -> None:
    with grpc_collector() as collected:
        server = start(
            "-m", static, "--otlp-endpoint", collected.url, "--otlp-service-name", "rooms", "--tei-metrics"
        )
        began = time.time_ns()
        asked = {"traceparent": CALLER, "tracestate": "vendor=1", "x-request-id": "my-id"}
        body = {"model": "asked/for", "encoding_format": "base64"}
        assert server.post([SECRET], **body, headers=asked).status_code == 200
        assert server.post([SECRET], headers={"traceparent": NOT_SAMPLED}).status_code == 200
        assert server.post([SECRET], headers={"traceparent": "rubbish"}).status_code == 200
        assert server.post([SECRET], dimensions=999).status_code == 400
        assert server.get(f"/readyz?secret={SECRET}").status_code == 200
        long = "m" * 200_000  # collectors refuse batches of some megabytes
        assert server.post([SECRET], route="/" + "p" * 50_000, model=long).status_code == 404
        assert server.post([SECRET], route="/embeddings", model=long).status_code == 200
        tei = server.get("/metrics").text
        ended = time.time_ns()
        assert server.stop() == 0  # what waits is sent before the end
    assert collected.resource["service.name"] == "rooms"
    assert 'te_request_success{method="single"} 4\n' in tei and "te_embed_success 4\n" in tei
    assert 'te_request_failure{err="validation"} 1\n' in tei
    first, strange, wrong = collected.roots("POST /v1/embeddings")
    assert first.trace_id.hex() == CALLER.split("-")[1] and first.parent_span_id.hex() == CALLER.split("-")[2]
    assert first.trace_state == "vendor=1" and not strange.parent_span_id
    ((nowhere,), (named,)) = collected.roots("POST"), collected.roots("POST /embeddings")
    assert len(attributes(nowhere)["url.path"]) == 1024 == len(attributes(named)["gen_ai.request.model"])
    assert len({span.trace_id for span in collected.spans}) == 5  # neither the probe nor what was not sampled
    said = attributes(first)
    assert said == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "url.path": "/v1/embeddings",
        "hilbert.request_id": "my-id",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "hilbert",
        "gen_ai.request.model": "asked/for",
        "gen_ai.response.model": "tiny/static",
        "gen_ai.request.encoding_formats": ["base64"],
        "gen_ai.embeddings.dimension.count": said["gen_ai.embeddings.dimension.count"],
        "gen_ai.usage.input_tokens": said["gen_ai.usage.input_tokens"],
    }
    assert said["gen_ai.embeddings.dimension.count"] > 0 < said["gen_ai.usage.input_tokens"]
    assert attributes(wrong)["error.type"] == "invalid_value" and not collected.children(wrong)
    assert wrong.status.code == 0  # a client's mistake is no error of the server
    for root in (first, strange):
        stages = collected.children(root)
        assert [span.name for span in stages] == ["tokenize", "queue", "inference"]
        assert began <= root.start_time_unix_nano <= stages[0].start_time_unix_nano
        assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano <= ended
        for before, after in itertools.pairwise(stages):
            assert (
                before.start_time_unix_nano <= before.end_time_unix_nano <= after.start_time_unix_nano + 1000
            )
        assert {span.trace_id for span in stages} == {root.trace_id}
    assert SECRET.encode() not in collected.raw and b"secret" not in collected.raw


def test_spans_over_http_by_the_environment_alone(start, static) -> None:
    with http_collector() as collected:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collected.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue",
            "OTEL_SERVICE_NAME": "by-environment",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        flags = ("--slow-request", "0", "--json-output", "--no-preload")
        server = start("-m", static, *flags, wait=False, **environment)
        url = wait_for_url(server)
        server.banner = url
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda i: server.post([f"text {i}"] * 200), range(12)))
        assert {reply.status_code for reply in replies} == {200}
        assert server.stop() == 0
    assert collected.resource["service.name"] == "by-environment"
    assert collected.resource["deployment.environment"] == "test" and collected.headers["x-tenant"] == "blue"
    roots = collected.roots("POST /v1/embeddings")
    assert len(roots) == 12 and all(len(collected.children(root)) in (3, 4) for root in roots)
    waited = [root for root in roots if len(collected.children(root)) == 4]
    assert waited and {collected.children(root)[0].name for root in waited} == {"load model"}
    lines = [json.loads(line) for line in server.errors]
    assert sum("model_load_seconds" in line for line in lines) == len(waited)
    ids = {line["trace_id"]: line["request_id"] for line in lines if "trace_id" in line}
    assert ids == {root.trace_id.hex(): attributes(root)["hilbert.request_id"] for root in roots}
    assert {reply.headers["x-request-id"] for reply in replies} == set(ids.values())


def wait_for_url(server) -> str:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        for line in list(server.errors):
            if "url" in (said := json.loads(line)):
                return said["url"]
        time.sleep(0.01)
    raise AssertionError("".join(server.errors))


@pytest.mark.parametrize(
    ("flag", "environ", "is_http"),
    [
        ("", {}, None),
        ("http://c:4317", {}, False),
        ("http://c:4318", {}, True),
        ("c:4317", {}, False),
        ("https://c/otlp/v1/traces", {}, True),
        ("http://c:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ("http://c:4318", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, False),
        ("http://c:4317", {"OTEL_SDK_DISABLED": "true"}, None),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_who_wants_traces_and_over_what(flag: str, environ: dict[str, str], is_http: bool | None) -> None:
    found = TraceSettings.of(flag, "", environ)
    assert (None if found is None else found.is_http) is is_http


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:abc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
    ],
)
def test_a_broken_environment_ends_no_server_that_did_not_ask(name: str, value: str, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "hilbert"):  # whatever another test has made of it
        assert _prepare(load(["-m", "a/b"], {}, "serve")[0]) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but traces cannot be sent" in caplog.text
    flag = value if "ENDPOINT" in name else "http://127.0.0.1:1"
    with pytest.raises(InvalidInput, match="traces cannot be sent"):
        _prepare(load(["-m", "a/b", "--otlp-endpoint", flag], {}, "serve")[0])


def test_long_attributes_are_the_operators_choice(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "7")
    tracer = Tracer(TraceSettings("http://127.0.0.1:1", "", False))
    assert tracer._provider._span_limits.max_span_attribute_length == 7
    tracer.close()


def test_a_collector_that_takes_its_time_keeps_no_server_from_ending(monkeypatch) -> None:
    monkeypatch.setattr(traces, "_FLUSH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer(TraceSettings(f"http://127.0.0.1:{silent.getsockname()[1]}", "", True))
        tracer.record(RequestTrace("GET /", "", "", 0.0, 1.0, {}, (), False))
        start = time.monotonic()
        tracer.close()
        assert 0.1 < time.monotonic() - start < 5
