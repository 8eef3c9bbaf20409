"""The ASGI application that stands before the real one from the first moment to the last.

While models are being fetched there is no real one yet: probes and clients are told so. Afterwards it
only counts who is inside, so that a shutdown knows when the last one has left.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from hilbert.api.call import Call, Receive, Reply, Scope, Send, send_reply
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.errors import ModelLoading


class Door:
    """Wraps the application.

    Attributes:
        app: the real application, once there is one.
        num_inside: requests that are being answered.
    """

    def __init__(self) -> None:
        self.app: Any = None
        self.num_inside = 0
        self._emptied: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in."""
        app = self.app
        if app is None:
            await _not_yet(scope, receive, send)
            return
        self.num_inside += 1
        try:
            await app(scope, receive, send)
        finally:
            self.num_inside -= 1
            if self._emptied is not None and self.num_inside == 0:
                self._emptied.set()

    async def wait_until_empty(self) -> None:
        """Return when nobody is inside."""
        self._emptied = asyncio.Event()
        if self.num_inside:
            await self._emptied.wait()


async def _not_yet(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    call = Call(scope["method"], scope["path"], dict(scope["headers"]), receive)
    if call.path == "/healthz":
        reply = Reply(b'{"unix":%.3f}' % time.time())
    else:
        error = ModelLoading(
            "The server has started and is fetching its models; try again soon.", retry_after_seconds=1.0
        )
        reply = OpenAIDialect().error(error)
    await send_reply(send, call, reply)
