"""Every way to get it wrong: a clear answer in the dialect's words, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import time
from typing import Any

import httpx2
import openai
import pytest

from hilbert.api import ApiSettings, call
from hilbert.testing.runtime import FakeRuntime

ROUTES = ["/v1/embeddings", "/openai/v1/embeddings", "/embeddings"]
OPENAI_ROUTES = ROUTES[:2]


def check_openai(reply: httpx2.Response, status: int, param: str | None, *words: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    body = reply.json()
    error: dict[str, Any] = body.pop("error")
    # Where Jina's and Voyage's clients come as well, the message stands in their place, too.
    assert body == ({"detail": error["message"]} if reply.url.path.endswith("/v1/embeddings") else {})
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    for word in words:
        assert word in error["message"], error["message"]
    assert reply.headers["x-request-id"]
    return error


def check_alive(server: Any) -> None:
    assert server.post("/v1/embeddings", {"input": "still here"}).status_code == 200


def post_head(length: int | str, more: str = "") -> bytes:
    return f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n".encode()


BAD_FORMS = [
    ({}, "input", "missing"),
    ({"input": None}, "input", "missing"),
    ({"input": []}, "input", "empty list"),
    ({"input": [[]]}, "input", "input[0] is an empty list"),
    ({"input": [[1], []]}, "input", "input[1] is an empty list"),
    ({"input": 7}, "input", "list of token ids"),
    ({"input": {"type": "text"}}, "input", "input[0] is an object without"),
    ({"input": True}, "input", "bool"),
    ({"input": ["a", 1]}, "input", "input[1] is a token id"),
    ({"input": [1, "a"]}, "input", "input[0] is a token id"),
    ({"input": ["a", [1]]}, "input", "mixes"),
    ({"input": [1.5]}, "input", "float"),
    ({"input": [["a"]]}, "input", "input[0][0]"),
    ({"input": [None]}, "input", "null"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "float, base64, bytes"),
    ({"input": "a", "dimensions": "many"}, "dimensions", "str"),
    ({"input": "a", "dimensions": "many"}, "dimensions", "many"),
    ({"input": "a", "dimensions": "many"}, "dimensions", "from 1 to the length of the model's vectors"),
    ({"input": "a", "dimensions": 2.5}, "dimensions", "dimensions is 2.5: expected"),
    ({"input": ["a", {"text": 3.25}]}, "input", "input[1].text is 3.25: "),
    ({"input": "a", "truncate": "x" * 99}, "truncate", f'truncate is "{"x" * 49}…'),
    ({"input": "a", "dimensions": 1.5}, "dimensions", "float"),
    ({"input": "a", "dimensions": True}, "dimensions", "bool"),
    ({"input": "a", "truncate": "END"}, "truncate", "bool"),
    ({"input": "a", "model": 3}, "model", "int"),
    ({"input": ["a"] * 2049}, "input", "2049"),
    ({"input": "a", "modality": "smell"}, "modality", "text, image, audio"),
    ({"input": ["a", {"type": "image_url"}]}, "input", "input[1] is an object without"),
    ({"input": ["a", {"text": 3}]}, "input", "str"),
    ({"input": [{"text": "a"}, 3]}, "input", "input[1] is a token id"),
    ({"input": [[1]], "modality": "image"}, "input", "token ids, and modality is image"),
    ({"input": "a", "embedding_type": "int4"}, "embedding_type", "int4"),
    ({"input": "a", "embedding_type": ["float", "int8"]}, "embedding_type", "2 types"),
]


@pytest.mark.parametrize(("body", "param", "word"), BAD_FORMS, ids=[str(b)[:40] for b, _, _ in BAD_FORMS])
def test_a_body_of_the_wrong_form(server, body, param, word):
    for route in OPENAI_ROUTES:
        error = check_openai(server.post(route, body), 400, param, word)
        assert error["type"] == "invalid_request_error"
    bare = server.post("/embeddings", body)
    assert bare.status_code == 422
    (detail,) = bare.json()["detail"]
    assert detail["loc"][:2] == ["body", param] and word in detail["msg"] and detail["type"]


BAD_VALUES = [
    ({"input": "a", "dimensions": 385}, "dimensions", "385", "384"),
    ({"input": "a", "dimensions": -1}, "dimensions", "-1", "384"),
    ({"input": "a", "dimensions": 10**30}, "dimensions", str(10**30), "384"),
    ({"input": [[101, 30522]]}, "input", "30522", "30521"),
    ({"input": [101, 2**70]}, "input", str(2**70)),
    ({"input": [[5], [-3]]}, "input", "input[1]", "-3"),
    ({"input": ["a", "word " * 300], "truncate": False}, "input", "input[1] has 302 tokens", "256"),
    ({"input": "a", "prompt_name": "nope"}, "prompt_name", "nope"),
    ({"input": "a", "input_type": "summary"}, "input_type", "'summary'", "query, document"),
    ({"input": "a", "task": "search"}, "task", "retrieval.query"),
    ({"input": [[1, 2]], "late_chunking": True}, "input", "input[0] is no text"),
    ({"input": "a", "modality": "image"}, "modality", "image"),
]


@pytest.mark.parametrize(
    ("body", "param", "words"), [(b, p, w) for b, p, *w in BAD_VALUES], ids=range(len(BAD_VALUES))
)
def test_a_value_that_the_model_refuses(server, body, param, words):
    for route in OPENAI_ROUTES:
        check_openai(server.post(route, body), 400, param, *words)
    bare = server.post("/embeddings", body)
    assert bare.status_code == 400
    error = bare.json()["error"]
    assert error["code"] == 400 and error["type"] is None and all(w in error["message"] for w in words)


def test_numbers_as_text_are_read_on_the_bare_route_only(server):
    assert (
        len(server.post("/embeddings", {"input": "a", "dimensions": "64"}).json()["data"][0]["embedding"])
        == 64
    )
    check_openai(server.post("/v1/embeddings", {"input": "a", "dimensions": "64"}), 400, "dimensions", "str")


def test_zero_dimensions_are_refused_on_v1(server):
    check_openai(
        server.post("/v1/embeddings", {"input": "a", "dimensions": 0}), 400, "dimensions", "1 to 384"
    )


BAD_BYTES = [
    (b"", "empty"),
    (b"   ", "empty"),
    (b"{", "not valid JSON"),
    (b'{"input": "a"} tail', "not valid JSON"),
    (b"[1, 2]", "object"),
    (b'"text"', "object"),
    (b"\xef\xbb\xbf{}", "not valid JSON"),
    (b'{"input": "\xff\xfe"}', "UTF-8"),
    (b'{"input": "\\ud800"}', "half of a surrogate pair"),
    (b'{"input": "\\\\ud83d\\ude00 \\udE00"}', "holds \\ude00"),
    (b'{"input": "\\ud83d\\ude00"', "not valid JSON"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"x": ' + b'{"a":' * 100_000, "nested too deeply"),
    (b"[" * 100_000, "object"),
    (b'{"input": ' + b"[" * 100_000, "input"),
    (b'{"input": "a", "dimensions": ' + b"9" * 10_000 + b"}", ""),
    (b"\x00" * 1000, "not valid JSON"),
]


@pytest.mark.parametrize(("data", "word"), BAD_BYTES, ids=[f"{d[:12]!r}-{len(d)}" for d, _ in BAD_BYTES])
def test_bytes_that_are_no_request(server, data, word):
    for route in OPENAI_ROUTES:
        reply = server.post(route, content=data)
        assert word in reply.json()["error"]["message"] and reply.status_code == 400, reply.text
    assert server.post("/embeddings", content=data).status_code in (422, 400)
    check_alive(server)


def test_a_compressed_body_is_refused(server):
    reply = server.post("/v1/embeddings", content=b"x", headers={"content-encoding": "gzip"})
    check_openai(reply, 400, None, "gzip")


# -- sizes ------------------------------------------------------------------------------------------


def test_a_body_of_100_megabytes_is_refused_and_the_client_reads_why(server):
    body = b'{"input": "' + b"a" * 100_000_000 + b'"}'
    for route, shape in (("/v1/embeddings", "error"), ("/embeddings", "detail")):
        reply = httpx2.post(server.url + route, content=body, timeout=60)
        assert reply.status_code == 413 and shape in reply.json()
        assert str(32 * 1024 * 1024) in reply.text
    check_alive(server)


def test_a_client_that_reads_only_after_it_has_sent_all_reads_why(server):
    size = 100_000_000
    answer = server.raw(post_head(size) + b"a" * size)
    assert answer.startswith(b"HTTP/1.1 413") and b'"error"' in answer
    check_alive(server)


def test_a_chunked_body_beyond_the_limit(serve):
    server = serve(settings=ApiSettings(max_body_bytes=1000))
    reply = server.post("/v1/embeddings", content=(b"a" * 100 for _ in range(200)))
    assert reply.status_code == 413 and "1000" in reply.json()["error"]["message"]
    fits = json.dumps({"input": "a" * 900}).encode()
    chunks = [fits[i : i + 50] for i in range(0, len(fits), 50)]
    assert server.post("/v1/embeddings", content=iter(chunks)).status_code == 200


def test_a_client_that_asks_first_is_refused_at_once(serve):
    server = serve(settings=ApiSettings(max_body_bytes=1000))
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
    start = time.monotonic()
    assert server.raw(head).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("limit", "value", "sent"),
    [("_MAX_DRAIN_SECONDS", 0.3, b""), ("_MAX_DRAIN_BYTES", 50_000, b"a" * 100_000)],
)
def test_what_is_too_large_is_not_read_for_ever(serve, monkeypatch, limit, value, sent):
    """Of a gigabyte that is announced nothing comes, or too much of it."""
    monkeypatch.setattr(call, limit, value)
    server = serve(settings=ApiSettings(max_body_bytes=1000))
    start = time.monotonic()
    assert server.raw(post_head(10**9) + sent).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - start < 10


def test_a_large_body_within_the_limit_is_read(server):
    body = {"input": ["word " * 2000] * 100, "encoding_format": "base64"}
    reply = server.post("/v1/embeddings", body)
    assert reply.status_code == 200 and reply.json()["usage"]["total_tokens"] == 25_600


# -- raw sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS greeting
        b"GARBAGE\r\n\r\n",
        b"POST /v1/embeddings HTTP/9.9\r\n\r\n",
        post_head("abc"),
        post_head(-5),
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(6),
)
def test_what_is_not_http_is_refused_or_dropped(server, data):
    answer = server.raw(data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    check_alive(server)


def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(post_head(1000) + b'{"input": "')
    check_alive(server)


def test_requests_one_after_the_other_and_piped_on_one_connection(server):
    body = json.dumps({"input": "a", "encoding_format": "base64"}).encode()
    one = post_head(len(body)) + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(one * 3)
        received = b""
        while received.count(b'"usage"') < 3:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200") == 3


# -- routing ----------------------------------------------------------------------------------------


def test_unknown_routes_and_methods(server):
    check_openai(server.get("/v1/nothing"), 404, None, "/v1/nothing")
    check_openai(server.get("/v1"), 404, None)
    wrong = server.get("/v1/embeddings")
    check_openai(wrong, 405, None, "POST")
    assert wrong.headers["allow"] == "POST"
    assert server.get("/nothing").json() == {"detail": "Not Found"}
    assert server.get("/embeddings").status_code == 405


def test_an_unknown_model_among_several(serve):
    server = serve("one", "two")
    error = check_openai(
        server.post("/v1/embeddings", {"input": "a", "model": "x"}), 404, "model", "one, two"
    )
    assert error["code"] == "model_not_found"
    check_openai(server.post("/v1/classify", {"input": "a"}), 400, "model", "`classify`", "one, two")
    bare = server.post("/embeddings", {"input": "a", "model": "x"})
    assert bare.status_code == 400 and bare.json()["error"]["code"] == 400
    check_openai(server.get("/v1/models/x"), 404, "model")
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="k") as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.embeddings.create(model="x", input="a")


# -- request ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"input": "a"}, {"input": []}])
def test_request_ids_are_echoed_or_made(server, body):
    for route in ROUTES:
        sound = server.post(route, body, headers={"x-request-id": "trace-42:a/b"})
        assert sound.headers["x-request-id"] == "trace-42:a/b"
        for bad in ("has space", "x" * 129, "semi;colon", "<script>"):
            made = server.post(route, body, headers={"x-request-id": bad}).headers["x-request-id"]
            assert re.fullmatch(r"req_[0-9a-f]{20}", made)
    ids = {server.post("/v1/embeddings", body).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert float(server.post("/v1/embeddings", body).headers["openai-processing-ms"]) >= 0


def test_request_ids_on_errors_of_routing(server):
    assert server.get("/v1/nothing", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"


# -- keys -------------------------------------------------------------------------------------------

KEY = "sk-hotel-1729"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"authorization": KEY},
        {"x-api-key": KEY},
    ],
)
def test_the_right_key_opens(serve, headers):
    server = serve(settings=ApiSettings(api_key=KEY))
    for route in ROUTES:
        assert server.post(route, {"input": "a"}, headers=headers).status_code == 200
    assert server.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEY}x"},
        {"x-api-key": "no"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer schlüssel".encode()},
    ],
)
def test_a_wrong_key_does_not(serve, headers, caplog):
    server = serve(settings=ApiSettings(api_key=KEY))
    with caplog.at_level(logging.DEBUG):
        for route in OPENAI_ROUTES:
            reply = server.post(route, {"input": "a"}, headers=headers)
            assert check_openai(reply, 401, None)["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        bare = server.post("/embeddings", {"input": "a"}, headers=headers)
        assert (bare.status_code, bare.json()) == (401, {"detail": "Unauthorized"})
        assert server.get("/v1/models", headers=headers).status_code == 401
        assert server.get("/models", headers=headers).status_code == 401
    for path in ("/health", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert server.get(path, headers=headers).status_code == 200
    assert KEY not in caplog.text


def test_the_official_client_understands_a_refused_key(serve):
    server = serve(settings=ApiSettings(api_key=KEY))
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="no") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model="x", input="a")


# -- failures behind the door -----------------------------------------------------------------------

MARKER = 2003  # a token of the real vocabulary
POISON = [101, MARKER, 102]


def test_a_failing_input_is_named_and_fails_alone(serve):
    server = serve(runtime=FakeRuntime(384, nan_on_token=MARKER))
    reply = server.post("/v1/embeddings", {"input": [[101, 102], POISON]})
    error = check_openai(reply, 500, "input", "input[1]")
    assert error["type"] == "server_error" and error["code"] == "non_finite_output"
    assert reply.headers["x-should-retry"] == "false"
    check_alive(server)


def test_a_failure_nobody_expected_shows_an_id_and_no_insides(serve, caplog):
    server, message = serve(), "secret insides"

    async def explode(request: object) -> None:
        raise ValueError(message)

    server.model.encode = explode
    for route in ROUTES:
        with caplog.at_level(logging.ERROR):
            reply = server.post(route, {"input": "a"}, headers={"x-request-id": "find-me"})
        assert reply.status_code == 500
        assert "find-me" in reply.text and "secret" not in reply.text and "Traceback" not in reply.text
    assert "find-me" in caplog.text and "ValueError" in caplog.text and "in explode" in caplog.text
    assert "secret" not in caplog.text  # what a failure says may quote an input
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k") as client:
        calls = []
        server.model.encode = lambda request: calls.append(1) or explode(request)
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model="x", input="a")
        assert len(calls) == 1  # told not to retry


# -- slow clients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "place"),
    [("/v1/embeddings", ["error", "message"]), ("/embeddings", ["detail"]), ("/v1/rerank", ["message"]),
     ("/v1/encode/m", ["detail", "message"])],
)  # fmt: skip
def test_a_body_that_comes_byte_by_byte_is_not_waited_for(serve, route, place):
    server = serve(settings=ApiSettings(body_timeout=0.4))
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        start = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            assert time.monotonic() - start < 5
            with contextlib.suppress(ConnectionError):  # closed between two bytes
                connection.sendall(b" ")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
        assert 0.3 < time.monotonic() - start < 3
        status, _, body = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 408") and b"connection: close" in status
        message = json.loads(body)
        for key in place:
            message = message[key]
        assert "0.4 s (--body-timeout)" in message and "65536 bytes" in message
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):  # bytes of ours were unread
            assert connection.recv(65536) == b""
    check_alive(server)


def test_a_large_body_gets_more_time(serve):
    server = serve(settings=ApiSettings(body_timeout=0.4))
    body = b" " * 200_000 + b'{"input": "a"}'
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(post_head(len(body)) + body[:150_000])
        time.sleep(1.0)
        connection.sendall(body[150_000:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
