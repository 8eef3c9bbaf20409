"""What uvicorn alone would not bound or get wrong, and answers that are written at once."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from hilbert.cli import http
from hilbert.cli.http import HttpServer, HttpSettings


async def _app(scope: object, receive: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]


async def _talk() -> tuple[bytes, bytes]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(_app)
    serving = asyncio.create_task(server.run_on(sock))
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 30_000 + b"\r\n\r\n")
    fine = await reader.readuntil(b"ok")
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-endless: ")
    refused = b""
    try:
        for _ in range(100):
            writer.write(b"a" * 10_000)
            await writer.drain()
    except ConnectionError:
        pass
    try:
        refused = await reader.read()
    except ConnectionError:
        refused = b"HTTP/1.1 431 lost to the reset"
    writer.close()
    server.leave()
    await serving
    return fine, refused


def test_endless_headers_end_the_connection() -> None:
    fine, refused = asyncio.run(_talk())
    assert fine.startswith(b"HTTP/1.1 200")
    assert refused.startswith(b"HTTP/1.1 431")


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body; at once, without having read it, under ``/early``; late under ``/late``."""
    body, more = b"", not scope["path"].startswith("/early")
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await asyncio.sleep(0.6 if scope["path"] == "/late" else 0)
    length = (b"content-length", b"%d" % (len(body) + 2))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": b"<" + body + b">"})


@asynccontextmanager
async def _echoing(**seconds: float) -> AsyncIterator[tuple[str, int]]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(_echo, HttpSettings(**seconds))  # type: ignore[arg-type]
    serving = asyncio.create_task(server.run_on(sock))
    yield sock.getsockname()
    server.leave()
    await serving


