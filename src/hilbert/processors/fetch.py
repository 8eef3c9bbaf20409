"""Fetches what a URL points to, without becoming a way into the operator's network.

A name is resolved once, all its addresses must be public, and the connection goes to those very
addresses, so that a second answer of the name server changes nothing; Host, SNI and the certificate stay
the name's. Each redirect goes the same way. Time, bytes and redirects are bounded, and nothing is
decompressed. Proxies of the environment are not used: behind one nobody could tell where a connection
ends. Does not know what the bytes mean.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NoReturn

import httpcore2
import httpx2

from hilbert.errors import MalformedMedia, MediaError
from hilbert.processors.addresses import is_public

if TYPE_CHECKING:
    import ssl

Resolve = Callable[[str, int], Awaitable[list[str]]]

_SCHEMES = ("http", "https")
_MAX_URL_CHARS = 8192
_MAX_REDIRECTS = 5
# Mail, shells and the like listen below; a web server that is not at its usual port is above.
_FIRST_UNPRIVILEGED_PORT = 1024
_LAST_PORT = 65_535
_SHOWN_URL_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How far a fetch may go.

    Attributes:
        user_agent: who we say we are.
        timeout_seconds: for one URL, from the name's resolution to the last byte, redirects included.
        max_connections: connections open at a time, idle ones included.
        max_keepalive_connections: idle connections that are kept.
        private_hosts: host names, in lower case, that may lie in private networks.
    """

    user_agent: str = "hilbert"
    timeout_seconds: float = 10.0
    max_connections: int = 50
    max_keepalive_connections: int = 20
    private_hosts: frozenset[str] = frozenset()


