"""uvicorn, told to leave signals, logging and the event loop to us."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Idle connections are kept for longer than common clients and proxies keep theirs, so that it is they
# who close: a request that meets a closing connection is lost.
_KEEP_ALIVE_SECONDS = 75
# Answers that are still being written when everything else is over.
_LAST_WORDS_SECONDS = 10


# Nobody's headers are so long; nginx stops at 32 KiB.
_MAX_HEADER_BYTES = 65_536
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 44\r\n\r\nThe request's headers exceed 65,536 bytes.\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself would collect headers without end."""

    _is_in_headers = True
    _num_header_bytes = 0

    def on_message_begin(self) -> None:
        """A request starts."""
        self._is_in_headers, self._num_header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is the body, which the application bounds."""
        self._is_in_headers = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Hang up on headers that exceed the limit."""
        if self._is_in_headers:
            self._num_header_bytes += len(data)
        super().data_received(data)
        if self._is_in_headers and self._num_header_bytes > _MAX_HEADER_BYTES:
            self.transport.write(_TOO_LARGE)
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves one application on one socket until `leave`."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
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
