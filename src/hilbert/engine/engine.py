"""The engine: requests in, batches through the runtime, answers out. Threads, no asyncio.

It decides what happens to a batch that fails and when a caller is given up on. It does not know wire
formats, processes or models; order and fairness are the scheduler's.

The invariant: **every request that `submit` accepted is answered exactly once**, whatever the runtime
does, unless it is cancelled. Whoever marks a `Pending` answered (under the lock) delivers it (outside).

Threads: one per slot of the runtime, each doing `step` after `step`, and one watcher, which sleeps until
the next deadline or the time limit of a running batch. `_lock` guards the scheduler and all state; it
is held for microseconds, never while preparing, running or delivering.

What may go wrong with a batch, and what follows:

=====================  =================================================================================
it raises              its halves are queued for another try; a sequence that fails alone gets the error
it raises OutOfMemory  the same
rows are not finite,   these sequences run once more, each alone; then `NonFiniteOutput` for the index
or a vector is zero
rows have wrong shape  all its sequences get an `EngineError`
it raises WorkerLost   the engine has failed: every caller is answered, `on_failed` is called
it takes too long      the same
=====================  =================================================================================

A request gets all the outputs that it asks for from one run, and a sequence is bad when any of them is.

Second tries and fresh batches alternate, so a request full of bad inputs delays others by a factor of
two at most.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from hilbert.core import Batch, BatchOutput, OutputType, Request, Sequence
from hilbert.engine.assembly import Deliver, Pending, copy_of, runs_of
from hilbert.engine.base import Health
from hilbert.engine.device import Device
from hilbert.engine.rows import WrongShape, bad_sequences, picked
from hilbert.engine.stats import BatchStats
from hilbert.engine.step import Work, step
from hilbert.errors import (
    EngineError,
    InvalidInput,
    NonFiniteOutput,
    OutOfMemory,
    RequestTimeout,
    ServingError,
    ShuttingDown,
    UnsupportedTask,
    WorkerLost,
)
from hilbert.logs import without_message
from hilbert.runtimes.base import Runtime, RuntimeInfo
from hilbert.scheduler import Scheduler

logger = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")
_OPEN = (Health.LOADING, Health.READY, Health.DRAINING)


class Engine(Generic[Prepared]):
    """Runs one model on one device.

    Args:
        runtime: what computes. The engine does not close it.
        scheduler: what orders; nobody else may touch it from now on.
        device: the turn, shared by all engines on the same device.
        clock: monotonic seconds; deadlines of requests are on it.
        batch_timeout_seconds: a `prepare` or a `run` that takes longer means that the device hangs.
        name: for threads and messages.
        on_batch: called after the answers of every batch, from the thread that ran it.
        on_failed: called once, after the last answer, when the device is lost.
    """

    def __init__(
        self,
        runtime: Runtime[Prepared],
        scheduler: Scheduler,
        device: Device,
        *,
        clock: Callable[[], float] = time.monotonic,
        batch_timeout_seconds: float = 120.0,
        name: str = "engine",
        on_batch: Callable[[BatchStats], None] | None = None,
        on_failed: Callable[[ServingError], None] | None = None,
    ) -> None:
        self.runtime = runtime
        self.device = device
        self.name = name
        self.info: RuntimeInfo = runtime.info
        self._scheduler = scheduler
        self._clock = clock
        self._batch_timeout_seconds = batch_timeout_seconds
        self._on_batch = on_batch
        self._on_failed = on_failed
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)  # step threads wait here
        self._has_event = threading.Condition(self._lock)  # the watcher waits here
        self._is_idle = threading.Condition(self._lock)  # `drain` waits here
        self._health = Health.LOADING
        self._failure: ServingError | None = None
        self._pending: dict[int, Pending] = {}
        self._num_delivering = 0  # no longer pending, and their `deliver` has not returned
        self._retries: deque[Work] = deque()
        self._is_retry_next = True
        self._open_works: dict[int, Work] = {}  # taken and not yet through `run`, by id()
        self._tokens_per_second = math.inf  # of a turn, of late
        self._watched_until = math.inf
        self._threads: list[threading.Thread] = []

    # -- for callers, from any thread -------------------------------------------------------------

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        return self._health

    @property
    def num_queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._scheduler.num_queued_tokens

    @property
    def num_queued_sequences(self) -> int:
        """Sequences that wait for a batch."""
        return self._scheduler.num_queued_sequences

    @property
    def num_requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    def start(self) -> None:
        """Start the threads. Requests may have been submitted before."""
        with self._lock:
            assert self._health is Health.LOADING, f"an engine starts once; this one is {self._health}"
            self._health = Health.READY
        lives = {f"{self.name}-step-{i}": self._steps for i in range(self.runtime.num_slots)}
        lives[f"{self.name}-watch"] = self._watch
        for name, life in lives.items():
            self._threads.append(threading.Thread(target=self._live, args=(life,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request.

        Args:
            request: its sequences, with a deadline on the engine's clock.
            deliver: called exactly once with the answer, from a thread of the engine and outside its
                lock, unless the request is cancelled before. It must not block. A failure of the whole
                request comes as an `Output` without rows and with the same error at every index.

        Raises:
            ShuttingDown: draining or stopped.
            WorkerLost: the device is lost.
            InvalidInput: no sequences, or an empty one, or no outputs.
            UnsupportedTask: the runtime does not return one of the outputs.
        """
        self._check_outputs(request.outputs)
        now = self._clock()
        with self._lock:
            if self._health is not Health.READY and self._health is not Health.LOADING:
                raise self._refusal()
            self._scheduler.add(request, now)
            self._pending[request.id] = Pending(request, deliver, now)
            if not self._open_works or self._scheduler.has_full_batch:
                self._has_work.notify()
            if request.deadline is not None:
                self._watch_until(request.deadline)

    def cancel(self, request_id: int) -> bool:
        """Forget a request: what is queued is dropped, what is running is thrown away.

        Returns:
            True if it was cancelled: its `deliver` will not be called. False if it is unknown, or
            answered, or about to be.
        """
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is None:
                return False
            self._close(pending, is_delivered=False)
            return True

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait until `deliver` has returned for all that came before.

        Not to be called from within a `deliver`.

        Returns:
            Whether that happened within `timeout` seconds.
        """
        with self._lock:
            if self._health in (Health.READY, Health.LOADING):
                self._health = Health.DRAINING
            return self._is_idle.wait_for(lambda: not self._pending and not self._num_delivering, timeout)

    def stop(self) -> None:
        """Answer what is left with ShuttingDown and end the threads.

        What runs is waited for as long as a batch may take; one that takes longer means, here as ever, that
        the device hangs. An engine that has failed waits for nothing.
        """
        with self._lock:
            before, self._health = self._health, Health.STOPPED
            abandoned = self._close_all()
        self._answer(abandoned, ShuttingDown("the server is shutting down"))
        hung = None if before is Health.FAILED else self._join()
        self.device.leave(self)
        if hung is not None and before is not Health.STOPPED:
            self._lose(self._too_long(hung), [])

    # -- for step threads -------------------------------------------------------------------------

    def take(self) -> Work | None:
        """Wait for the next batch; None when the engine has ended."""
        with self._lock:
            while self._health in _OPEN:
                work = self._next_work()
                if work is not None:
                    self._open_works[id(work)] = work
                    self._limit(work, work.taken_at)
                    if self._scheduler.has_full_batch or self._retries:
                        self._has_work.notify()
                    return work
                self._has_work.wait()
        return None

    def mark_prepared(self, work: Work) -> None:
        """`prepare` is over; waiting for the turn is not limited."""
        work.limit = math.inf

    def mark_turn(self, work: Work) -> None:
        """`run` begins."""
        work.turn_at = self._clock()
        with self._lock:
            self._limit(work, work.turn_at)

    def mark_done(self, work: Work) -> None:
        """`run` is over: the other thread may now cut its batch, while this one delivers."""
        work.done_at = self._clock()
        self._measure(work)
        self._close_work(work)

    def deliver(self, work: Work, rows: BatchOutput) -> None:
        """Hand the rows of a batch to their requests and answer those that are complete."""
        sequences = work.batch.sequences
        if bad := bad_sequences(rows, self.info):
            self._again_alone(work, [sequences[i] for i in bad])
            good = sorted(set(range(len(sequences))).difference(bad))
            sequences, rows = tuple(sequences[i] for i in good), picked(rows, good)
        runs = runs_of(sequences)
        run_seconds = work.done_at - work.turn_at
        with self._lock:
            pendings = [self._pending_of(sequences[run.start]) for run in runs]
            for run, pending in zip(runs, pendings, strict=True):
                if pending is not None and run.length < len(pending.request.sequences):
                    pending.make_room(self.info)
        for run, pending in zip(runs, pendings, strict=True):
            if pending is not None:
                pending.put(run, rows)
        complete: list[Pending] = []
        with self._lock:
            for run, pending in zip(runs, pendings, strict=True):
                if pending is not None and not pending.is_answered:
                    pending.inference_seconds = max(pending.inference_seconds, run_seconds)
                    self._count_down(pending, run.length, complete)
        self._answer(complete)
        self._report(work, "")

    def isolate(self, work: Work, error: Exception) -> None:
        """A batch has failed: find out which of its sequences is guilty, or give up on the device."""
        self._close_work(work)
        if isinstance(error, WorkerLost):
            self._fail(error)
        elif len(work.batch.sequences) > 1 and not isinstance(error, WrongShape):
            num_sequences = len(work.batch.sequences)
            if not work.is_retry:  # once per batch: a bad input among many would fill the log
                logger.warning(
                    "%s: a batch of %d sequences raised %s; running its halves",
                    self.name,
                    num_sequences,
                    repr(error) if isinstance(error, ServingError) else type(error).__name__,
                )
            middle = num_sequences // 2
            self._again(work, work.batch.sequences[:middle], work.batch.sequences[middle:])
        else:
            self._fail_sequences(work.batch.sequences, self._as_serving_error(error))
        self._report(work, type(error).__name__)

    # -- inside -----------------------------------------------------------------------------------

    def _check_outputs(self, outputs: frozenset[OutputType]) -> None:
        if outputs <= self.info.outputs and outputs:
            return
        available = ", ".join(sorted(self.info.outputs))
        if not outputs:
            raise InvalidInput(f"a request needs at least one output; {self.name} returns {available}")
        missing = ", ".join(sorted(outputs - self.info.outputs))
        raise UnsupportedTask(f"{self.name} does not return {missing}; it returns {available}")

    def _live(self, life: Callable[[], None]) -> None:
        """Run a thread. None of ours dies silently: that would leave callers waiting."""
        try:
            life()
        except BaseException as error:
            logger.exception("%s: a thread broke", self.name)
            self._fail(EngineError(f"the engine broke: {type(error).__name__}"))

    def _steps(self) -> None:
        """The life of a step thread."""
        while step(self):
            pass

    def _watch(self) -> None:
        """The life of the watcher: deadlines of requests, time limits of batches."""
        while True:
            with self._lock:
                if self._health not in _OPEN:
                    return
                now = self._clock()
                late = [self._pending[i] for i in self._scheduler.expire(now) if i in self._pending]
                for pending in late:
                    self._close(pending)
                hung = next((w for w in self._open_works.values() if w.limit <= now), None)
                if not late and hung is None:
                    limits = [w.limit for w in self._open_works.values()]
                    deadline = self._scheduler.next_deadline()
                    until = min(limits, default=math.inf)
                    until = until if deadline is None else min(until, deadline)
                    if self._watched_until <= now or until < self._watched_until:
                        self._watched_until = until
                    # Else what was to be watched is over already. Keeping the appointment costs one look;
                    # dropping it would wake this thread for each request of a lone client.
                    until = self._watched_until
                    self._has_event.wait(None if until == math.inf else min(until - now, 3600.0))
                    continue
            for pending in late:
                waited = now - pending.submitted_at
                message = f"the request was not answered within its {waited:.2f} s and was dropped"
                self._answer([pending], RequestTimeout(message))
            if hung is not None:
                self._fail(self._too_long(hung))

    def _too_long(self, work: Work) -> WorkerLost:
        return WorkerLost(
            f"a batch of {work.batch.num_tokens} tokens was not done within "
            f"{self._batch_timeout_seconds} s; the device hangs"
        )

    def _join(self) -> Work | None:
        """Wait for the threads to end, but for this one.

        Returns:
            The batch whose time limit has passed before that, if there is one.
        """
        for thread in self._threads:
            while thread is not threading.current_thread() and thread.is_alive():
                with self._lock:
                    now = self._clock()
                    works = sorted(self._open_works.values(), key=lambda work: work.limit)
                if works and works[0].limit <= now:
                    return works[0]
                # While a batch waits for its turn nothing limits it here, but the engine that has the turn.
                thread.join(min([self._batch_timeout_seconds, *(work.limit - now for work in works)]))
                if not works:
                    break
        return None

    def _measure(self, work: Work) -> None:
        """How fast batches of this model are, of late."""
        seconds = work.done_at - work.turn_at
        if seconds > 0.0:
            rate = sum(s.num_tokens for s in work.batch.sequences) / seconds
            known = self._tokens_per_second
            self._tokens_per_second = rate if known == math.inf else 0.8 * known + 0.2 * rate

    def _next_work(self) -> Work | None:
        """The next batch that may be taken now, under the lock."""
        now = self._clock()
        if self._is_retry_next and (work := self._next_retry(now)) is not None:
            self._is_retry_next = False
            return work
        slice_seconds = self.device.slice_seconds(self)
        batch = self._scheduler.next_batch(
            now, only_full=bool(self._open_works), max_tokens=slice_seconds * self._tokens_per_second
        )
        if batch is None:
            return self._next_retry(now)
        self._is_retry_next = True
        longest = 0.0
        request_id = -1
        for sequence in batch.sequences:
            if sequence.request_id != request_id:
                request_id = sequence.request_id
                pending = self._pending[request_id]
                pending.queue_seconds = now - pending.submitted_at
                longest = max(longest, pending.queue_seconds)
        return Work(batch, now, longest)

    def _next_retry(self, now: float) -> Work | None:
        while self._retries:
            work = self._retries.popleft()
            alive = tuple(s for s in work.batch.sequences if self._pending_of(s) is not None)
            if alive:
                work.batch = Batch(alive, work.batch.outputs)
                work.taken_at = now
                return work
        return None

    def _pending_of(self, sequence: Sequence) -> Pending | None:
        """The request that waits for this sequence; not one that took the id of a cancelled one."""
        pending = self._pending.get(sequence.request_id)
        return pending if pending is not None and pending.owns(sequence) else None

    def _limit(self, work: Work, now: float) -> None:
        """A stage begins that may hang; the watcher must know. Under the lock."""
        work.limit = now + self._batch_timeout_seconds
        self._watch_until(work.limit)

    def _watch_until(self, due: float) -> None:
        """The watcher must look at `due` at the latest. Under the lock."""
        if due < self._watched_until:
            self._watched_until = due
            self._has_event.notify()

    def _close_work(self, work: Work) -> None:
        """A batch is through `run`, well or badly; the next one may be cut."""
        with self._lock:
            if self._open_works.pop(id(work), None) is not None and (
                self._scheduler.num_queued_sequences or self._retries
            ):
                self._has_work.notify()

    def _again(self, work: Work, *parts: tuple[Sequence, ...], is_last_try: bool = False) -> None:
        """Queue parts of a failed batch for another try."""
        with self._lock:
            for part in parts:
                batch = Batch(part, work.batch.outputs)
                self._retries.append(
                    Work(batch, work.taken_at, work.queue_seconds, is_retry=True, is_last_try=is_last_try)
                )
                self._has_work.notify()

    def _again_alone(self, work: Work, sequences: list[Sequence]) -> None:
        """Rows of these were bad: one more try for each, alone, and no further."""
        if work.is_last_try:
            self._fail_sequences(
                tuple(sequences),
                NonFiniteOutput("the model produced NaN, infinity or nothing but zeros for this input"),
            )
        else:
            self._again(work, *((s,) for s in sequences), is_last_try=True)

    def _as_serving_error(self, error: Exception) -> ServingError:
        """What the caller is told: our own errors as they are, others by an id found in the log."""
        if isinstance(error, ServingError):
            return error
        if isinstance(error, MemoryError):
            return OutOfMemory("memory ran out on this input alone; send a shorter one")
        error_id = os.urandom(6).hex()
        shown = without_message(error)
        logger.error("%s: an input cannot be run, error %s", self.name, error_id, exc_info=shown)
        return EngineError(f"the model failed on this input (error {error_id})")

    def _fail_sequences(self, sequences: tuple[Sequence, ...], error: ServingError) -> None:
        complete: list[Pending] = []
        with self._lock:
            for sequence in sequences:
                pending = self._pending_of(sequence)
                if pending is not None:
                    pending.make_room(self.info)
                    pending.fail(sequence.index, copy_of(error, sequence.index))
                    self._count_down(pending, 1, complete)
        self._answer(complete)

    def _count_down(self, pending: Pending, length: int, complete: list[Pending]) -> None:
        pending.num_left -= length
        if pending.num_left == 0:
            self._close(pending)
            complete.append(pending)

    def _close(self, pending: Pending, *, is_delivered: bool = True) -> None:
        """From now on nobody else answers this request; the caller of this does. Under the lock."""
        pending.is_answered = True
        del self._pending[pending.request.id]
        self._scheduler.finish(pending.request.id)
        if is_delivered:
            self._num_delivering += 1
        elif not self._pending:
            self._is_idle.notify_all()

    def _close_all(self) -> list[Pending]:
        """The end of the engine: take all requests, wake all threads. Under the lock."""
        abandoned = list(self._pending.values())
        for pending in abandoned:
            self._close(pending)
        self._retries.clear()
        self._has_work.notify_all()
        self._has_event.notify_all()
        return abandoned

    def _fail(self, error: ServingError) -> None:
        """The device is lost: answer everybody, tell whoever can replace us."""
        with self._lock:
            if self._health not in _OPEN:
                return
            self._health = Health.FAILED
            self._failure = error
            abandoned = self._close_all()
        self._lose(error, abandoned)

    def _lose(self, error: ServingError, abandoned: list[Pending]) -> None:
        """See `_fail`; outside of the lock."""
        logger.error("%s: %s; %d requests are answered with an error", self.name, error, len(abandoned))
        if isinstance(error, WorkerLost):
            self.device.fail(error.message)  # whoever waits behind us would wait for ever
        self._answer(abandoned, error)
        if self._on_failed is not None:
            self._on_failed(error)

    def _refusal(self) -> ServingError:
        if self._failure is not None:
            return copy_of(self._failure)
        return ShuttingDown("the server is shutting down and takes no new requests")

    def _answer(self, pendings: list[Pending], error: ServingError | None = None) -> None:
        """Deliver what `_close` has reserved: rows, or the same error for the whole request."""
        for pending in pendings:
            try:
                pending.deliver(pending.output() if error is None else pending.failure(error))
            except Exception:
                logger.exception("%s: delivering request %d failed", self.name, pending.request.id)
        if pendings:
            with self._lock:
                self._num_delivering -= len(pendings)
                if not self._pending:
                    self._is_idle.notify_all()

    def _report(self, work: Work, error: str) -> None:
        if self._on_batch is None:
            return
        stats = BatchStats(
            num_sequences=len(work.batch.sequences),
            num_tokens=work.batch.num_tokens,
            queue_seconds=work.queue_seconds,
            run_seconds=max(0.0, work.done_at - work.turn_at),
            is_retry=work.is_retry,
            error=error,
            num_queued_tokens=self._scheduler.num_queued_tokens,
            num_queued_sequences=self._scheduler.num_queued_sequences,
            num_padding_tokens=work.num_padding_tokens,
        )
        try:
            self._on_batch(stats)
        except Exception:
            logger.exception("%s: on_batch failed", self.name)
