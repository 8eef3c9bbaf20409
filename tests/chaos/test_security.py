"""A server with a key, and callers who want what is not theirs: paths, names, headers, log lines, sizes.

Which URLs are fetched is tests/processors/test_fetch.py; keys and limits are tests/access and
tests/api/test_gate.py; pickles and code of repositories are tests/programs/test_load.py and tests/hub.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chaos_house import DANGEROUS, address_of, read_answer, request_bytes, serving
from cli_house import Server
from dangerous import BROKEN
from prometheus_client.parser import text_string_to_metric_families

KEY = "sk-hotel-1729"
# Megabytes of nonsense take a second or two; the rest is for machines that do other things as well.
PATIENCE_SECONDS = 90.0
NAME = 'rooms "\\ }\u2028é'  # of the model, as an operator may have it


@pytest.fixture(scope="module")
def server(static: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f'{KEY} # a "label\\ x: 1\n')
    flags = ("-m", static, "--served-model-name", NAME, "--keys-file", str(keys))
    with serving(*flags, "--max-body-bytes", "4000000", "--url-prefix", "/hotel") as it:
        yield it


def raw(server: Server, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with socket.create_connection(address_of(server), timeout=PATIENCE_SECONDS) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        return read_answer(connection)


TRICKS = [
    "/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd",
    "/v1/models/%2e%2e/%2e%2e/etc/passwd", "/..%2f/v1/models", "//v1/models", "/./v1/models",
    "/healthz/../v1/models", "/docs/../v1/embeddings", "/metrics/..%2fv1/models", "/hotel/../v1/models",
    "/hotel//v1/models", "/v1%2fmodels", "/v1/models%00", "/v1/models%0d%0ax-evil:%201", "/V1/MODELS",
    "/v1/models;a=b", "/admin/../v1/models", "/healthz%2f..%2fadmin%2fstatus",
    "/hotel/docs/../../admin/status", "/openapi.json/../admin/status", "/static/../docs.html",
    "/docs/../../../../etc/passwd", "/%252e%252e/etc/passwd", "http://x/v1/models",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_round_the_key_or_to_a_file(server: Server, path: str) -> None:
    for method in ("GET", "POST", "HEAD"):
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        status, headers, body = raw(server, head.encode())
        assert status in (400, 401, 404, 405), (method, status, body[:200])
        assert b"root:" not in body and b'"data"' not in body and "x-evil" not in headers


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "\0", "a\r\nx-evil: 1", "é" * 1000]
)
def test_names_that_are_paths_are_no_models(server: Server, name: str) -> None:
    # One model answers to any name; it is told which model it was, and nothing is opened or loaded.
    reply = server.post(["a"], model=name, headers={"x-api-key": KEY})
    assert reply.status_code == 200 and reply.json()["model"] == NAME
    for verb in ("load", "unload"):
        body = request_bytes({"model": name}, f"/admin/models/{verb}", f"x-api-key: {KEY}")
        status, headers, answer = raw(server, body)
        assert status in (400, 403, 404) and "x-evil" not in headers and b"root:" not in answer


def test_nothing_of_a_client_gets_into_headers(server: Server) -> None:
    texts = {"input": ["a"], "encoding_format": "bytes"}
    lines = (
        f"x-api-key: {KEY}",
        "x-request-id: a\tb<script>",
        "origin: http://evil",
        "x-forwarded-for: 1.2.3.4",
    )
    status, headers, _ = raw(server, request_bytes(texts, "/v1/embeddings", *lines))
    assert status == 200 and re.fullmatch(r"req_[0-9a-f]{20}", headers["x-request-id"])
    assert headers["metadata"].isascii() and json.loads(headers["metadata"])["model"] == NAME
    assert "access-control-allow-origin" not in headers and "evil" not in str(headers)


def test_odd_names_and_labels_are_quoted_in_metrics(server: Server) -> None:
    server.post(["a"], headers={"x-api-key": KEY})
    families = {f.name: f for f in text_string_to_metric_families(server.get("/metrics").text)}
    assert {s.labels["key"] for s in families["hilbert_key_requests"].samples} == {'a "label\\ x: 1'}
    assert {s.labels["model"] for s in families["hilbert_requests"].samples} - {""} == {NAME}


def test_oversized_everything(server: Server) -> None:
    def ask(body: object, *headers: str, route: str = "/v1/embeddings") -> tuple[int, bytes]:
        status, _, answer = raw(server, request_bytes(body, route, f"x-api-key: {KEY}", *headers))
        assert len(answer) < 10_000, "an answer to nonsense is short"
        return status, answer

    assert ask({"input": "a"}, "x-long: " + "a" * 200_000)[0] in (0, 431)
    assert ask({"input": "a"}, *(f"x-{i}: 1" for i in range(20_000)))[0] in (0, 431)
    assert ask({"input": "a"}, route="/v1/" + "a" * 60_000)[0] == 404
    assert ask({"input": "a", "prompt_name": "é" * 500_000})[0] == 400
    assert ask({"input": "a", "encoding_format": "x" * 3_000_000})[0] == 400
    assert ask({"input": "a" * 5_000_000})[0] == 413
    assert ask({"input": ["a"] * 100_000})[0] == 400
    assert ask({"input": [[1] * 1_000_000]})[0] in (200, 400)
    assert ask({"input": [[[1]] * 10]})[0] == 400
    assert ask(b'{"input": ' + b"[" * 1_000_000)[0] == 400
    assert ask({"input": "a", "dimensions": 10**4000})[0] == 400
    assert ask({"query": "a", "documents": ["a"] * 100_000}, route="/v1/rerank")[0] == 400
    assert ask({"input": "word " * 700_000, "encoding_format": "base64"})[0] in (200, 400)


def test_keys_are_not_guessed_by_form(server: Server) -> None:
    for key in ("", KEY[:-1], KEY + " ", KEY.upper(), f"{KEY}\0", "sk-*", "' or 1=1 --", "é", "a" * 60_000):
        for line in (f"x-api-key: {key}", f"authorization: Bearer {key}x"):
            status, _, body = raw(server, request_bytes({"input": "a"}, "/v1/embeddings", line))
            assert status in (400, 401, 431) or key == KEY + " ", (key[:40], status)
            assert KEY.encode() not in body


def test_a_client_writes_no_lines_of_the_log(static: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY} # alice\n")
    forged = "%0a2026-01-01%2000:00:00,000%20INFO%20hilbert.access:%20204%20ok%20%1b[2J"
    body = {"items": [{"text": BROKEN}]}
    with serving("-m", static, "--keys-file", str(keys), program=DANGEROUS) as server:
        for key in (KEY, "wrong"):
            raw(server, request_bytes(body, f"/v1/encode/x{forged}", f"authorization: Bearer {key}"))
        assert server.stop() == 0
    log = "".join(server.errors)
    assert KEY not in log and "\x1b" not in log
    assert log.count("2026-01-01") >= 3  # two verdicts and what failed
    assert not [line for line in log.splitlines() if line.startswith("2026-01-01")]
