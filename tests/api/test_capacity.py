"""Full, late, gone: what happens when the server cannot or need not answer."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest

from hilbert.api import create_app
from hilbert.api.call import Call
from hilbert.core import EmbedResult
from hilbert.engine.base import Health
from hilbert.testing.runtime import FakeRuntime


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it never came to be"
        time.sleep(0.01)


def test_a_full_server_says_when_to_come_back_before_it_tokenizes(serve, monkeypatch):
    runtime = FakeRuntime(384)
    server = serve(runtime=runtime, max_concurrent_requests=2)
    runtime.hold()
    try:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(server.post, "/v1/embeddings", {"input": "a"}) for _ in range(2)]
            wait_until(lambda: server.model.admission.num_requests == 2)
            tokenized = []
            encode = server.model.processor.encode
            monkeypatch.setattr(
                server.model.processor, "encode", lambda *a: tokenized.append(a) or encode(*a)
            )
            for route in ("/v1/embeddings", "/embeddings"):
                refused = server.post(route, {"input": "a"})
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert (
                    0 < int(refused.headers["retry-after-ms"]) <= 1000 * int(refused.headers["retry-after"])
                )
            assert not tokenized
            assert refused.json()["error"]["code"] == 429  # Infinity's shape
            error = server.post("/v1/embeddings", {"input": "a"}).json()["error"]
            assert error["code"] == "overloaded" and "--max-concurrent-requests" in error["message"]
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0)
            with client, pytest.raises(openai.RateLimitError):
                client.embeddings.create(model="x", input="a")
            monkeypatch.undo()
            runtime.release()
            assert [w.result().status_code for w in waiting] == [200, 200]
    finally:
        runtime.release()
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200
    assert server.model.metrics.rejections == {"overloaded": 4}


ROUTES_TO_A_MODEL = (
    "/v1/embeddings", "/embeddings", "/v1/rerank", "/rerank", "/v1/classify", "/v1/embed", "/v2/embed",
    "/v1/encode/x", "/v1/score/x", "/score", "/api/embed", "/embed", "/embed_all", "/similarity", "/predict",
    "/v1/contextualizedembeddings",
)  # fmt: skip


def test_a_full_server_reads_no_body_in_vain(serve, caplog):
    """Nobody looks whether what is refused in any case is JSON; each refusal is counted and logged."""
    runtime = FakeRuntime(384)
    server = serve(runtime=runtime, max_concurrent_requests=1)
    runtime.hold()
    with caplog.at_level(logging.INFO, "hilbert.requests"), ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(server.post, "/v1/embeddings", {"input": "a"})
            wait_until(lambda: server.model.admission.num_requests == 1)
            for number, route in enumerate(ROUTES_TO_A_MODEL):
                refused = server.post(route, content=b"{", headers={"x-request-id": f"number-{number}"})
                assert refused.status_code in (429, 503), (route, refused.text)  # 503: so says SIE
                assert refused.headers["retry-after"] and "--max-concurrent-requests" in refused.text
            assert server.post("/v1/tokenize", {"text": "a", "model": "x"}).status_code == 200
        finally:
            runtime.release()
        assert waiting.result().status_code == 200
        assert server.post("/v1/embeddings", content=b"{").status_code == 400
        num_refused = len(ROUTES_TO_A_MODEL)
        wait_until(lambda: len(caplog.records) == num_refused + 1)
    assert server.model.metrics.rejections == {"overloaded": num_refused}
    assert server.model.metrics.requests["rejected"] == num_refused
    assert [r.fields["request_id"] for r in caplog.records[:-1]] == [
        f"number-{i}" for i in range(num_refused)
    ]
    assert all(" model=" in r.message and "code=overloaded" in r.message for r in caplog.records[:-1])


def test_a_request_that_fails_leaves_no_garbage(serve):
    """What only the collector finds it looks for while others wait: 34 us for each refusal once."""
    server = serve(max_concurrent_requests=1)
    server.model.admission.admit(1, 0.0)
    app, body = create_app(server.registry), b'{"input": "a"}'
    statuses = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        await app(scope, receive, send)

    async def ask_often() -> int:
        await ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                await ask()
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(ask_often()) < 100
    assert set(statuses) == {429, None}


def test_a_slow_request_leaves_no_garbage_either() -> None:
    """After a tenth of a second somebody listens for its client, and stops when it is answered."""

    async def slow() -> None:
        async def silence() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def work() -> EmbedResult:
            await asyncio.sleep(0.15)
            return EmbedResult(np.zeros((1, 2), np.float32), 1)

        await Call("POST", "/", {}, silence).unless_gone(work())

    async def count() -> int:
        await slow()
        gc.collect()
        gc.disable()
        try:
            await asyncio.gather(*[slow() for _ in range(50)])
            await asyncio.sleep(0)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(count()) < 50


def test_a_full_model_does_not_refuse_for_others(serve):
    runtime = FakeRuntime(384)
    server = serve("full", "free", runtime=runtime, max_concurrent_requests=1)
    full, _ = server.registry.list()
    full.admission.admit(1, 0.0)
    assert server.post("/v1/embeddings", {"input": "a", "model": "full"}).status_code == 429
    assert server.post("/v1/embeddings", {"input": "a", "model": "free"}).status_code == 200
    assert server.post("/v1/embeddings", content=b"{").status_code == 400


def test_queued_tokens_are_limited_and_a_lone_large_request_is_not(serve):
    runtime = FakeRuntime(384)
    server = serve(runtime=runtime, max_queued_tokens=500)
    assert server.post("/v1/embeddings", {"input": ["word " * 300] * 10}).status_code == 200
    runtime.hold()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.post, "/v1/embeddings", {"input": "word " * 400})
            wait_until(lambda: server.model.admission.num_requests == 1)
            refused = server.post("/v1/embeddings", {"input": "word " * 1000})
            assert refused.status_code == 429 and "--max-queued-tokens" in refused.text
            runtime.release()
            assert waiting.result().status_code == 200
    finally:
        runtime.release()


def test_a_late_request_is_answered_and_its_work_dropped(serve):
    runtime = FakeRuntime(384)
    server = serve(runtime=runtime, request_timeout_seconds=0.3)
    runtime.hold()
    try:
        start = time.monotonic()
        late = server.post("/v1/embeddings", {"input": ["word " * 300] * 64})
        assert 0.25 < time.monotonic() - start < 3
        assert late.status_code == 503 and late.json()["error"]["code"] == "timeout"
        assert "0.3" in late.json()["error"]["message"] and late.headers["retry-after"]
        (engine,) = server.engines.values()
        wait_until(lambda: engine.num_requests == 0 and engine.num_queued_tokens == 0)
        assert server.model.admission.num_requests == 0
    finally:
        runtime.release()
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200


@pytest.mark.parametrize("after", [0.0, 0.3])
def test_a_client_that_leaves_takes_its_work_along(serve, after):
    runtime = FakeRuntime(384)
    server = serve(runtime=runtime)
    (engine,) = server.engines.values()
    runtime.hold()
    try:
        body = json.dumps({"input": ["word " * 300] * 64}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: engine.num_requests == 1)
            time.sleep(after)
        wait_until(lambda: engine.num_requests == 0 and engine.num_queued_tokens == 0)
        wait_until(lambda: server.model.admission.num_requests == 0)
        assert server.model.metrics.requests["cancelled"] == 1
        assert server.model.metrics.queue_sequences == 0
    finally:
        runtime.release()
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200


def test_health_tells_the_truth(serve):
    server = serve("one", "two")
    for path in ("/health", "/readyz"):
        reply = server.get(path)
        assert reply.status_code == 200
        assert abs(reply.json()["unix"] - time.time()) < 5
        assert reply.json()["models"] == {"one": "ready", "two": "ready"}
    server.engines["two"].drain(1)
    for path in ("/health", "/readyz"):
        reply = server.get(path)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert reply.json()["models"] == {"one": "ready", "two": Health.DRAINING.value}
    assert server.get("/healthz").status_code == 200
    refused = server.post("/v1/embeddings", {"input": "a", "model": "two"})
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
    assert server.post("/v1/embeddings", {"input": "a", "model": "one"}).status_code == 200


def test_draining_turns_readiness_red(serve):
    server = serve()
    server.registry.is_draining = True
    assert server.get("/readyz").status_code == 503 and server.get("/healthz").status_code == 200


def test_a_heavy_request_does_not_stop_the_loop(serve):
    """While large texts are tokenized and large answers written, health answers quickly."""
    server = serve()
    slowest = 0.0
    done = threading.Event()

    def heavy() -> None:
        for _ in range(3):
            server.post("/v1/embeddings", {"input": ["word " * 60] * 2048})
        done.set()

    thread = threading.Thread(target=heavy)
    thread.start()
    while not done.is_set():
        start = time.monotonic()
        server.get("/healthz")
        slowest = max(slowest, time.monotonic() - start)
    thread.join()
    assert slowest < 1.0


def test_many_at_once_are_all_answered_in_their_own_words(serve):
    server = serve()

    def one(i: int) -> bool:
        alone = server.post("/v1/embeddings", {"input": f"text {i}", "encoding_format": "base64"}).json()
        return alone["data"][0]["embedding"] == wanted[i]

    body = server.post(
        "/v1/embeddings", {"input": [f"text {i}" for i in range(100)], "encoding_format": "base64"}
    )
    wanted = [item["embedding"] for item in body.json()["data"]]
    assert len(set(wanted)) == 100
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(100)))
