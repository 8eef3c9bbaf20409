"""Keys, limits and usage over HTTP, on a real socket and a fake runtime."""

from __future__ import annotations

import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hilbert.api import ApiSettings

EMBED = "/v1/embeddings"
BODY = {"input": "one more guest"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "api_keys.txt"
    path.write_text("tok_alice # alice <alice@example.com>\n")
    return path


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("is_busy", [False, True], ids=["quiet", "busy"])
def test_a_thousand_edits_each_seen_by_the_next_request(serve, keys_file: Path, is_busy: bool) -> None:
    server = serve(settings=ApiSettings(keys_file=str(keys_file)))
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tok_%05d\r\n\r\n"
    is_over = threading.Event()

    def status(connection: socket.socket, number: int) -> bytes:
        connection.sendall(request % number)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head.split(b" ")[1]

    def ask_without_end() -> None:
        """A crowd, for which the server looks at the file all the time."""
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            while not is_over.is_set():
                assert status(connection, 99_999) == b"401"

    crowd = [threading.Thread(target=ask_without_end) for _ in range(3 if is_busy else 0)]
    for thread in crowd:
        thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            for number in range(1000):
                text = f"tok_{number:05} # a\n"  # always the same size
                if number % 2:
                    keys_file.write_text(text)
                else:
                    new = keys_file.with_name("new")
                    new.write_text(text)
                    os.replace(new, keys_file)
                assert status(connection, number) == b"200", number
                if number % 50 == 0:
                    assert status(connection, number - 1) == b"401"
    finally:
        is_over.set()
        for thread in crowd:
            thread.join()


def test_both_kinds_of_key_count_and_a_missing_file_denies(serve, tmp_path: Path) -> None:
    path = tmp_path / "later.txt"
    server = serve(settings=ApiSettings(api_key="tok_single", keys_file=str(path)))
    assert server.post(EMBED, BODY, headers=bearer("tok_late")).status_code == 401
    assert server.post(EMBED, BODY, headers=bearer("tok_single")).status_code == 200
    path.write_text("tok_late # late\n")
    assert server.post(EMBED, BODY, headers={"x-api-key": "tok_late"}).status_code == 200
    assert server.get("/healthz").status_code == 200


def test_every_verdict_is_one_line_without_a_token(
    serve, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(
        settings=ApiSettings(
            keys_file=str(keys_file), trusted_proxies="127.0.0.1", limits_per_key="rate=0.001"
        )
    )
    with caplog.at_level(logging.INFO, "hilbert.access"):
        forwarded = {"x-forwarded-for": "6.6.6.6, 203.0.113.9"}
        asked = [
            server.post(EMBED, BODY, headers=bearer("tok_alice") | forwarded),
            server.post(EMBED + "?key=tok_alice", BODY, headers=bearer("tok_alice")),
            server.post(EMBED, BODY, headers=bearer("tok_unknown")),
            server.get("/v1/models/%0Afake%1b"),
        ]
    lines = [(r.levelname, r.message) for r in caplog.records if r.name == "hilbert.access"]
    alice = "[alice <alice@example.com>]"
    assert [reply.status_code for reply in asked] == [200, 429, 401, 401]
    assert lines == [
        ("INFO", f"ok 203.0.113.9 {alice} POST /v1/embeddings"),
        ("WARNING", f"429 deny 127.0.0.1 {alice} POST /v1/embeddings"),
        ("WARNING", "401 deny 127.0.0.1 [-] POST /v1/embeddings"),
        ("WARNING", "401 deny 127.0.0.1 [-] GET '/v1/models/\\nfake\\x1b'"),
    ]
    assert "tok_" not in caplog.text


def test_usage_by_label_in_metrics(serve, keys_file: Path) -> None:
    keys_file.write_text(
        "tok_1 # alice <alice@example.com>\ntok_2 # bob\ntok_3 # alice <other@example.com>\n"
    )
    server = serve(settings=ApiSettings(keys_file=str(keys_file)))
    used = {"alice": 0, "bob": 0}
    for token, label in (("tok_1", "alice"), ("tok_2", "bob"), ("tok_3", "alice")):
        used[label] += server.post(EMBED, BODY, headers=bearer(token)).json()["usage"]["total_tokens"]
    server.post(EMBED, {"input": []}, headers=bearer("tok_2"))  # a request, but no tokens
    text = server.get("/metrics").text
    assert f'hilbert_key_tokens_total{{key="alice"}} {float(used["alice"])}' in text
    assert f'hilbert_key_tokens_total{{key="bob"}} {float(used["bob"])}' in text
    assert 'hilbert_key_requests_total{key="bob"} 2.0' in text
    assert "example.com" not in text  # metrics need no key


def test_every_route_that_computes_counts_its_tokens(serve, keys_file: Path) -> None:
    server = serve(settings=ApiSettings(keys_file=str(keys_file)))
    paths = server.get("/openapi.json").json()["paths"]
    seen, used = 0, 0.0
    for path, operations in paths.items():
        body = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if body is None or path.startswith("/admin/") or path.endswith(("tokenize", "show")):
            continue
        reply = server.post(
            path.replace("{id}", server.model.name), body["example"], headers=bearer("tok_alice")
        )
        if reply.status_code != 200:
            assert "does not support" in reply.text
            continue
        seen += 1
        [line] = [
            x for x in server.get("/metrics").text.splitlines() if x.startswith("hilbert_key_tokens_total")
        ]
        before, used = used, float(line.rpartition(" ")[2])
        assert used > before, path
    assert seen >= 6


def test_a_key_for_some_models_only(serve, keys_file: Path) -> None:
    keys_file.write_text("tok_1 models=small,other # x\ntok_2 # y\n")
    server = serve("small", "large", settings=ApiSettings(keys_file=str(keys_file)))

    def ask(path: str, body: dict[str, object], token: str = "tok_1") -> int:
        return server.post(path, body, headers=bearer(token)).status_code

    assert ask(EMBED, BODY | {"model": "small"}) == 200
    seen = 0
    for path, operations in server.get("/openapi.json").json()["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" in content and not path.startswith(("/admin/", "/api/show")):
            body = content["application/json"]["example"] | {"model": "large"}
            reply = server.post(path.replace("{id}", "large"), body, headers=bearer("tok_1"))
            assert reply.status_code == 403, path
            assert ask(path.replace("{id}", "large"), body, "tok_2") in (200, 400, 424)
            seen += 1
    assert seen > 10
    alone = serve("large", settings=ApiSettings(keys_file=str(keys_file)), max_concurrent_requests=1)
    alone.model.admission.admit(1, 0.0)  # that it is full is not this key's to know
    assert alone.post(EMBED, BODY, headers=bearer("tok_1")).status_code == 403
    assert alone.post(EMBED, BODY, headers=bearer("tok_2")).status_code == 429


def test_seed_004_over_http(serve) -> None:
    """50 at once, as there; of 80 requests a second only 2, as this client is slow."""
    server = serve(settings=ApiSettings(limits_per_key="rate=2 burst=50"))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: server.get("/v1/models"), range(70)))
    refused = [reply for reply in replies if reply.status_code == 429]
    assert 0 < len(refused) <= 20
    for reply in refused:
        assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(reply.headers["retry-after"]) >= 1 and int(reply.headers["retry-after-ms"]) <= 1000
        assert reply.headers["x-ratelimit-limit-requests"] == "50"
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert server.get("/health").status_code == 200  # what is open has no limit


def test_a_key_with_limits_of_its_own_and_all_together(serve, keys_file: Path) -> None:
    keys_file.write_text("tok_1 rate=0.001 burst=2 # small\ntok_2 # big\n")
    server = serve(settings=ApiSettings(keys_file=str(keys_file), limits_overall="rate=0.001 burst=4"))
    statuses = [server.post(EMBED, BODY, headers=bearer("tok_1")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    statuses = [server.post(EMBED, BODY, headers=bearer("tok_2")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_requests_in_work(serve) -> None:
    server = serve(settings=ApiSettings(limits_per_key="concurrent=1"))
    server.runtime.hold()
    first: list[int] = []
    thread = threading.Thread(target=lambda: first.append(server.post(EMBED, BODY).status_code))
    thread.start()
    server.runtime.wait_for_run()
    second = server.post(EMBED, BODY)
    assert second.status_code == 429 and "1 requests in work" in second.text
    server.runtime.release()
    thread.join()
    assert first == [200] and server.post(EMBED, BODY).status_code == 200


def test_cors_for_some_origins(serve) -> None:
    server = serve(settings=ApiSettings(cors_origins="https://a.example, https://b.example"))
    for origin, allowed in (("https://b.example", "https://b.example"), ("https://c.example", None)):
        reply = server.get("/v1/models", headers={"origin": origin})
        assert reply.headers.get("access-control-allow-origin") == allowed


def test_open_by_default(server) -> None:
    reply = server.post(EMBED, BODY, headers=bearer("anything"))
    assert reply.status_code == 200
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
