"""uvicorn, told to leave signals, logging and the event loop to us."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from hilbert.config import ServerSettings

# Answers that are still being written when everything else is over.
_LAST_WORDS_SECONDS = 10


# Nobody's headers are so long; nginx stops at 32 KiB. The same goes for trailers and for what divides chunks.
_MAX_HEADER_BYTES = 65_536
# A body may still be on its way when its request is answered: with 401, say. Its sender reads the answer only
# after it, so this much is thrown away before the connection is.
_MAX_REST_BYTES = 512 * 1024 * 1024
_MAX_REST_SECONDS = 15.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 44\r\n\r\nThe request's headers exceed 65,536 bytes.\r\n"
)


_CLOSE = (b"connection", b"close")
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 42\r\n\r\nThe request's headers did not come in time"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Each field has the meaning of the flag with its name.

    Attributes:
        header_timeout: seconds.
        idle_timeout: seconds. Longer than common clients and proxies keep idle connections, so that it is
            they who close: a request that meets a closing connection is lost.
        ssl_certfile, ssl_keyfile: PEM files; ``""`` for plain HTTP.
    """

    header_timeout: float = 30.0
    idle_timeout: float = 75.0
    ssl_certfile: str = ""
    ssl_keyfile: str = ""

    @staticmethod
    def of(settings: ServerSettings) -> HttpSettings:
        """What HTTP needs of all settings."""
        return HttpSettings(
            header_timeout=settings.header_timeout,
            idle_timeout=settings.idle_timeout,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself would collect headers without end and wait for clients for ever.

    It also takes an `Upgrade`, to HTTP/2 for example, for the wish that it is: the request is answered as it
    came, body included.
    """

    _header_seconds: float
    _answer_name: str
    _extensions: dict[str, dict[object, object]]
    _extension: dict[object, object]
    _answered: RequestResponseCycle
    _is_in_headers = True
    _is_in_message = False
    _num_begun = 0  # messages in what was just received
    _num_idle_bytes = 0  # of the present message, since its start or the last byte of its body
    _num_rest_bytes = 0
    _has_body_come = False
    _header_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """A client has come; its first request is due."""
        super().connection_made(transport)
        self._extension = {"write": self._answer}
        self._extensions = {self._answer_name: self._extension} if self._answer_name else {}
        self._header_timer = self.loop.call_later(self._header_seconds, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_timer()
        self._stop_rest_timer()
        self._stop_reader_timer()
        self._extensions.clear()
        self._extension.clear()  # else the last request and its connection would hold each other
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request starts."""
        self._is_in_headers = self._is_in_message = True
        self._num_begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is the body, which the application bounds."""
        self._is_in_headers = False
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        self._extension["received_at"] = time.perf_counter()
        super()._start_asgi_task(cycle, app)

    def _answer(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> bool:
        """Do in one step what uvicorn does in two messages, and for each header, with the same outcome."""
        cycle = self._answered
        if cycle.disconnected or self.flow.write_paused:
            return False
        if _CLOSE in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers = (*headers, _CLOSE)
        headers = (*self.server_state.default_headers, *headers)
        head = STATUS_LINE[status] + b"\r\n".join(map(b": ".join, headers))
        if head.count(b"\r") != len(headers) or head.count(b"\n") != len(headers):
            raise RuntimeError("a header holds a line break")
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.writelines((head, b"\r\n\r\n", body))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def on_body(self, body: bytes) -> None:
        """A part of a body has come."""
        self._has_body_come = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole, unless its body is yet to come, which the parser skips after an `Upgrade`."""
        if self.parser.should_upgrade() and _framing_of(self.headers):
            return
        self._is_in_message = False
        self._stop_rest_timer()
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def data_received(self, data: bytes) -> None:
        """Hang up on headers, and on anything else around a body, that exceed the limit."""
        self._unset_keepalive_if_required()
        self._num_begun, self._has_body_come = int(self._is_in_message), False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
            return
        self._check_size(len(data))
        if not self._is_in_headers:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_seconds, self._hang_up)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if framing := _framing_of(self.headers):
                self.parser = httptools.HttpRequestParser(_BodyAlone(self))
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%s: %s\r\n\r\n" % framing)
            if rest := data[upgrade.args[0] :]:
                self._feed(rest)

    def _check_size(self, num_bytes: int) -> None:
        is_of_one = self._num_begun == 1 and not self._has_body_come
        self._num_idle_bytes = self._num_idle_bytes + num_bytes if is_of_one and self._is_in_message else 0
        if self._num_idle_bytes > _MAX_HEADER_BYTES:
            self.transport.write(_TOO_LARGE)
            self._close()
        if self._rest_timer is not None:
            self._num_rest_bytes += num_bytes
            if self._num_rest_bytes > _MAX_REST_BYTES:
                self._close()

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_rest_timer(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _hang_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # what came before is answered first
            self._header_timer = self.loop.call_later(self._header_seconds, self._hang_up)
        elif not self.transport.is_closing():
            if self._num_idle_bytes:
                self.transport.write(_TOO_SLOW)
            self._close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered, or not at all."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """It has read most of its answer."""
        super().resume_writing()
        self._stop_reader_timer()
        if self.transport.is_closing():
            self._await_reader()

    def on_response_complete(self) -> None:
        """An answer is written, though perhaps not read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()
        elif self._is_in_message and not self._is_in_headers and self.cycle.response_complete:
            self._num_rest_bytes = 0
            self._rest_timer = self.loop.call_later(_MAX_REST_SECONDS, self._close)

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        super().send_400_response(msg)
        self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        """It has sent nothing for long enough; what it is still reading it may read."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    def _close(self) -> None:
        self.transport.close()
        self._await_reader()

    def _await_reader(self) -> None:
        """A connection closes when its last byte is sent: give up a client that takes none of them."""
        if self._reader_timer is None:
            unread = _num_unread(self.transport)
            self._reader_timer = self.loop.call_later(self.timeout_keep_alive, self._judge_reader, unread)

    def _judge_reader(self, unread_before: int) -> None:
        self._reader_timer = None
        unread = _num_unread(self.transport)
        if unread >= unread_before > 0:
            self.transport.abort()
        elif unread:
            self._await_reader()

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None


class _BodyAlone:
    """Callbacks of a parser that is told a head of its own first, so that it reads the body that follows."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self._is_in_own_head = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._is_in_own_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_in_own_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_own_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._is_in_own_head:
            self._protocol.on_headers_complete()
        self._is_in_own_head = False


def _framing_of(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
    """The header that says where a body ends; None where there is no body."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return name, value
    return None


def _num_unread(transport: asyncio.Transport) -> int:
    """Bytes that the other side has not taken: in this process, and in the kernel where it tells."""
    num_bytes = transport.get_write_buffer_size()
    with contextlib.suppress(ModuleNotFoundError, OSError):
        import fcntl
        import termios

        file = transport.get_extra_info("socket").fileno()
        num_bytes += int.from_bytes(fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return num_bytes


class HttpServer(uvicorn.Server):
    """Serves one application on one socket until `leave`.

    Args:
        app: an ASGI application.
        settings: limits, and TLS.
        answer_name: the name of an ASGI extension whose ``write`` takes status, headers and body of an answer
            at once, and returns false where they have to go by ``send``, and whose ``received_at`` is when it
            was the request's turn, as `time.perf_counter`; ``""`` offers none.
    """

    def __init__(self, app: Any, settings: HttpSettings = HttpSettings(), *, answer_name: str = "") -> None:
        chosen = {"_header_seconds": settings.header_timeout, "_answer_name": answer_name}
        protocol = type("Protocol", (BoundedProtocol,), chosen)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]  # any number will do
                ssl_certfile=settings.ssl_certfile or None,
                ssl_keyfile=settings.ssl_keyfile or None,
                timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
            )
        )

    async def run_on(self, sock: socket.socket) -> None:
        """Serve until `leave` is called."""
        await self.serve(sockets=[sock])

    def leave(self) -> None:
        """Stop listening, and end once the answers in progress are written."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: what a signal means is decided in `serve`."""
        yield
