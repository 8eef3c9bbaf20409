"""One worker process, from the first word to the certainty that it is gone. Runs on the event loop.

It decides when this worker counts as lost. It does not know requests or models, nor what comes after.

A process that lives but answers no ping within the limit is lost too: it was stopped, or one of its
threads keeps the GIL. Pings are counted rather than timed, so that a front which itself was stopped for
a while does not blame the worker for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from hilbert.worker.connection import Connection
from hilbert.worker.frames import Buffer, Frame, Kind, Ping, Pong, encode
from hilbert.worker.ledger import Loss
from hilbert.worker.spawn import WorkerProcess

logger = logging.getLogger(__name__)

# After so many unanswered pings a worker is shown as unresponsive, long before it counts as lost.
_SUSPICIOUS_PINGS = 3


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended.

    Attributes:
        loss: what kind of loss it was.
        reason: in words.
        running: the requests that it was computing; None when that is unknown.
        noticed_at: when it was noticed (`time.monotonic`).
    """

    loss: Loss
    reason: str
    running: frozenset[int] | None
    noticed_at: float


class Link:
    """A started worker.

    Args:
        process: the worker; the link owns it from now on.
        on_frame: called with every frame but pongs.
        on_pong: called with every pong.
        ping_seconds: pause between pings.
        timeout_seconds: how long it may leave a ping unanswered.
        exit_seconds: how long it may take to exit once it has hung up, or was killed.

    Attributes:
        timeout_seconds: may be changed while it lives.
        ready_at: when the owner found it ready; None before.
    """

    def __init__(
        self,
        process: WorkerProcess,
        on_frame: Callable[[Frame], None],
        on_pong: Callable[[Pong], None],
        ping_seconds: float,
        timeout_seconds: float,
        exit_seconds: float,
    ) -> None:
        self._process = process
        self._on_frame = on_frame
        self._on_pong = on_pong
        self._ping_seconds = ping_seconds
        self.timeout_seconds = timeout_seconds
        self._exit_seconds = exit_seconds
        self.ready_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._lost: asyncio.Future[tuple[Loss | None, str]] = self._loop.create_future()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._noticed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ping_number = 0
        self._pong_number = 0
        self._num_unanswered = 0
        process.watch(self._on_exit_thread)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_responsive(self) -> bool:
        """False when it has left several pings unanswered: probably it hangs."""
        return self._num_unanswered < _SUSPICIOUS_PINGS

    @property
    def is_lost(self) -> bool:
        """Whether it has been declared lost."""
        return self._lost.done()

    @property
    def progress(self) -> int:
        """Grows with every batch that it finishes. Only while it is not lost."""
        return self._process.journal.progress()

    def write(self, frame: list[Buffer]) -> None:
        """Send a frame; nothing happens once the worker is lost."""
        if self._connection is not None and not self._lost.done():
            self._connection.write(frame)

    def lose(self, loss: Loss | None, reason: str) -> None:
        """Declare the worker lost.

        Args:
            loss: how; None leaves it to the exit status.
            reason: in words.
        """
        if not self._lost.done():
            self._noticed_at = monotonic()
            self._lost.set_result((loss, reason))

    async def until_exit(self, timeout_seconds: float) -> bool:
        """Wait for the process to exit by itself; whether it did so in time."""
        await asyncio.wait([self._exited], timeout=timeout_seconds)
        return self._exited.done()

    async def live(self) -> End:
        """Connect, wait until it is lost, and make sure that it is gone. Cancelling kills it, too."""
        try:
            # Known before the first frame can arrive: the hello of a worker that was started ahead is read
            # while it is being attached, and is answered at once.
            self._connection = Connection(self._receive, self._on_hang_up)
            await self._connection.attach(self._process.sock)
            self._tick()
            loss, reason = await self._lost
            # Hanging up says nothing about why; a process that dies says so a moment later.
            if loss is None and not await self.until_exit(self._exit_seconds):
                loss = Loss.HUNG
            self._hang_up()
            self._process.kill()
            has_exited = await self.until_exit(self._exit_seconds)
            running = self._process.journal.running()
            if not has_exited:
                logger.error("worker %d was killed and does not go away", self.pid)
                return End(loss or Loss.HUNG, reason, running, self._noticed_at)
            status = self._exited.result()
            return End(loss or _loss_of(status), f"{reason} ({_describe(status)})", running, self._noticed_at)
        except BaseException:
            self._hang_up()
            self._process.kill()
            await self.until_exit(self._exit_seconds)
            raise
        finally:
            self._process.journal.close()

    # -- events -----------------------------------------------------------------------------------

    def _receive(self, frame: Frame) -> None:
        if isinstance(frame.meta, Pong):
            self._pong_number = frame.meta.number
            self._num_unanswered = 0
            self._on_pong(frame.meta)
        elif not self._lost.done():
            self._on_frame(frame)

    def _on_hang_up(self, error: Exception | None) -> None:
        self.lose(None, "it hung up" if error is None else f"its socket broke: {error}")

    def _on_exit_thread(self, status: int) -> None:
        def settle() -> None:
            if not self._exited.done():
                self._exited.set_result(status)
            self.lose(None, "it exited")

        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody is interested any more
            self._loop.call_soon_threadsafe(settle)

    def _tick(self) -> None:
        interval = self._ping_seconds
        if self._pong_number == self._ping_number:
            self._ping_number += 1
            self.write(encode(Kind.PING, Ping(self._ping_number)))
        else:
            self._num_unanswered += 1
            if (self._num_unanswered + 1) * interval >= self.timeout_seconds:
                self.lose(Loss.HUNG, f"it answered no ping for {self.timeout_seconds} s")
                return
        self._timer = self._loop.call_later(interval, self._tick)

    def _hang_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _loss_of(status: int) -> Loss:
    return Loss.KILLED if status == -signal.SIGKILL else Loss.CRASHED


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
