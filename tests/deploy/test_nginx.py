"""deploy/nginx: three servers behind one address, and the sidecar asked about every request."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from cli_house import Server
from nginx_house import NGINX, Stack, start_sidecar, start_stack

from hilbert.access import edit
from hilbert.testing.models import tiny_model

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)"
)

NAMES = {"BGE_M3": "bge-m3", "BGE_RERANKER": "bge-reranker-v2-m3", "E5_LARGE": "multilingual-e5-large"}
PREFIXES = {"/bge": "bge-m3", "/reranker": "bge-reranker-v2-m3", "": "multilingual-e5-large"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    servers = {}
    for seed, (place, name) in enumerate(NAMES.items()):
        path = str(tiny_model("static", folder / name, seed=seed))
        flags = ("serve", "-m", path, "--served-model-name", name, "--port", "0", "--in-process")
        servers[place] = Server(flags, {"HILBERT_TRUSTED_PROXIES": "private"}, wait=True)
    it = start_stack(folder, servers)
    yield it
    it.stop()


def test_prefixes_and_what_they_carry(stack: Stack) -> None:
    vectors = set()
    for prefix, name in PREFIXES.items():
        reply = stack.post(f"{prefix}/v1/embeddings?x=1", {"input": "hej fra Århus", "model": "whatever"})
        assert reply.status_code == 200 and reply.json()["model"] == name
        vectors.add(str(reply.json()["data"][0]["embedding"]))
        assert [m["id"] for m in stack.get(f"{prefix}/v1/models").json()["data"]] == [name]
        assert "paths" in stack.get(f"{prefix}/openapi.json").json()
    assert len(vectors) == 3
    body = {"query": "room", "documents": ["a room", "no", "rooms and rooms"], "top_n": 2}
    ranked = stack.post("/reranker/rerank", body).json()["results"]
    scores = [entry["relevance_score"] for entry in ranked]
    assert len(ranked) == 2 and scores == sorted(scores, reverse=True)


def test_who_is_not_let_in_reaches_no_model(stack: Stack) -> None:
    def reached() -> float:
        return sum(server.metric("hilbert_requests_total") for server in stack.servers.values())

    before = reached()
    for prefix in PREFIXES:
        for token in (None, "tok_mallory", "tok_alic"):
            reply = stack.post(f"{prefix}/v1/embeddings", {"input": "a"}, token)
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
    assert stack.get("/_authz").status_code == 404  # not for the world
    assert stack.get("/healthz", None).status_code == 200
    assert reached() == before
    assert stack.post("/v1/embeddings", {"input": "a"}, None, **{"x-api-key": "tok_alice"}).status_code == 200


def test_keys_added_and_revoked_live(stack: Stack) -> None:
    for _ in range(3):
        token = edit.add(stack.keys, "guest")
        assert stack.post("/bge/v1/embeddings", {"input": "a"}, token).status_code == 200
        edit.revoke(stack.keys, "guest")
        assert stack.post("/bge/v1/embeddings", {"input": "a"}, token).status_code == 401
    hidden = stack.keys.rename(stack.keys.with_name("away"))
    assert stack.get("/v1/models").status_code == 401
    hidden.rename(stack.keys)
    assert stack.get("/v1/models").status_code == 200


@pytest.mark.slow
def test_large_bodies(stack: Stack) -> None:
    words = "one more guest " * 1000  # 15 kB
    reply = stack.post("/v1/embeddings", {"input": [words] * 1500})  # 22 MB
    assert reply.status_code == 200 and len(reply.json()["data"]) == 1500
    # Above its own limit Hilbert answers, above nginx's nginx; both in JSON.
    for megabytes, limit in ((40, "--max-body-bytes"), (70, "64 MB")):
        reply = stack.post("/v1/embeddings", {"input": "x" * (megabytes << 20)})
        assert reply.status_code == 413 and limit in reply.json()["error"]["message"]


def test_slow_clients_are_cut_off_and_hold_up_nobody(stack: Stack) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok_alice\r\n"
    body = json.dumps({"input": "a"}).encode()
    stalled = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", stack.port), timeout=20)
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        stalled.append(connection)
    began = time.monotonic()
    assert stack.post("/v1/embeddings", {"input": "a"}).status_code == 200
    assert time.monotonic() - began < 5
    for connection in stalled:
        assert connection.recv(65536).startswith((b"HTTP/1.1 408", b""))
        connection.close()
    with socket.create_connection(("127.0.0.1", stack.port), timeout=20) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for byte in body:  # slow, but never still
            time.sleep(0.05)
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_sidecars_log_and_what_happens_without_it(stack: Stack) -> None:
    stack.post("/bge/v1/embeddings?secret=1", {"input": "a"}, **{"x-forwarded-for": "6.6.6.6"})
    stack.post("/reranker/rerank", {"query": "a", "documents": ["b"]}, "tok_mallory")
    log = stack.stop_sidecar()
    assert (
        "204 ok 6.6.6.6 [alice <alice@example.com>] POST /bge/v1/embeddings\n" in log
    )  # loopback is trusted
    assert "401 deny 127.0.0.1 [-] POST /reranker/rerank\n" in log
    assert "tok_" not in log and "secret" not in log
    reply = stack.get("/v1/models")
    assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
    assert reply.json()["error"]["code"] == "authz_unavailable"
    stack.sidecar = start_sidecar(stack.keys, stack.sidecar_port)
    assert stack.get("/v1/models").status_code == 200


def test_one_server_killed_costs_only_its_prefix(stack: Stack) -> None:
    failures: list[int] = []
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            for prefix in ("", "/reranker"):
                status = stack.post(f"{prefix}/v1/embeddings", {"input": "a"}).status_code
                failures.extend([status] if status != 200 else [])

    others = threading.Thread(target=go_on)
    others.start()
    server = stack.servers["BGE_M3"]
    server.process.kill()
    server.wait()
    replies = [stack.post("/bge/v1/embeddings", {"input": "a"}) for _ in range(5)]
    done.set()
    others.join()
    assert [reply.status_code for reply in replies] == [502] * 5
    assert (
        replies[0].json()["error"]["code"] == "model_unavailable" and replies[0].headers["retry-after"] == "1"
    )
    assert failures == []


def test_the_template_as_it_is_for_docker(tmp_path) -> None:
    """The configuration passes nginx's own check with Docker's names, none of which exist here."""
    names = {"GATEWAY_PORT": "8080", "RESOLVER": "127.0.0.11", "AUTHZ": "authz:8000", "BGE_M3": "bge-m3:7997"}
    names |= {"BGE_RERANKER": "bge-reranker:7997", "E5_LARGE": "e5-large:7997"}
    import string

    from nginx_house import MAIN, TEMPLATE

    (tmp_path / "default.conf").write_text(string.Template(TEMPLATE.read_text()).safe_substitute(names))
    (tmp_path / "nginx.conf").write_text(string.Template(MAIN).safe_substitute(folder=tmp_path, user=""))
    checked = subprocess.run(
        [str(NGINX), "-t", "-e", os.devnull, "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
