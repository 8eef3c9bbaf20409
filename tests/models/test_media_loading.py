"""Loading what requests point to: data URIs, base64 and URLs, errors by index, and time that is bounded."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from hilbert.core import Media, MediaRef, Modality
from hilbert.errors import MediaError
from hilbert.models.media import MediaLoader, decode
from hilbert.processors.fetch import Fetcher, FetchSettings

RAW = bytes(range(256))
BASE64 = base64.b64encode(RAW).decode()


def image(source: str) -> MediaRef:
    return MediaRef(Modality.IMAGE, source)


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 30))


@asynccontextmanager
async def pages(seconds: float = 0.0) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers `/N` with N bytes after `seconds`, and 404 otherwise; and what it was asked."""
    asked: list[str] = []
    busy = most = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal busy, most
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        asked.append(path)
        asked.sort()
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(seconds)
        busy -= 1
        size = path[1:]
        if size.isdigit():
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %s\r\n\r\n" % size.encode() + b"x" * int(size))
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    talks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.ensure_future(talk(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await asyncio.gather(*talks)
        asked.append(f"most {most}")


def loader(max_fetch_bytes: int = 10_000, **settings: float) -> MediaLoader:
    hosts = frozenset({"127.0.0.1"})
    return MediaLoader(lambda: Fetcher(FetchSettings(private_hosts=hosts, **settings)), max_fetch_bytes)


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"DATA:;charset=x;BASE64,{BASE64}",
        f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('=', '%3D')}",
        "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)) + "\n",
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in RAW),
    ],
)
def test_data_that_is_text(text: str) -> None:
    assert decode(text) == RAW


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "empty"),
        ("", "empty"),
        ("data:,", "empty"),
        ("AAA", "base64"),
        ("AA=A", "base64"),
        ("not base64!", "base64"),
        ("data:image/png;base64,ä", "base64"),
        ("/home/me/cat.png?", "base64"),
    ],
)
def test_text_that_is_no_data(text: str, word: str) -> None:
    with pytest.raises(MediaError, match=word):
        decode(text)


def test_everything_finds_its_place() -> None:
    async def story() -> None:
        async with pages() as (base, asked):
            media = loader()
            large = base64.b64encode(b"y" * 500_000).decode()
            given = ("text", image(f"{base}/7"), image(BASE64), "http://text.test/a.png", image(f"{base}/9"))
            found = await media.load((*given, image(large), Media(Modality.IMAGE, b"z")))
            assert [x.data if isinstance(x, Media) else x for x in found] == [
                "text", b"x" * 7, RAW, "http://text.test/a.png", b"x" * 9, b"y" * 500_000, b"z",
            ]  # fmt: skip
            assert asked == ["/7", "/9"]
            assert await media.load(("a", "b")) == ("a", "b")
            await media.aclose()

    run(story)


def test_errors_name_the_input() -> None:
    async def story() -> None:
        async with pages() as (base, _):
            media = loader()
            for source, words in (
                (f"{base}/gone", "answered 404"),
                (f"{base}/99999", "10000 bytes together"),
                ("http://10.0.0.1/a.png", "public internet"),
                ("file:///etc/passwd", "only http and https"),
                ("x.png", "base64"),
            ):
                with pytest.raises(MediaError, match=words) as caught:
                    await media.load(("text", image(BASE64), image(source), image(f"{base}/1")))
                assert caught.value.message.startswith("input[2]: ")
                assert (caught.value.param, caught.value.index) == ("input", 2)
            with pytest.raises(MediaError, match="together"):
                await media.load([image(f"{base}/4000")] * 3)
            await media.aclose()

    run(story)


def test_where_nothing_is_fetched() -> None:
    async def story() -> None:
        with pytest.raises(MediaError, match=r"input\[1\].*--no-fetch-urls"):
            await MediaLoader().load((image(BASE64), image("https://example.com/a.png")))

    run(story)


def test_a_client_that_could_not_be_made_is_made_for_the_next_url() -> None:
    failures = [OSError("too many open files"), OSError("too many open files")]

    def make() -> Fetcher:
        if failures:
            raise failures.pop()
        return Fetcher(FetchSettings(private_hosts=frozenset({"127.0.0.1"})))

    async def story() -> None:
        async with pages() as (base, _):
            loader = MediaLoader(make)
            with pytest.raises(OSError, match="too many"):
                await loader.load([image(f"{base}/5")])
            await loader.aclose()
            with pytest.raises(OSError, match="too many"):
                await loader.load([image(f"{base}/5")])
            assert await loader.load([image(f"{base}/5")]) == (Media(Modality.IMAGE, b"xxxxx"),)
            await loader.aclose()

    run(story)


def test_one_request_leaves_connections_to_others_and_gives_up_when_cancelled() -> None:
    async def story() -> None:
        async with pages(0.2) as (base, asked):
            media = loader(max_connections=50)
            start = time.monotonic()
            await media.load([image(f"{base}/1")] * 20)
            assert time.monotonic() - start >= 0.4  # sixteen and then four
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await media.load([image(f"{base}/1")] * 40)
            assert len(asked) <= 36
            await media.aclose()
        assert asked[-1] == "most 16"

    run(story)
