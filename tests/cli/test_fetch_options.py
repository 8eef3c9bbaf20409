"""The settings of fetching, each seen on a web server of our own."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from hilbert.cli.media import media_loader
from hilbert.config import BadSetting, load
from hilbert.core import Input, Media, MediaRef, Modality
from hilbert.errors import MediaError


class Site(http.server.ThreadingHTTPServer):
    """`/N` is N bytes; `/slow` takes half a second. Counts connections, and those busy at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.agents: list[str | None] = []
        self.connections = self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://localhost:{self.server_port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.agents.append(self.headers["user-agent"])
        with self.server.lock:
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        if self.path == "/slow":
            time.sleep(0.5)
        with self.server.lock:
            self.server.busy -= 1
        size = 4 if self.path == "/slow" else int(self.path[1:])
        self.send_response(200)
        self.send_header("content-length", str(size))
        self.end_headers()
        self.wfile.write(b"x" * size)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(urls: Sequence[str], *argv: str, rounds: int = 1, **environ: str) -> list[Input]:
    """What a server with these settings makes of URLs."""

    async def story() -> list[Input]:
        loader = media_loader(load(argv, environ)[0])
        try:
            for _ in range(rounds):
                found = await loader.load([MediaRef(Modality.IMAGE, url) for url in urls])
            return list(found)
        finally:
            await loader.aclose()

    return asyncio.run(story())


HERE = ("--fetch-private-hosts", "files.test, LOCALHOST")


def test_fetch_private_hosts(site: Site) -> None:
    assert fetch([site.url("3")], *HERE) == [Media(Modality.IMAGE, b"xxx")]
    with pytest.raises(MediaError, match="--fetch-private-hosts"):
        fetch([site.url("3")])


def test_no_fetch_urls(site: Site) -> None:
    with pytest.raises(MediaError, match="--no-fetch-urls"):
        fetch([site.url("3")], *HERE, "--no-fetch-urls")
    assert not site.connections


def test_max_fetch_bytes(site: Site) -> None:
    assert len(fetch([site.url("30"), site.url("70")], *HERE, "--max-fetch-bytes", "100")) == 2
    with pytest.raises(MediaError, match="100 bytes"):
        fetch([site.url("30"), site.url("71")], *HERE, "--max-fetch-bytes", "100")


def test_http_client_user_agent(site: Site) -> None:
    fetch([site.url("1")], *HERE)
    fetch([site.url("1")], *HERE, HTTP_CLIENT_USER_AGENT="guest/1.0")
    assert site.agents[0] is not None and "Hilbert" in site.agents[0] and site.agents[1] == "guest/1.0"
    with pytest.raises(BadSetting, match="printable ASCII"):
        load(["--http-client-user-agent", "a\nb"], {})


def test_http_client_timeout(site: Site) -> None:
    with pytest.raises(MediaError, match=r"0\.2 s"):
        fetch([site.url("slow")], *HERE, HTTP_CLIENT_TIMEOUT="0.2")
    assert fetch([site.url("slow")], *HERE, "--http-client-timeout", "5", HTTP_CLIENT_TIMEOUT="0.2")


def test_http_client_max_connections(site: Site) -> None:
    fetch([site.url("slow")] * 4, *HERE, "--http-client-max-connections", "2")
    assert site.most_busy == 2
    fetch([site.url("slow")] * 4, *HERE)
    assert site.most_busy == 4


def test_http_client_max_keepalive_connections(site: Site) -> None:
    fetch([site.url("1")], *HERE, rounds=3)
    assert site.connections == 1
    fetch([site.url("1")], *HERE, "--http-client-max-keepalive-connections", "0", rounds=3)
    assert site.connections == 4
