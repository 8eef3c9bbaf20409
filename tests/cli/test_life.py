"""How a server comes up and goes down."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from cli_house import NO_TLS, hilbert, is_alive

from hilbert.testing.models import tiny_model

LONG = ["There is always room for one more guest, and for those who come with them. " * 8] * 128


def test_the_default_model_and_the_curl_line(start, cache) -> None:
    server = start("--cache-dir", cache)
    pasted = subprocess.run(["sh", "-c", server.curl], capture_output=True, text=True, check=False)
    assert pasted.stdout.count(",") > 384
    assert server.get("/readyz").json()["models"] == {"sentence-transformers/all-MiniLM-L6-v2": "ready"}
    (worker,) = server.children
    assert server.stop() == 0
    assert not is_alive(worker)


def test_sigterm_finishes_what_is_in_flight(start, cache) -> None:
    server = start("--cache-dir", cache)
    (worker,) = server.children
    with ThreadPoolExecutor(1) as pool, httpx2.Client(base_url=server.url, timeout=60) as client:
        slow = pool.submit(server.post, LONG)
        while not server.metric("hilbert_queue_requests"):
            pass
        server.process.send_signal(signal.SIGTERM)
        while client.get("/readyz").status_code == 200:
            pass
        assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 503
        assert server.process.poll() is None
        answer = slow.result()
    assert answer.status_code == 200 and len(answer.json()["data"]) == len(LONG)
    assert server.wait() == 0
    assert not is_alive(worker)


def test_a_second_signal_ends_at_once(start, cache) -> None:
    server = start("--cache-dir", cache)
    (worker,) = server.children
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.post, LONG * 16)
        while not server.metric("hilbert_queue_requests"):
            pass
        server.process.send_signal(signal.SIGINT)
        while server.get("/readyz").status_code == 200:
            pass
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 8
        assert slow.result().status_code == 503
    assert not is_alive(worker)


@pytest.mark.slow
def test_sigterm_while_a_model_is_traced(start, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = start("-m", model, "--cache-dir", str(tmp_path / "cache"), "--port", port, wait=False)
    deadline = time.monotonic() + 30
    while len(server.children) < 2 and time.monotonic() < deadline:  # the worker, and what traces for it
        time.sleep(0.02)
    children = server.children
    assert len(children) >= 2
    health = [httpx2.get(f"http://127.0.0.1:{port}{path}", verify=NO_TLS) for path in ("/healthz", "/readyz")]
    assert [reply.status_code for reply in health] == [200, 503]  # alive, and not ready
    assert health[1].headers["retry-after"] == "1" and health[1].json()["status"] == "not ready"
    assert server.stop() == 0
    assert [pid for pid in children if is_alive(pid)] == []


def test_the_worker_dies_with_a_killed_server(start, static) -> None:
    server = start("-m", static)
    (worker,) = server.children
    server.stop(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)


def test_what_traces_dies_with_a_killed_server(start, tmp_path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    server = start("-m", model, "--cache-dir", str(tmp_path / "cache"), wait=False)
    deadline = time.monotonic() + 30
    while len(server.children) < 2:  # the worker, and what traces for it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)  # it has said with whom it dies, and is importing torch
    children = server.children
    assert len(children) >= 2
    server.stop(signal.SIGKILL)
    deadline = time.monotonic() + 2
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in children if is_alive(pid)] == []


def test_a_model_that_is_not_there(tmp_path) -> None:
    ended = hilbert("serve", "-m", str(tmp_path / "nothing"), "--port", "0")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1 and "nothing" in ended.stderr


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (("serve", "--port", "x"), 2, "hilbert serve: --port 'x' cannot be used: give a whole number"),
        (("v2", "--batch-size", "x"), 2, "hilbert v2: --batch-size 'x'"),
        (("v1", "--batch-size", "x"), 2, "hilbert v2: --batch-size 'x'"),
        (
            ("v2", *("--model-id", "a", "--model-id", "b"), *("--dtype", "auto") * 3),
            1,
            "Expected length 2 but",
        ),
        (("v2", "--url-prefix", "/x/"), 2, "Path must start with '/' and must not end with '/'"),
    ],
)
def test_exit_codes(argv, status, words) -> None:
    ended = hilbert(*argv)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert words in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_v2_serves_and_warns_once(start, static) -> None:
    server = start("--model-id", static, "--no-bettertransformer", "--port", "0", verb="v2")
    assert server.post(["a"], "/embeddings").status_code == 200
    assert server.stop() == 0
    assert [line for line in server.errors if "bettertransformer" in line] == [
        "hilbert v2: --no-bettertransformer has no meaning here: batches are packed, "
        "which does the same and more\n"
    ]


def test_no_torch_from_the_cache(start, cache) -> None:
    hilbert("serve", "--preload-only", "--cache-dir", cache)
    server = start("--cache-dir", cache)
    assert server.post(["a"]).status_code == 200
    for pid in (server.process.pid, *server.children):
        with open(f"/proc/{pid}/maps") as maps:
            assert "libtorch" not in maps.read()
