"""What uvicorn alone would not bound."""

from __future__ import annotations

import asyncio
import socket

from hilbert.cli.http import HttpServer


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