async def _say(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send parts, some time apart, and read to the end of the connection."""
    reader, writer = await asyncio.open_connection(*address)
    heard = b""
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)
        heard = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return heard


async def _pour(address: tuple[str, int], head: bytes, drop: bytes) -> int:
    """How many bytes a connection takes after a head before it is cut; at most 20 MB."""
    _, writer = await asyncio.open_connection(*address)
    writer.write(head)
    num_bytes = 0
    with suppress(ConnectionError):
        while num_bytes < 20_000_000:
            writer.write(drop)
            await writer.drain()
            num_bytes += len(drop)
            await asyncio.sleep(0)
        writer.close()
        return num_bytes
    writer.close()
    return num_bytes


def _post(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def test_a_body_that_comes_after_its_answer_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_REST_SECONDS", 0.2)
    monkeypatch.setattr(http, "_MAX_REST_BYTES", 1_000_000)

    async def story() -> None:
        head = _post("/early", "content-length: 100000000")
        async with _echoing(idle_timeout=60.0) as address:
            assert (await _say(address, head, b"x")).endswith(b"<>")  # a byte, and then nothing
            assert await _pour(address, head, b"x" * 10_000) < 15_000_000
        async with _echoing(idle_timeout=0.3) as address:
            rest, following = b"x" * 10, _post("/", "content-length: 2") + b"hi"
            head = _post("/early", "content-length: 10")
            assert (await _say(address, head, rest)).endswith(b"<>")  # ends as any idle connection does
            assert (await _say(address, head, rest[:4], rest[4:] + following)).endswith(b"<hi>")

    asyncio.run(story())


@pytest.mark.parametrize("path", ["/early", "/"])
def test_trailers_and_what_divides_chunks_have_an_end(path: str) -> None:
    head = _post(path, "transfer-encoding: chunked")
    drops = {
        b"0\r\n": b"x: " + b"y" * 1000 + b"\r\n",
        b"0\r\nx: ": b"y" * 1000,
        b"5;a=": b"y" * 1000,
    }

    async def story() -> None:
        async with _echoing() as address:
            for start, drop in drops.items():
                assert await _pour(address, head + start, drop * 10) < 15_000_000
            whole = b"2\r\nhi\r\n0\r\nx: y\r\n\r\n"
            fine = await _say(address, head, whole, _post("/", "connection: close", "content-length: 0"))
            assert fine.count(b"HTTP/1.1 200") == 2 and (b"<hi>" in fine) is (path == "/")

    asyncio.run(story())


def test_requests_may_come_in_one_piece() -> None:
    asked = b"GET /early HTTP/1.1\r\nhost: x\r\nx-pad: " + b"p" * 100 + b"\r\n\r\n"

    async def story() -> None:
        async with _echoing(idle_timeout=0.5) as address:
            assert (await _say(address, asked * 3000)).count(b"HTTP/1.1 200") == 3000
        async with _echoing(idle_timeout=0.5, header_timeout=0.2) as address:
            late, half = _post("/late", "content-length: 0"), _post("/", "content-length: 2")[:20]
            assert (await _say(address, late + half)).startswith(b"HTTP/1.1 200")  # 408 comes after it

    asyncio.run(story())


def test_a_wish_to_upgrade_is_not_granted_and_harms_nothing() -> None:
    wish = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ")
    inner = b"GET /inner HTTP/1.1\r\nhost: x\r\n\r\n"  # in a body it is no request
    counted = _post("/", *wish, f"content-length: {len(inner)}") + inner
    chunked = _post("/", *wish, "transfer-encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    bare = b"GET /early HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"

    async def story() -> None:
        async with _echoing(idle_timeout=0.3) as address:
            tries = []
            for asked in (counted, chunked):
                begin = asked.index(b"\r\n\r\n") + 4
                for cut in (10, begin - 2, begin, begin + 1, begin + 10, len(asked)):
                    tries.append(_say(address, asked[:cut], asked[cut:] + asked + bare))
            for heard in await asyncio.gather(*tries):
                assert heard.count(b"HTTP/1.1 200") == 3 and heard.count(b"<" + inner + b">") == 2
            assert (await _say(address, bare * 3)).count(b"HTTP/1.1 200") == 3

    asyncio.run(story())


_HEADERS = ((b"content-length", b"2"), (b"x-one", b"1"), (b"x-two", b"2 2"))
_MORE = {"/broken": ((b"x", b"1\r\ny: 2"),), "/last": ((b"connection", b"close"),)}


async def _either_way(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    headers = _HEADERS + _MORE.get(scope["path"], ())
    body = b"" if scope["method"] == "HEAD" else b"ok"
    if scope["query_string"] != b"send":
        assert scope["extensions"]["an.answer"]["write"](201, headers, body)
        return
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answers(requests: list[bytes]) -> list[bytes]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(_either_way, answer_name="an.answer")
    serving = asyncio.create_task(server.run_on(sock))
    answers = []
    for request in requests:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(request)
        async with asyncio.timeout(10):
            answers.append(await reader.read())
        writer.close()
    server.leave()
    await serving
    return [re.sub(rb"date: [^\r]*", b"date: now", answer) for answer in answers]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /%s HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET /%s HTTP/1.0\r\n\r\n",
        b"GET /last%s HTTP/1.1\r\n\r\n",
        b"HEAD /%s HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"POST /%s HTTP/1.1\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\na",
        b"GET /%s HTTP/1.1\r\n\r\nGET /%s HTTP/1.1\r\nconnection: close\r\n\r\n",
    ],
    ids=["close", "1.0", "last", "head", "expect", "pipelined"],
)
def test_an_answer_at_once_is_the_same_bytes(request_: bytes) -> None:
    at_once, by_send = asyncio.run(_answers([request_.replace(b"%s", way) for way in (b"", b"?send")]))
    assert at_once == by_send and at_once.count(b"HTTP/1.1 201") == request_.count(b"%s")


def test_a_pipelined_request_has_come_when_it_is_its_turn() -> None:
    """What is looked up for others while the one before it is in work may be outdated by then."""
    came: dict[str, float] = {}

    async def story() -> None:
        arrived, is_over = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            extension = scope["extensions"]["an.answer"]
            came[scope["path"]] = extension["received_at"]
            arrived.set()
            await is_over.wait()
            assert extension["write"](200, ((b"content-length", b"2"),), b"ok")

        sock = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(app, answer_name="an.answer")
        serving = asyncio.create_task(server.run_on(sock))
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        start = time.perf_counter()
        writer.write(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nconnection: close\r\n\r\n")
        await arrived.wait()
        assert start < came["/1"] < (end := time.perf_counter()) and "/2" not in came
        is_over.set()
        await asyncio.wait_for(reader.read(), 10)
        assert came["/2"] > end
        writer.close()
        server.leave()
        await serving

    asyncio.run(story())


def test_no_header_can_end_its_line() -> None:
    (answer,) = asyncio.run(_answers([b"GET /broken HTTP/1.1\r\nconnection: close\r\n\r\n"]))
    assert answer.startswith(b"HTTP/1.1 500") and b"y: 2" not in answer


def test_neither_requests_nor_connections_leave_garbage() -> None:
    asked = b"GET / HTTP/1.1\r\n\r\n" * 20 + b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"

    async def talk(times: int) -> int:
        gc.collect()
        gc.disable()
        try:
            await _answers([asked] * times)
            return gc.collect()
        finally:
            gc.enable()

    asyncio.run(talk(1))
    assert asyncio.run(talk(11)) - asyncio.run(talk(1)) < 10 * 21
