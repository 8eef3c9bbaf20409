"""An engine in this process, for asyncio callers and for plain threads.

It carries answers from the engine's threads to the event loop. It decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial
from typing import Any

from hilbert.core import Output, Request
from hilbert.engine.base import Health, raise_if_failed
from hilbert.engine.engine import Engine
from hilbert.errors import RequestTimeout
from hilbert.runtimes.base import RuntimeInfo


class _Mailbox:
    """Answers on their way to one event loop: one wake-up for all that arrive together."""

    __slots__ = ("_answers", "_is_announced", "_lock", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._answers: deque[tuple[asyncio.Future[Output], Output]] = deque()
        self._is_announced = False
        self._lock = threading.Lock()

    def post(self, future: asyncio.Future[Output], output: Output) -> None:
        """From any thread: settle `future` on its loop."""
        with self._lock:
            self._answers.append((future, output))
            if self._is_announced:
                return
            self._is_announced = True
        try:
            self.loop.call_soon_threadsafe(self._open)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._answers.clear()

    def _open(self) -> None:
        with self._lock:
            answers, self._answers = self._answers, deque()
            self._is_announced = False
        for future, output in answers:
            if not future.done():
                future.set_result(output)


class LocalEngine:
    """Implements `EngineHandle` around an `Engine` of this process."""

    def __init__(self, engine: Engine[Any]) -> None:
        self.engine = engine
        self._mailbox: _Mailbox | None = None

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        return self.engine.health

    @property
    def info(self) -> RuntimeInfo:
        """What the loaded runtime says of itself."""
        return self.engine.info

    async def run(self, request: Request) -> Output:
        """Answer a request; cancelling the awaiting task cancels the request.

        Raises:
            CapacityError: draining, or the deadline passed.
            EngineError: the device is lost.
        """
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = _Mailbox(loop)
        future: asyncio.Future[Output] = loop.create_future()
        self.engine.submit(request, partial(mailbox.post, future))
        try:
            return raise_if_failed(await future)
        except asyncio.CancelledError:
            self.engine.cancel(request.id)
            raise

    def run_sync(self, request: Request, timeout: float | None = None) -> Output:
        """Answer a request in a thread without an event loop.

        Raises:
            RequestTimeout: no answer within `timeout` seconds; the request is cancelled.
            CapacityError: draining, or the deadline passed.
            EngineError: the device is lost.
        """
        answers: list[Output] = []
        is_answered = threading.Event()

        def deliver(output: Output) -> None:
            answers.append(output)
            is_answered.set()

        self.engine.submit(request, deliver)
        try:
            is_answered.wait(timeout)
        finally:
            if not answers:
                self.engine.cancel(request.id)
        if not answers:
            raise RequestTimeout(f"no answer within {timeout} s")
        return raise_if_failed(answers[0])
