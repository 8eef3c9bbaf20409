"""The requests of one supervisor: sent, kept while there is no worker, answered. Runs on the event loop.

It decides when a request is given up. Which of them may be sent, and whom a loss is blamed on, is `ledger`'s
decision; when a worker is lost, the supervisor's.

The invariant: **every request that `enter` took is answered exactly once**: with its vectors, with its own
error, or, when no new worker is ready in time, with `WorkerLost`, which may be retried. "In time" is
`recovery_seconds` after the loss was noticed or, when it was noticed at once, up to `worker_timeout_seconds`
more. Deadlines of requests go on counting.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from time import monotonic

from hilbert.core import Output, Request
from hilbert.errors import EngineError, RequestTimeout, ServingError, WorkerLost
from hilbert.worker.answers import Parts, decode_result
from hilbert.worker.client import Pending, WorkerEngine
from hilbert.worker.frames import Cancel, Kind, Result, encode, encode_submit
from hilbert.worker.ledger import Ledger, Loss
from hilbert.worker.link import End, Link
from hilbert.worker.settings import SupervisorSettings

logger = logging.getLogger(__name__)

# How long a suspect of a hang may compute without finishing a batch: it has been given a whole limit
# before, and others wait behind it. Slow models get a multiple of the longest batch that they ever took.
_MIN_TRIAL_SECONDS = 1.5
_TRIAL_FACTOR = 4.0


class Desk:
    """Requests come in through `enter` and go out through their futures.

    Args:
        settings: how patient to be.
        on_answer: called when requests have left, and nobody may be left who keeps others waiting.

    Attributes:
        link: the worker that requests go to; None while there is none.
        ready: numbers of the models that it has loaded.
        has_answered: whether it has answered any request.
    """

    def __init__(self, settings: SupervisorSettings, on_answer: Callable[[], None]) -> None:
        self._settings = settings
        self._on_answer = on_answer
        self.link: Link | None = None
        self.ready: set[int] = set()
        self.has_answered = False
        self._ledger = Ledger()
        self._pending: dict[int, Pending] = {}
        self._next_id = 1
        self._last_loss: Loss | None = None
        self._idle: asyncio.Future[None] | None = None
        self._trial_timer: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    # -- requests ---------------------------------------------------------------------------------

    @property
    def num_pending(self) -> int:
        """Requests that are not answered."""
        return len(self._pending)

    @property
    def keeps_waiting(self) -> bool:
        """Whether newcomers wait until requests that may have brought a worker down were tried alone."""
        return self._ledger.keeps_waiting(self.ready)

    def enter(self, model: WorkerEngine, request: Request) -> Pending:
        """Send a request, now or when there is a worker for it.

        Raises:
            FrameError: it is too large to be sent.
        """
        request_id = self._next_id
        self._next_id += 1
        pending = Pending(request_id, model, request, asyncio.get_running_loop().create_future())
        due = request.deadline
        frame = encode_submit(model.number, request_id, request, monotonic())
        if self._ledger.enter(request_id, model.number, self.ready) and self.link is not None:
            self.link.write(frame)
        else:
            settings = self._settings
            limit = monotonic() + settings.worker_timeout_seconds + settings.recovery_seconds
            pending.give_up_at = limit
            due = limit if due is None else min(due, limit)
        self._pending[request_id] = pending
        if due is not None and due < self._alarm_at:
            self._set_alarm(due)
        return pending

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        if self._pending.pop(pending.id, None) is not None:
            self._forget(pending)
            self._after_answer()

    def pump(self) -> None:
        """Send what may be sent."""
        link = self.link
        if link is None or link.is_lost:
            return
        now = monotonic()
        for request_id in self._ledger.next_to_send(self.ready):
            pending = self._pending[request_id]
            pending.give_up_at = None
            link.write(encode_submit(pending.model.number, request_id, pending.request, now))
            if self._ledger.trial == request_id and self._last_loss is Loss.HUNG:
                self._watch_trial(link, request_id, link.progress)

    # -- answers ----------------------------------------------------------------------------------

    def take(self, result: Result, body: bytearray | memoryview) -> None:
        """The worker has answered a request, or sent a part of a large answer.

        Raises:
            FrameError: it cannot be read; the request is still there.
        """
        self.has_answered = True
        if result.num_part_sequences:
            self._take_part(result, body)
            return
        pending = self._pending.get(result.request)
        if pending is not None and not pending.future.done():
            pending.future.set_result(_output(pending, result, body))
        self._pending.pop(result.request, None)
        if self._ledger.answered(result.request) or not self._pending:
            self._after_answer()

    def refuse_all(self, why: Callable[[], ServingError], model: WorkerEngine | None = None) -> None:
        """Answer all requests, or those of one model, with an error each."""
        for pending in list(self._pending.values()):
            if model is None or pending.model is model:
                self._settle(pending.id, why())

    async def until_answered(self, model: WorkerEngine, timeout_seconds: float) -> None:
        """Wait until the model has no request left, but not for ever."""
        waiting = [pending.future for pending in self._pending.values() if pending.model is model]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_seconds)

    async def until_idle(self, timeout_seconds: float) -> None:
        """Wait until no request is left, but not for ever."""
        if self._pending:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=timeout_seconds)

    # -- losses -----------------------------------------------------------------------------------

    def leave_worker(self) -> None:
        """Nothing goes to the present worker any more."""
        self.link = None
        self.ready.clear()
        if self._trial_timer is not None:
            self._trial_timer.cancel()

    def lose(self, end: End, *, was_building: bool) -> int:
        """A worker was lost: blame somebody for it, and bound the wait of everybody else.

        Args:
            end: how.
            was_building: whether it was building a model.

        Returns:
            How many requests were convicted.
        """
        settings = self._settings
        self._last_loss = end.loss
        convicted = self._ledger.lost(end.loss, end.running, was_building=was_building)
        logger.error(
            "the worker was lost: %s, %s; %d requests wait for the next one",
            end.loss,
            end.reason,
            len(self._pending) - len(convicted),
        )
        for request_id in convicted:
            self._settle(
                request_id,
                EngineError(
                    "computing this request brought the worker process down twice, the second time alone "
                    f"({end.reason}); sending it again will not help"
                ),
            )
        limit = end.noticed_at + settings.recovery_seconds
        if end.loss is not Loss.HUNG:
            limit += settings.worker_timeout_seconds
        for pending in self._pending.values():
            pending.give_up_at = limit if pending.give_up_at is None else min(pending.give_up_at, limit)
            pending.parts = None  # the next worker sends the answer from its beginning
        self._set_alarm(limit)
        return len(convicted)

    def close(self) -> None:
        """No timer is left."""
        if self._alarm is not None:
            self._alarm.cancel()

    # -- inside -----------------------------------------------------------------------------------

    def _take_part(self, result: Result, body: bytearray | memoryview) -> None:
        pending = self._pending.get(result.request)
        if pending is None:  # nobody waits for it any more
            return
        if pending.parts is None:
            pending.parts = Parts(pending.request.id)
        pending.parts.add(result, body)

    def _forget(self, pending: Pending) -> None:
        if self._ledger.abandon(pending.id) and self.link is not None:
            self.link.write(encode(Kind.CANCEL, Cancel(pending.model.number, pending.id)))

    def _watch_trial(self, link: Link, request_id: int, progress: int) -> None:
        """A suspect of a hang gets less time than a whole limit: others wait behind it."""
        pending = self._pending.get(request_id)
        longest = 0.0 if pending is None else pending.model.longest_batch_seconds
        seconds = max(_MIN_TRIAL_SECONDS, _TRIAL_FACTOR * longest)

        def look() -> None:
            if self._ledger.trial != request_id or link.is_lost:
                return
            if link.progress == progress:
                link.lose(
                    Loss.HUNG, f"a request that ran when the last worker hung made no progress in {seconds} s"
                )
            else:
                self._watch_trial(link, request_id, link.progress)

        self._trial_timer = asyncio.get_running_loop().call_later(seconds, look)

    def _settle(self, request_id: int, error: ServingError) -> None:
        """Answer a request with an error, wherever it is."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        self._forget(pending)
        if not pending.future.done():
            pending.future.set_exception(error)
        self._after_answer()

    def _after_answer(self) -> None:
        if self._ledger.has_waiting:
            self.pump()
        self._on_answer()
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _set_alarm(self, due: float) -> None:
        """Look after deadlines at `due`, or earlier."""
        if due < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = due
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, due - monotonic()), self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now = monotonic()
        earliest = math.inf
        for pending in list(self._pending.values()):
            deadline = pending.request.deadline
            if deadline is not None and deadline <= now:
                self._settle(pending.id, RequestTimeout("the request was not answered within its time limit"))
                continue
            give_up_at = pending.give_up_at
            if give_up_at is not None and give_up_at <= now:
                self._settle(
                    pending.id,
                    WorkerLost(
                        "the worker process was lost and no new one was ready in time",
                        retry_after_seconds=1.0,
                    ),
                )
                continue
            earliest = min(earliest, deadline or math.inf, give_up_at or math.inf)
        if earliest < math.inf:
            self._set_alarm(earliest)


def _output(pending: Pending, result: Result, body: bytearray | memoryview) -> Output:
    request = pending.request
    if pending.parts is None:
        return decode_result(result, body, request.id, len(request.sequences))
    return pending.parts.finish(result, body, len(request.sequences))
