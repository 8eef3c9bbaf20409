"""The order in which a worker builds and drops models: one at a time, and nobody waits for a trace.

What one model's memory is can be told only while no other is built, so building and dropping exclude each
other. Tracing takes seconds to minutes, in a child process and without any memory here: a model that needs it
steps aside, onto a second thread, and the others go on.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from hilbert.programs.export import ExportOrder
from hilbert.runtimes.tracing import Tracer, one_child

logger = logging.getLogger(__name__)

# The front only tells it from 0.
EXIT_BROKEN = 70


class TraceNeeded(BaseException):
    """The order waits for a model to be traced. No error, so nothing but `Orders` catches it."""


class _Postponing(Tracer):
    """Traces nothing."""

    def trace(self, order: ExportOrder, *, is_alone: bool = False) -> NoReturn:
        raise TraceNeeded


class _Aside(Tracer):
    """Lets others build while the child traces."""

    def __init__(self, building: threading.Lock, has_more: Callable[[], bool]) -> None:
        super().__init__(has_more)
        self._building = building

    def trace(self, order: ExportOrder, *, is_alone: bool = False) -> dict[str, Any]:
        self._building.release()
        try:
            return super().trace(order, is_alone=is_alone)
        finally:
            self._building.acquire()


class Orders:
    """Carries out orders in the order in which they come, except that those that need a trace come later.

    An order that raises ends the process.
    """

    def __init__(self) -> None:
        self._building = threading.Lock()
        self._quick: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tracer = _Aside(self._building, has_more=lambda: not self._slow.empty())

    def start(self) -> None:
        """Start the two threads; they end with the process."""
        # The tracer's child dies with the thread that started it, so that thread stays.
        for name, tracer, orders in (
            ("loader", _Postponing(), self._quick),
            ("tracer", self._tracer, self._slow),
        ):
            threading.Thread(target=self._obey, args=(tracer, orders), name=name, daemon=True).start()

    def put(self, order: Callable[[], None]) -> None:
        """Have something done; it may be begun twice, and raise `TraceNeeded` the first time."""
        self._quick.put(order)

    def _obey(self, tracer: Tracer, orders: queue.SimpleQueue[Callable[[], None]]) -> None:
        try:
            with one_child(tracer):
                while True:
                    order = orders.get()
                    with self._building:
                        self._carry_out(order)
                        if self._slow.empty() and tracer is self._tracer:
                            tracer.close()
        except BaseException:
            logger.exception("worker %d broke", os.getpid())
            os._exit(EXIT_BROKEN)

    def _carry_out(self, order: Callable[[], None]) -> None:
        try:
            order()
        except TraceNeeded:
            self._slow.put(order)