class ByteBudget:
    """What the URLs of one request may bring together.

    Attributes:
        total: bytes in all.
        left: bytes that have not come yet.
    """

    __slots__ = ("left", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.left = total

    def take(self, num_bytes: int, url: str) -> None:
        """Count what has come.

        Raises:
            MediaError: it is too much.
        """
        self.left -= num_bytes
        if self.left < 0:
            self.refuse(url)

    def refuse(self, url: str) -> NoReturn:
        """Say that a URL brings too much."""
        raise MediaError(
            f"{shown(url)} is too large: the URLs of one request may bring {self.total} bytes together "
            "(--max-fetch-bytes). Send it smaller, or with fewer others."
        )


async def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, best first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """One HTTP client for everything that this process fetches. Making it reads certificates: 20 ms.

    Args:
        settings: the bounds.
        resolve: names to addresses; the system's resolver.
        ssl_context: whom to trust; by default whom the system trusts.
    """

    def __init__(
        self,
        settings: FetchSettings,
        *,
        resolve: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.max_connections)
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or httpcore2.default_ssl_context(),
            max_connections=settings.max_connections,
            max_keepalive_connections=settings.max_keepalive_connections,
            keepalive_expiry=30.0,
            network_backend=_GuardedNetwork(settings.private_hosts, resolve),
        )
        self._client = httpx2.AsyncClient(
            transport=_Transport(pool),
            headers={
                "user-agent": settings.user_agent,
                "accept": "*/*",
                "accept-encoding": "identity",
            },
            timeout=settings.timeout_seconds,
            trust_env=False,
        )
        # What one request fetches must not be seen by another.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def fetch(self, url: str, budget: ByteBudget) -> bytes:
        """What lies at a URL.

        Args:
            url: http or https.
            budget: how much it may be.
        Raises:
            MediaError: it may not be fetched, cannot be, or is too large; the message says which.
        """
        seconds = self._settings.timeout_seconds
        async with self._slots:
            try:
                async with asyncio.timeout(seconds):
                    return await self._fetch(url, budget)
            except (TimeoutError, httpcore2.TimeoutException):
                raise MediaError(
                    f"{shown(url)} did not arrive within {seconds:g} s (--http-client-timeout)."
                ) from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                raise MediaError(f"{shown(url)} cannot be fetched: {_reason(error)}.") from None

    async def _fetch(self, url: str, budget: ByteBudget) -> bytes:
        request = self._client.build_request("GET", self._checked(url))
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = await self._client.send(request, stream=True)
            except ValueError:  # idna's errors are such
                raise MediaError(f"{shown(url)} redirects to what is no valid URL. Correct it.") from None
            try:
                if response.next_request is None:
                    return await _content(response, url, budget)
                request = response.next_request
                try:
                    self._checked(str(request.url))
                except MalformedMedia as error:  # whoever asked did not write this one
                    raise MediaError(error.message) from None
            finally:
                await response.aclose()
        raise MediaError(
            f"{shown(url)} redirects more than {_MAX_REDIRECTS} times. Send the URL that it ends at."
        )

    def _checked(self, text: str) -> httpx2.URL:
        """A URL of the kind that is fetched."""
        if len(text) > _MAX_URL_CHARS:
            raise MalformedMedia(f"The URL has {len(text)} characters; {_MAX_URL_CHARS} are read.")
        try:
            url = httpx2.URL(text)
            host = url.host  # its decoding, too, may find that it is none
        except (httpx2.InvalidURL, ValueError):
            raise MalformedMedia(f"{shown(text)} is no valid URL.") from None
        if url.scheme not in _SCHEMES or not host:
            raise MalformedMedia(
                f"{shown(text)} is not fetched: only http and https URLs with a host are. Send anything else "
                "as a data URI."
            )
        port = 443 if url.port is None else url.port
        is_usual = port in (80, 443) or _FIRST_UNPRIVILEGED_PORT <= port <= _LAST_PORT
        is_at_all = 0 < port <= _LAST_PORT
        if not (is_usual or (is_at_all and host in self._settings.private_hosts)):
            raise MediaError(
                f"{shown(text)} is not fetched: its port is {port}; 80, 443 and "
                f"{_FIRST_UNPRIVILEGED_PORT} to {_LAST_PORT} are allowed."
            )
        return url

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def _content(response: httpx2.Response, url: str, budget: ByteBudget) -> bytes:
    if response.status_code != 200:
        raise MediaError(
            f"{shown(url)} cannot be fetched: its server answered {response.status_code}. Correct the URL, "
            "or send the content as a data URI."
        )
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise MediaError(
            f"{shown(url)} came compressed as {encoding[:20]!r} against our word; serve the file as it is."
        )
    if int(response.headers.get("content-length", 0)) > budget.left:
        budget.refuse(url)
    content = bytearray()
    async for chunk in response.aiter_raw():
        budget.take(len(chunk), url)
        content += chunk
    return bytes(content)


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections to addresses that have been checked, and to no others."""

    def __init__(self, private_hosts: frozenset[str], resolve: Resolve) -> None:
        self._private_hosts = private_hosts
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check, and connect to the first address that answers."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):  # unknown, or a label that is too long
            addresses = []
        if not addresses:
            raise MediaError(f"The host {host[:_SHOWN_URL_CHARS]!r} is not known. Correct the URL.")
        if host not in self._private_hosts and not all(map(is_public, addresses)):
            raise MediaError(
                f"The host {host[:_SHOWN_URL_CHARS]!r} is not on the public internet, so nothing is fetched "
                "from it. Send the content as a data URI, or let the operator name the host in "
                "--fetch-private-hosts."
            )
        for place, address in enumerate(addresses, 1):
            share = None if timeout is None else timeout / len(addresses)
            try:
                return await self._network.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if place == len(addresses):
                    raise
        raise AssertionError("there is at least one address")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._network.sleep(seconds)


class _Transport(httpx2.AsyncBaseTransport):
    """httpx2's requests to a connection pool, as httpx2 itself offers none with a network of its own."""

    def __init__(self, pool: httpcore2.AsyncConnectionPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; the answer's body is still to be read."""
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=b"",
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._answer.aclose()


def shown(url: str) -> str:
    """A URL for a message: without user, password and query, which may be secrets, and not too long."""
    head, _, rest = url.partition("://")
    place, slash, path = rest.partition("?")[0].partition("/")
    text = f"{head}://{place.rpartition('@')[2]}{slash}{path}" if rest else url.partition("?")[0]
    return repr(text if len(text) <= _SHOWN_URL_CHARS else text[:_SHOWN_URL_CHARS] + "…")


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore2.ConnectError):
        return "no connection, or a certificate that does not fit" if "SSL" in str(error) else "no connection"
    return "the connection broke"
