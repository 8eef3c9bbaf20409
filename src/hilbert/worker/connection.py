"""The front's end of the socket to one worker: an asyncio protocol. Knows frames, not what they mean.

Frames that are written during one turn of the event loop leave in one system call. Works with asyncio's
own loop and with uvloop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from hilbert.errors import EngineError
from hilbert.worker.frames import MAX_FRAME_BYTES, Buffer, Frame, FrameReader

# Larger buffers are handed to the transport as they are: joining them would copy them once more.
_JOIN_BYTES = 64 << 10


class Connection(asyncio.BufferedProtocol):
    """One connected worker.

    Args:
        on_frame: called with every frame, in order.
        on_lost: called once when nothing more will come, with the error if the stream was broken.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[Exception | None], None],
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader(max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[Buffer] = []
        self._error: Exception | None = None

    async def attach(self, sock: socket.socket) -> None:
        """Take over a connected unix socket. Frames may arrive before this returns."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def write(self, frame: list[Buffer]) -> None:
        """Send a frame, together with whatever else is written in this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frame

    def close(self) -> None:
        """Hang up at once. `on_lost` is still called."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        if self._error is not None:
            return
        try:
            for frame in self._reader.received(nbytes):
                self._on_frame(frame)
        except EngineError as error:  # the stream is broken: there is no way to find the next frame
            self._error = error
            self.close()

    def eof_received(self) -> bool:
        """See asyncio. False: the transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        self._out.clear()
        self._on_lost(self._error or exc)

    def _flush(self) -> None:
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        small: list[Buffer] = []
        for buffer in out:
            if len(buffer) <= _JOIN_BYTES:
                small.append(buffer)
                continue
            if small:
                transport.write(b"".join(small))
                small = []
            transport.write(buffer)
        if small:
            transport.write(b"".join(small))
