"""A web server of raw sockets, which lies where it is told to, and a resolver that answers from a list."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Web:
    """Pages by path; a page is what is written after the request's head was read.

    Attributes:
        hits: how often each path was asked for.
        heads: the heads of all requests.
    """

    def __init__(self) -> None:
        self.port = 0
        self.pages: dict[str, bytes | Answer] = {}
        self.hits: Counter[str] = Counter()
        self.heads: list[str] = []
        self.num_connections = 0
        self.talks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self.talks.add(talk)
        with suppress(asyncio.CancelledError):
            await self._serve(reader, writer)
        self.talks.discard(talk)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1]
                self.hits[path] += 1
                self.heads.append(head)
                page = self.pages[path]
                if isinstance(page, bytes):
                    writer.write(page)
                    await writer.drain()
                else:
                    await page(writer)
                    break
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def web(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Web]:
    site = Web()
    server = await asyncio.start_server(site.serve, host, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        talks = tuple(site.talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def page(content: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"content-length: {size}", *headers))
    return f"{head}\r\n".encode() + content


def redirect(to: str) -> bytes:
    return page(b"", f"location: {to}", status="302 Found")


class Names:
    """A resolver: each name's answers in turn, the last one for ever; counts what it was asked."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: Counter[str] = Counter()

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked[host] += 1
        if host not in self.answers:
            return [host] if set(host) <= set("0123456789abcdef.:") else []
        found = self.answers[host]
        return found.pop(0) if len(found) > 1 else found[0]
