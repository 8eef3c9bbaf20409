"""What is kept of a request: a line where it failed or was slow, numbers, and never what it said."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hilbert.api import ApiSettings
from hilbert.errors import EngineError
from hilbert.logs import JsonFormatter
from hilbert.testing.runtime import FakeRuntime

EMBED = "/v1/embeddings"
SECRET = "attack at dawn"


def lines_of(caplog: pytest.LogCaptureFixture, num: int = 0) -> list[tuple[str, str, dict[str, Any]]]:
    """Level, message and values; a line is written after its answer, so it may be waited for."""
    give_up_at = time.monotonic() + 5
    while True:
        found = [r for r in caplog.records if r.name == "hilbert.requests"]
        if len(found) >= num or time.monotonic() > give_up_at:
            return [(r.levelname, r.message, r.fields) for r in found]  # type: ignore[attr-defined]
        time.sleep(0.01)


def samples(server: Any, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by the values of its labels, in their order by name."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    }


def test_failed_and_slow_requests_have_a_line_and_others_none(serve, caplog) -> None:
    server = serve(
        "m", settings=ApiSettings(slow_request=0.05), runtime=FakeRuntime(384, seconds_per_batch=0.1)
    )
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        slow = server.post(EMBED, {"input": SECRET}, headers={"x-request-id": "slow-one"})
        wrong = server.post(
            EMBED, {"input": SECRET, "dimensions": 999}, headers={"x-request-id": "wrong-one"}
        )
        assert (slow.status_code, wrong.status_code) == (200, 400)
        lost = server.get("/no/such%20place")
        found = lines_of(caplog, 3)
    assert [(level, fields["status"]) for level, _, fields in found] == [
        ("INFO", 200), ("INFO", 400), ("INFO", 404),
    ]  # fmt: skip
    (_, text, fields), (_, refused, why), (_, nowhere, _) = found
    assert text.startswith(f"slow request: request_id=slow-one method=POST path={EMBED} status=200 model=m ")
    assert fields["inference_seconds"] >= 0.1 <= fields["seconds"] and fields["tokens"] == 5
    assert refused.startswith("failed request: request_id=wrong-one ") and "code=invalid_value" in refused
    assert why["param"] == "dimensions" and "error" not in why
    assert "path='/no/such place'" in nowhere and lost.headers["x-request-id"] in nowhere
    assert SECRET not in caplog.text and "999" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        server.get("/" + "x" * 50_000)
        ((_, text, _),) = lines_of(caplog, 1)
    assert len(text) < 1000 and "status=404" in text
    caplog.clear()
    quick = serve("n")
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        assert quick.post(EMBED, {"input": SECRET}).status_code == 200
        assert quick.get("/readyz").status_code == 200
        assert lines_of(caplog) == []


def test_the_wait_for_a_model_is_told(serve, caplog) -> None:
    server = serve("m", settings=ApiSettings(slow_request=0.05))
    (entry,) = server.registry.list()

    class Memory:
        async def hold(self, asked: Any) -> Any:
            await asyncio.sleep(0.1)
            return server_model

    server_model, entry.served, entry.memory = entry.served, None, Memory()
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        assert server.post(EMBED, {"input": "a"}).status_code == 200
        ((_, text, fields),) = lines_of(caplog, 1)
    assert 0.09 <= fields["model_load_seconds"] <= fields["seconds"] and text.startswith("slow request: ")
    caplog.clear()
    entry.served = server_model
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        assert server.post(EMBED, {"input": "a", "dimensions": 0}).status_code == 400
        ((_, text, _),) = lines_of(caplog, 1)
    assert "model_load_seconds" not in text


def test_no_answer_and_no_log_tells_an_input_or_a_key(serve, caplog, monkeypatch) -> None:
    server = serve(settings=ApiSettings(api_key="tok_very_secret", slow_request=0.0))
    key = {"authorization": "Bearer tok_very_secret"}

    def explode(*_: object) -> None:
        raise RuntimeError(f"cannot tokenize {SECRET!r}")

    with caplog.at_level(logging.DEBUG, "hilbert"):
        bodies: list[Any] = [
            {"input": SECRET}, {"input": [SECRET, 1]}, {"input": "a", "encoding_format": SECRET},
            {"input": {SECRET: 1}}, {"model": SECRET, "input": [[-5]]},
        ]  # fmt: skip
        for body in bodies:
            server.post(EMBED, body, headers=key)
        server.post(EMBED + f"?q={SECRET}", {"input": "a"}, headers=key)
        server.post(EMBED, {"input": "a"}, headers={"authorization": "Bearer tok_wrong_one"})
        monkeypatch.setattr(server.model.processor, "encode", explode)
        broken = server.post(EMBED, {"input": SECRET}, headers=key)
        assert broken.status_code == 500 and SECRET not in broken.text
        found = lines_of(caplog, 8)
    formatter = logging.Formatter()
    log = "\n".join(formatter.format(r) for r in caplog.records if r.name.startswith("hilbert"))
    assert len(found) == 8 and found[-1][0] == "WARNING" and "RuntimeError" in log
    assert "dawn" not in log and "tok_" not in log


def test_json_lines(caplog) -> None:
    logger = logging.getLogger("hilbert.requests")
    with caplog.at_level(logging.INFO, "hilbert.requests"):
        logger.info('said "%s"', "x\ny", extra={"fields": {"status": 500, "seconds": 0.25}})
        try:
            raise EngineError("broken")
        except EngineError:
            logger.exception("oh")
    said, broke = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("timestamp"))
    assert said.pop("message") == 'said "x\ny"'
    assert said == {"level": "INFO", "logger": "hilbert.requests", "status": 500, "seconds": 0.25}
    assert broke["level"] == "ERROR" and broke["exception"].endswith("EngineError: broken")


def test_outcomes_and_reasons(serve) -> None:
    runtime = FakeRuntime(384)
    server = serve("m", runtime=runtime, request_timeout_seconds=0.1)
    runtime.hold()
    try:
        assert server.post(EMBED, {"input": "a"}).status_code == 503
        body = json.dumps({"input": "a b"}).encode()
        head = f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)  # and leaves, a byte short
    finally:
        runtime.release()
    limited = serve("l", settings=ApiSettings(limits_per_key="rate=0.001"))
    assert [limited.post(EMBED, {"input": "a"}).status_code for _ in range(2)] == [200, 429]
    give_up_at = time.monotonic() + 5
    while True:
        counts = samples(server, "hilbert_requests_total")
        if len(counts) == 2 or time.monotonic() > give_up_at:
            break
    assert counts == {("m", "rejected", EMBED): 1, ("", "cancelled", EMBED): 1}
    assert samples(server, "hilbert_rejections_total") == {("m", "timeout"): 1}
    assert samples(limited, "hilbert_rejections_total") == {("", "rate_limit_exceeded"): 1}
    assert samples(limited, "hilbert_requests_total") == {("l", "ok", EMBED): 1, ("", "rejected", EMBED): 1}


def test_padding_backlog_and_failures_are_seen(serve) -> None:
    runtime = FakeRuntime(384, padding_tokens=9, seconds_per_batch=0.02)
    server = serve("m", runtime=runtime)
    assert server.post(EMBED, {"input": "a"}).status_code == 200  # 3 tokens
    assert samples(server, "hilbert_padding_tokens_total") == {("m",): 9}
    assert samples(server, "hilbert_batch_padding_ratio_sum") == {("m",): 0.75}
    assert samples(server, "hilbert_backlog_seconds") == {("m",): 0}
    admission = server.model.admission
    admission.admit(10 * admission.num_queued_tokens + 1000, time.monotonic())
    rate = admission.tokens_per_second
    assert rate and samples(server, "hilbert_backlog_seconds") == {("m",): pytest.approx(1000 / rate)}
    assert samples(server, "hilbert_ready") == {(): 1}
    server.registry.is_draining = True
    assert samples(server, "hilbert_ready") == {(): 0}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_promtool_finds_nothing_wrong(serve, tmp_path: Path) -> None:
    server = serve("one", "two")
    for body in ({"input": ["a", "b"], "model": "one"}, {"input": "a", "model": "two", "dimensions": 999}):
        server.post(EMBED, body)
    server.get("/nowhere")
    for text in (server.get("/metrics").text, server.get("/metrics").text + "# TYPE x gauge\nx 1\n"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        is_ours = "# TYPE x" not in text
        assert (checked.returncode == 0) is is_ours, checked.stderr
        assert (checked.stdout + checked.stderr == "") is is_ours
