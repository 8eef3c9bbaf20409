"""uvicorn, told to leave signals, logging and the event loop to us."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

# Idle connections are kept for longer than common clients and proxies keep theirs, so that it is they
# who close: a request that meets a closing connection is lost.
_KEEP_ALIVE_SECONDS = 75
# Answers that are still being written when everything else is over.
_LAST_WORDS_SECONDS = 10


class HttpServer(uvicorn.Server):
    """Serves one application on one socket until `leave`."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
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
