"""Fetching for strangers: what must never be reached, and what a hostile server can cost."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fetch_house import Names, page, redirect, web

from hilbert.errors import MediaError
from hilbert.processors.addresses import is_public
from hilbert.processors.fetch import ByteBudget, Fetcher, FetchSettings, shown

GOOD = "good.test"


@asynccontextmanager
async def fetching(names: Names | None = None, tls: Any = None, **settings: Any):
    names = names or Names(good_test=[["127.0.0.1"]])
    fetcher = Fetcher(
        FetchSettings(**{"private_hosts": frozenset({GOOD}), **settings}), resolve=names, ssl_context=tls
    )
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 30))


async def refused(fetcher: Fetcher, url: str, *words: str, budget: int = 1000) -> None:
    with pytest.raises(MediaError) as caught:
        await fetcher.fetch(url, ByteBudget(budget))
    for word in words:
        assert word in caught.value.message, caught.value.message


PUBLIC = """
93.184.216.34 2606:4700::1111 ::ffff:93.184.216.34 64:ff9b::5db8:d822
"""
PRIVATE = """
127.0.0.1 127.8.8.8 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
100.64.0.1 100.127.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9
224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254
fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:100.64.0.1 ::127.0.0.1 64:ff9b::7f00:1
64:ff9b:1::1 2002:7f00:1:: 2002:c0a8:101::1 2001:db8::1 2001:0:7f00:1::1 100::1
"""


def test_which_addresses_are_public() -> None:
    assert [address for address in PUBLIC.split() if not is_public(address)] == []
    assert [address for address in PRIVATE.split() if is_public(address)] == []


def test_a_page_its_headers_and_the_connection_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # is not asked

    async def story() -> None:
        async with web() as site, fetching(user_agent="guest/1.0") as fetcher:
            site.pages["/a.png"] = page(b"picture", "set-cookie: secret=1")
            budget = ByteBudget(27)
            url = f"http://user:word@{GOOD}:{site.port}/a.png"
            assert await fetcher.fetch(url, budget) == b"picture"
            for _ in range(2):
                assert await fetcher.fetch(f"http://{GOOD}:{site.port}/a.png", budget) == b"picture"
            assert budget.left == 6 and site.num_connections == 1
            first, second, third = (head.lower() for head in site.heads)
            assert f"host: {GOOD}:{site.port}" in first and "user-agent: guest/1.0" in first
            assert "accept-encoding: identity" in first
            assert "authorization: basic" in first and "authorization" not in second
            assert "cookie" not in second + third
            # Two bolts: a way to the network that knows no proxies, and a client that reads no environment.
            assert not fetcher._client.trust_env and not fetcher._client._mounts

    run(story)


def test_nothing_is_fetched_from_a_private_place() -> None:
    async def story() -> None:
        names = Names(
            good_test=[["127.0.0.1"]], inner_test=[["127.0.0.1"]], both_test=[["1.1.1.1", "10.0.0.1"]]
        )
        async with web() as site, fetching(names) as fetcher:
            site.pages["/"] = page(b"secret")
            for host in (
                "inner.test",
                "both.test",
                "127.0.0.1",
                "[::1]",
                "[::ffff:127.0.0.1]",
                "169.254.169.254",
            ):
                await refused(fetcher, f"http://{host}:{site.port}/", "public internet", "data URI")
            assert not site.hits

    run(story)


HOSTS_OF_THIS_MACHINE = [
    "localhost", "2130706433", "0x7f.1", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1",
    "0177.1", "127.1", "127.0.1", "0", "0.0.0.0", "127.0.0.1.", "[::]", "[0:0:0:0:0:0:0:1]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::1%25lo]",
]  # fmt: skip


def test_numbers_that_the_systems_resolver_reads_as_loopback() -> None:
    async def story() -> None:
        fetcher = Fetcher(FetchSettings())
        async with web() as site:
            site.pages["/"] = page(b"secret")
            for host in HOSTS_OF_THIS_MACHINE:
                with pytest.raises(MediaError):
                    await fetcher.fetch(f"http://{host}:{site.port}/", ByteBudget(100))
            assert not site.hits
        await fetcher.aclose()

    run(story)


def test_every_redirect_is_checked_again() -> None:
    async def story() -> None:
        names = Names(good_test=[["127.0.0.1"]], inner_test=[["127.0.0.1"]])
        async with web() as site, fetching(names) as fetcher:
            site.pages["/there"] = redirect("/here")
            site.pages["/here"] = page(b"found")
            site.pages["/in"] = redirect(f"http://inner.test:{site.port}/here")
            site.pages["/metadata"] = redirect("http://169.254.169.254/latest/meta-data")
            site.pages["/file"] = redirect("file:///etc/passwd")
            site.pages["/port"] = redirect("http://93.184.216.34:22/")
            site.pages["/odd"] = redirect("http://x:ssh/")
            site.pages["/idna"] = redirect("http://%zzxn--a/")
            site.pages["/nul"] = redirect("//good.test%00@")
            site.pages["/round"] = redirect("/round")
            site.pages["/beyond"] = redirect(f"http://{GOOD}:99999/")
            site.pages["/below"] = redirect(f"http://{GOOD}:-1/")
            base = f"http://{GOOD}:{site.port}"
            assert await fetcher.fetch(f"{base}/there", ByteBudget(100)) == b"found"
            assert site.hits["/here"] == 1
            await refused(fetcher, f"{base}/in", "'inner.test' is not on the public internet")
            await refused(fetcher, f"{base}/metadata", "'169.254.169.254' is not on the public")
            await refused(fetcher, f"{base}/file", "only http and https")
            await refused(fetcher, f"{base}/port", "port is 22")
            await refused(fetcher, f"{base}/odd", "answered 302")
            for odd in ("idna", "nul"):
                await refused(fetcher, f"{base}/{odd}", f"/{odd}' redirects to what is no valid URL")
            await refused(fetcher, f"{base}/beyond", "port is 99999")  # of a private host, too
            await refused(fetcher, f"{base}/below", "port is -1")
            await refused(fetcher, f"{base}/round", "redirects more than 5 times")
            assert site.hits["/here"] == 1 and site.hits["/round"] == 6

    run(story)


def test_a_name_that_moves_inside_after_the_check_leads_nowhere() -> None:
    async def story() -> None:
        # 192.88.99.2: public by its number, and nobody's.
        names = Names(rebind_test=[["192.88.99.2"], ["127.0.0.1"]])
        async with web() as site, fetching(names, timeout_seconds=1.0, private_hosts=frozenset()) as fetcher:
            site.pages["/"] = page(b"secret")
            await refused(fetcher, f"http://rebind.test:{site.port}/")
            assert names.asked["rebind.test"] == 1 and not site.hits
            await refused(fetcher, f"http://rebind.test:{site.port}/", "public internet")
            assert not site.hits

    run(story)


def test_the_next_address_is_tried_when_the_first_does_not_answer() -> None:
    async def story() -> None:
        async with web() as site, fetching(Names(good_test=[["127.0.0.9", "127.0.0.1"]])) as fetcher:
            site.pages["/"] = page(b"yes")
            assert await fetcher.fetch(f"http://{GOOD}:{site.port}/", ByteBudget(9)) == b"yes"

    run(story)


def test_what_is_no_url_of_a_page() -> None:
    async def story() -> None:
        async with fetching(Names(nowhere_test=[[]])) as fetcher:
            for url, word in (
                ("file:///etc/passwd", "only http and https"),
                ("ftp://good.test/a", "only http and https"),
                ("gopher://good.test/", "only http and https"),
                ("http://", "host"),
                ("http:///path", "host"),
                ("http://[", "not known"),
                ("http://a b/", ""),
                ("http://x:99999/", "port is 99999"),
                ("http://good.test:0/", "port is 0"),
                ("http://x:ssh/", "no valid URL"),
                ("http://%zzxn--a/", "no valid URL"),
                ("http://..xn--a/", "no valid URL"),
                ("http://nowhere.test/", "not known"),
                ("http://93.184.216.34:25/", "port is 25"),
                ("http://" + "a" * 70 + ".test/", ""),
                ("http://good.test/" + "a" * 9000, "9017 characters; 8192"),
            ):
                await refused(fetcher, url, word)

    run(story)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()


def test_a_body_without_end_and_lengths_that_lie() -> None:
    async def story() -> None:
        async with web() as site, fetching() as fetcher:
            site.pages["/endless"] = endless
            site.pages["/huge"] = page(b"x", length=10**15)
            site.pages["/odd"] = page(b"x", "content-length: 1" + "0" * 5000)
            site.pages["/less"] = page(b"only this" + b"x" * 5000, length=9)
            site.pages["/more"] = _then_close(page(b"not all", length=900))
            base = f"http://{GOOD}:{site.port}"
            for path in ("/endless", "/huge"):
                await refused(fetcher, base + path, "too large", "1000 bytes", "--max-fetch-bytes")
            await refused(fetcher, f"{base}/odd")
            assert await fetcher.fetch(f"{base}/less", ByteBudget(1000)) == b"only this"
            await refused(fetcher, f"{base}/more", "the connection broke")

    run(story)


def _then_close(content: bytes) -> Any:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return answer


def test_one_budget_for_all_urls_of_a_request() -> None:
    async def story() -> None:
        async with web() as site, fetching() as fetcher:
            site.pages["/"] = page(b"x" * 400)
            budget = ByteBudget(1000)
            for _ in range(2):
                await fetcher.fetch(f"http://{GOOD}:{site.port}/", budget)
            with pytest.raises(MediaError, match="1000 bytes together"):
                await fetcher.fetch(f"http://{GOOD}:{site.port}/", budget)

    run(story)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(20)


def test_a_server_that_takes_its_time() -> None:
    async def story() -> None:
        async with web() as site, fetching(timeout_seconds=0.4) as fetcher:
            site.pages["/drip"], site.pages["/silent"] = drip, silent
            for path in ("/drip", "/silent"):
                start = time.monotonic()
                await refused(fetcher, f"http://{GOOD}:{site.port}{path}", "0.4 s", "--http-client-timeout")
                assert time.monotonic() - start < 3

    run(story)


def test_what_comes_compressed_is_not_unpacked() -> None:
    async def story() -> None:
        bomb = gzip.compress(b"\0" * 50_000_000)
        async with web() as site, fetching() as fetcher:
            site.pages["/"] = page(bomb, "content-encoding: gzip")
            await refused(fetcher, f"http://{GOOD}:{site.port}/", "'gzip'", budget=10**9)

    run(story)


def test_a_refusal_names_the_status_and_no_secret() -> None:
    async def story() -> None:
        async with web() as site, fetching() as fetcher:
            site.pages["/a?sig=abc"] = page(b"", status="403 Forbidden")
            url = f"http://me:word@{GOOD}:{site.port}/a?sig=abc"
            with pytest.raises(MediaError) as caught:
                await fetcher.fetch(url, ByteBudget(9))
            message = caught.value.message
            assert "answered 403" in message and f"{GOOD}:{site.port}/a" in message
            assert "sig" not in message and "word" not in message
            site.port += 1

    assert shown("http://x/" + "a" * 500).endswith("…'")
    run(story)


def test_connections_are_bounded_and_waiting_for_one_costs_no_time() -> None:
    async def story() -> None:
        busy = most = 0

        async def slow(writer: asyncio.StreamWriter) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.15)
            busy -= 1
            writer.write(page(b"x"))
            await writer.drain()

        settings = {"max_connections": 2, "max_keepalive_connections": 1, "timeout_seconds": 0.6}
        async with web() as site, fetching(**settings) as fetcher:
            site.pages["/"] = slow
            url = f"http://{GOOD}:{site.port}/"
            pages = await asyncio.gather(*[fetcher.fetch(url, ByteBudget(9)) for _ in range(12)])
            assert pages == [b"x"] * 12 and most == 2

    run(story)


def test_how_many_idle_connections_are_kept() -> None:
    async def connections(kept: int) -> int:
        async with web() as site, fetching(max_keepalive_connections=kept) as fetcher:
            site.pages["/"] = page(b"x")
            url = f"http://{GOOD}:{site.port}/"
            for _ in range(2):
                await asyncio.gather(*[fetcher.fetch(url, ByteBudget(9)) for _ in range(3)])
            return site.num_connections

    async def story() -> None:
        assert await connections(3) == 3
        assert await connections(0) == 6

    run(story)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for good.test that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={GOOD}",
         "-addext", f"subjectAltName=DNS:{GOOD}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


def test_the_certificate_is_the_names_and_not_the_addresses(certificate: tuple[str, str]) -> None:
    key, cert = certificate
    names = Names(good_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(cert, key)
    told: list[str | None] = []
    here.sni_callback = lambda _socket, name, _context: told.append(name)

    async def story() -> None:
        async with web(here) as site:
            site.pages["/"] = page(b"safe")
            trusting = ssl.create_default_context(cafile=cert)
            hosts = frozenset({GOOD, "other.test"})
            async with fetching(names, trusting, private_hosts=hosts) as fetcher:
                assert await fetcher.fetch(f"https://{GOOD}:{site.port}/", ByteBudget(9)) == b"safe"
                assert told == [GOOD]
                # The same address, another name: neither the connection nor the certificate is taken over.
                await refused(fetcher, f"https://other.test:{site.port}/", "certificate")
            async with fetching(names) as fetcher:
                await refused(fetcher, f"https://{GOOD}:{site.port}/", "certificate")
            assert site.hits["/"] == 1

    run(story)
