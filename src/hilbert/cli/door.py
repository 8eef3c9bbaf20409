"""The ASGI application before the real one: it counts who is inside, for a shutdown that waits for them."""

from __future__ import annotations

import asyncio
from typing import Any

from hilbert.api.call import Receive, Scope, Send


class Door:
    """Wraps the application.

    Attributes:
        num_inside: requests that are being answered.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.num_inside = 0
        self._emptied: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in."""
        self.num_inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.num_inside -= 1
            if self._emptied is not None and self.num_inside == 0:
                self._emptied.set()

    async def wait_until_empty(self) -> None:
        """Return when nobody is inside."""
        self._emptied = asyncio.Event()
        if self.num_inside:
            await self._emptied.wait()
