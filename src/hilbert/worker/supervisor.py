"""Keeps one worker process running, and answers every request that was meant for it.

It decides when a worker counts as lost, when to start the next one, and when to stop hoping. What
becomes of the requests is `ledger`'s decision. It does not know what a model is, nor HTTP.

A worker is lost when its socket closes, when the process exits, when it reports a lost device, when it
answers no ping for `worker_timeout_seconds` while the process lives (stopped, or a thread that keeps
the GIL), or when a suspect on trial makes no progress. It is killed, with its process group, and
replaced; every model is loaded again, in the order in which it came.

The invariant: **every request that `post` accepted is answered exactly once**: with its vectors, with
its own error, or, when no new worker is ready in time, with `WorkerLost`, which may be retried. "In
time" is `recovery_seconds` after the loss was noticed or, when it was noticed at once, up to
`worker_timeout_seconds` more. Deadlines of requests go on counting.

Everything here runs on one event loop; the only other thread per worker waits for its exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import hilbert
from hilbert.core import ModelSpec, Request
from hilbert.engine import BatchStats, Health
from hilbert.errors import (
    EngineError,
    ModelLoading,
    RequestTimeout,
    ServingError,
    ShuttingDown,
    WorkerLost,
)
from hilbert.runtimes.base import RuntimeSettings
from hilbert.worker.answers import Parts, decode_result
from hilbert.worker.client import Pending, WorkerEngine
from hilbert.worker.frames import (
    BatchReport,
    Cancel,
    EngineLimits,
    Frame,
    FrameError,
    HealthReport,
    Hello,
    Kind,
    Loaded,
    Pong,
    Result,
    Shutdown,
    Unload,
    Welcome,
    decode_error,
    encode,
    encode_load,
    encode_submit,
)
from hilbert.worker.ledger import Ledger, Loss
from hilbert.worker.link import End, Link
from hilbert.worker.spawn import WorkerProcess, prestart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """How patient to be.

    Attributes:
        worker_timeout_seconds: a worker that gives no sign of life for so long, or computes one batch
            for so long, is replaced.
        first_load_timeout_seconds: the same limit while the first models are loaded and nobody is served
            yet (importing torch from a cold disk holds the GIL).
        recovery_seconds: how long callers wait for the new worker once a hang was noticed.
        drain_seconds: how long `drain` lets requests finish.
        exit_seconds: how long a worker that was told to exit may take before it is killed.
        start_seconds: how long a new process may take to say hello.
        slow_retry_seconds: pause between attempts after `max_fast_failures` in a row.
        max_fast_failures: workers in a row that died while they started, before health is FAILED.
        runtime_factory: ``"module:function"``, see `spawn.prestart`; for tests and for measuring.
        preload: modules that a worker imports at its start.
        log_level: of the workers, see `logs.log_to_stderr`.
    """

    worker_timeout_seconds: float = 30.0
    first_load_timeout_seconds: float = 300.0
    recovery_seconds: float = 4.0
    drain_seconds: float = 30.0
    exit_seconds: float = 5.0
    start_seconds: float = 60.0
    slow_retry_seconds: float = 10.0
    max_fast_failures: int = 5
    runtime_factory: str | None = None
    preload: tuple[str, ...] = ()
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class Restart:
    """A worker was lost.

    Attributes:
        loss: how.
        reason: in words, for the log.
        num_suspects: requests that were being computed.
        num_convicted: requests that are blamed for it, and answered with an error.
        num_waiting: requests that wait for the next worker.
    """

    loss: Loss
    reason: str
    num_suspects: int
    num_convicted: int
    num_waiting: int


# The first restart is immediate; a second fast failure in a row waits so long, each further one doubles it.
_FIRST_PAUSE_SECONDS = 0.1
# A worker that lived at least so long after it was ready did not fail fast.
_STABLE_SECONDS = 1.0
# The more pings, the more exactly a hang is noticed; each costs some 50 microseconds.
_PINGS_PER_LIMIT = 8
_MAX_PING_SECONDS = 1.0
# How long a suspect of a hang may compute without finishing a batch: it has been given a whole limit
# before, and others wait behind it. Slow models get a multiple of the longest batch that they ever took.
_MIN_TRIAL_SECONDS = 1.5
_TRIAL_FACTOR = 4.0
# A model whose loading has taken the worker down so often is not tried again with the others for a while.
_MAX_LOST_LOADS = 2
_FAILED_MODEL_PAUSE_SECONDS = 60.0


class Supervisor:
    """One worker process and the models in it. Implements `client.Post`.

    Args:
        settings: how patient to be.
        first: a process that was started ahead of time, by `spawn.prestart`.
        on_batch: called with the model's key and the numbers of every batch.
        on_restart: called after every loss.

    Attributes:
        num_restarts: workers lost so far.
        resident_bytes: memory of the worker at the last ping.
    """

    def __init__(
        self,
        settings: SupervisorSettings | None = None,
        *,
        first: WorkerProcess | None = None,
        on_batch: Callable[[str, BatchStats], None] | None = None,
        on_restart: Callable[[Restart], None] | None = None,
    ) -> None:
        self._settings = settings or SupervisorSettings()
        self._first = first
        self._on_batch = on_batch
        self._on_restart = on_restart
        self.num_restarts = 0
        self.resident_bytes = 0
        self._models: dict[str, WorkerEngine] = {}
        self._by_number: dict[int, WorkerEngine] = {}
        self._loading: dict[int, asyncio.Future[None]] = {}  # first loads
        self._unloading: dict[int, asyncio.Future[None]] = {}
        self._ledger = Ledger()
        self._pending: dict[int, Pending] = {}
        self._next_id = 1
        self._next_number = 1
        self._is_draining = False
        self._is_closed = False
        self._has_given_up = False
        self._num_fast_failures = 0
        self._last_loss: Loss | None = None
        self._idle: asyncio.Future[None] | None = None
        # Of the present worker:
        self._link: Link | None = None  # from its hello to its loss
        self._pid: int | None = None
        self._lived_seconds: float | None = None  # the last one, after it was ready
        self._ordered: list[int] = []  # loads that it has been told and not answered, in order
        self._ready: set[int] = set()  # models that it has loaded
        self._has_answered = False  # any request
        # Timers:
        self._trial_timer: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._task: asyncio.Task[None] | None = None

    # -- for the owner ----------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Process id of the present worker."""
        return self._pid

    @property
    def num_pending(self) -> int:
        """Requests that are not answered."""
        return len(self._pending)

    @property
    def models(self) -> dict[str, WorkerEngine]:
        """The models by key, failed ones included."""
        return dict(self._models)

    async def start(self) -> None:
        """Begin to keep a worker alive. Does not wait for it."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._supervise(), name="hilbert-supervisor")

    async def load(
        self,
        key: str,
        spec: ModelSpec,
        settings: RuntimeSettings,
        limits: EngineLimits | None = None,
    ) -> WorkerEngine:
        """Load a model and wait until it can answer.

        Args:
            key: names the model; must be free.
            spec: what to load.
            settings: how to run it.
            limits: of its batches; the time limit of a batch is `worker_timeout_seconds` where None.

        Raises:
            ModelError: it cannot be loaded.
            EngineError: the worker died of it, or the key is taken.
            ShuttingDown: draining.
        """
        engine = self.begin_load(key, spec, settings, limits)
        await self.wait_loaded(engine)
        return engine

    def begin_load(
        self,
        key: str,
        spec: ModelSpec,
        settings: RuntimeSettings,
        limits: EngineLimits | None = None,
    ) -> WorkerEngine:
        """As `load`, without waiting: the engine's health is LOADING until it can answer."""
        if self._is_draining or self._is_closed:
            raise ShuttingDown("the server is shutting down")
        if key in self._models:
            raise EngineError(f"model {key} is loaded already")
        limits = limits or EngineLimits(batch_timeout_seconds=self._settings.worker_timeout_seconds)
        engine = WorkerEngine(self, key, self._next_number, spec, settings, limits)
        self._next_number += 1
        self._models[key] = self._by_number[engine.number] = engine
        self._loading[engine.number] = self._loop.create_future()
        self._order_load(engine)
        return engine

    async def wait_loaded(self, engine: WorkerEngine) -> None:
        """Wait for the end of a first load; a model that cannot be loaded is forgotten.

        Raises:
            ServingError: why it cannot be loaded.
        """
        future = self._loading.get(engine.number)
        if future is not None:
            await asyncio.shield(future)
        if engine.failure is not None:
            raise engine.failure

    async def unload(self, key: str, drain_seconds: float | None = None) -> None:
        """Answer what the model has queued, then give its memory back."""
        engine = self._models.pop(key)
        engine.state = Health.DRAINING
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        waiting = [p.future for p in self._pending.values() if p.model is engine]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)
        for pending in [p for p in self._pending.values() if p.model is engine]:
            self._settle(pending.id, ShuttingDown(f"model {key} is being unloaded"))
        del self._by_number[engine.number]
        engine.state = Health.STOPPED
        self._settle_load(engine, ShuttingDown(f"model {key} is being unloaded"))
        if self._link is not None:
            self._ready.discard(engine.number)
            done = self._unloading[engine.number] = self._loop.create_future()
            self._link.write(encode(Kind.UNLOAD, Unload(engine.number)))
            await done

    async def drain(self, drain_seconds: float | None = None) -> None:
        """Take no new requests, finish those that came, then end the worker. No process is left."""
        self._is_draining = True
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        if self._pending:
            self._idle = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle, seconds)
        self._is_closed = True
        for request_id in list(self._pending):
            self._settle(request_id, ShuttingDown("the server is shutting down"))
        if self._link is not None:
            self._link.write(encode(Kind.SHUTDOWN, Shutdown(0.0)))
            await self._link.until_exit(self._settings.exit_seconds)
        await self.close()

    async def close(self) -> None:
        """End at once: kill the worker, answer everybody. No process is left."""
        self._is_closed = self._is_draining = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._first is not None:
            self._first.close()
            self._first = None
        for request_id in list(self._pending):
            self._settle(request_id, ShuttingDown("the server is shutting down"))
        for engine in list(self._by_number.values()):
            self._settle_load(engine, ShuttingDown("the server is shutting down"))
            engine.state = Health.STOPPED
        if self._alarm is not None:
            self._alarm.cancel()

    # -- for WorkerEngine -------------------------------------------------------------------------

    def health_of(self, model: WorkerEngine) -> Health:
        """Whether the model can answer now."""
        if self._is_closed:
            return Health.STOPPED
        if self._is_draining:
            return Health.DRAINING
        if model.state is not Health.READY:
            return model.state
        if self._has_given_up:
            return Health.FAILED
        is_ready = (
            model.number in self._ready
            and not self._ledger.has_suspects
            and self._link is not None
            and self._link.is_responsive
        )
        return Health.READY if is_ready else Health.RECOVERING

    def post(self, model: WorkerEngine, request: Request) -> Pending:
        """Send a request, now or when there is a worker for it.

        Raises:
            CapacityError: loading or draining.
            WorkerLost: there is no worker and little hope.
        """
        if self._is_draining or model.state is not Health.READY or self._has_given_up:
            raise self._refusal(model)
        number = model.number
        request_id = self._next_id
        self._next_id += 1
        pending = Pending(request_id, model, request, self._loop.create_future())
        due = request.deadline
        frame = encode_submit(number, request_id, request, monotonic())
        if self._ledger.enter(request_id, number, self._ready) and self._link is not None:
            self._link.write(frame)
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
        if self._pending.pop(pending.id, None) is None:
            return
        if self._ledger.abandon(pending.id) and self._link is not None:
            self._link.write(encode(Kind.CANCEL, Cancel(pending.model.number, pending.id)))
        self._after_answer()

    def _refusal(self, model: WorkerEngine) -> ServingError:
        if self._is_draining or model.state in (Health.DRAINING, Health.STOPPED):
            return ShuttingDown("the server is shutting down and takes no new requests")
        if model.state is Health.LOADING:
            return ModelLoading(f"model {model.key} is being loaded", retry_after_seconds=1.0)
        if isinstance(model.failure, ServingError):
            return model.failure
        return self._hopeless()

    # -- one worker after the other ---------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            while not self._is_closed:
                end = await self._live()
                if self._is_closed:
                    return
                self._after_loss(end)
                if pause := self._pause_seconds():
                    await asyncio.sleep(pause)
        except Exception:  # a bug; leave nobody waiting
            logger.exception("the supervisor of the worker broke")
            self._give_up()

    async def _live(self) -> End:
        """The life of one worker."""
        settings = self._settings
        process, self._first = self._first, None
        if process is None:
            try:
                process = prestart(settings.runtime_factory, settings.preload)
            except OSError as error:
                return End(Loss.CRASHED, f"it cannot be started: {error}", frozenset(), monotonic())
        self._pid = process.pid
        link = Link(
            process,
            lambda frame: self._on_frame(link, frame),
            self._on_pong,
            min(settings.worker_timeout_seconds / _PINGS_PER_LIMIT, _MAX_PING_SECONDS),
            settings.start_seconds,
            settings.exit_seconds,
        )
        try:
            return await link.live()
        finally:
            self._lived_seconds = None if link.ready_at is None else monotonic() - link.ready_at
            self._link = None
            self._pid = None
            self._ready.clear()
            if self._trial_timer is not None:
                self._trial_timer.cancel()

    def _after_loss(self, end: End) -> None:
        """Blame somebody for it, and bound the wait of everybody else."""
        settings = self._settings
        self.num_restarts += 1
        self._last_loss = end.loss
        for done in self._unloading.values():
            done.set_result(None)  # what these models held is gone with the process
        self._unloading.clear()
        convicted = self._ledger.lost(end.loss, end.running)
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
        if not end.running:
            self._blame_load()
        self._count_failure(end)
        if self._num_fast_failures >= settings.max_fast_failures:
            self._give_up()
        if self._on_restart is not None:
            self._on_restart(
                Restart(end.loss, end.reason, len(end.running or ()), len(convicted), len(self._pending))
            )

    def _count_failure(self, end: End) -> None:
        """Count the workers in a row that died at their start; what a request did does not count."""
        lived = self._lived_seconds
        was_useful = self._has_answered or end.running != frozenset()
        if lived is None or (lived < _STABLE_SECONDS and not was_useful):
            self._num_fast_failures += 1
        else:
            self._num_fast_failures = 0

    def _blame_load(self) -> None:
        """It was lost while it computed nothing: perhaps the model that it was loading is the reason."""
        ordered, self._ordered = self._ordered, []
        engine = self._by_number.get(ordered[0]) if ordered else None
        if engine is None:
            return
        engine.num_lost_loads += 1
        if engine.num_lost_loads < _MAX_LOST_LOADS:
            return
        error = EngineError(
            f"the worker process died {engine.num_lost_loads} times while it loaded {engine.key}"
        )
        if engine.number in self._loading:
            self._settle_load(engine, error)
        elif len(self._by_number) > 1:
            self._set_failed(engine, error, _FAILED_MODEL_PAUSE_SECONDS)

    def _pause_seconds(self) -> float:
        if self._has_given_up:
            return self._settings.slow_retry_seconds
        if self._num_fast_failures < 2:
            return 0.0
        return _FIRST_PAUSE_SECONDS * 2.0 ** (self._num_fast_failures - 2)

    def _give_up(self) -> None:
        self._has_given_up = True
        for request_id in list(self._pending):
            self._settle(request_id, self._hopeless())
        for engine in list(self._by_number.values()):
            self._settle_load(engine, self._hopeless())

    def _hopeless(self) -> WorkerLost:
        return WorkerLost(
            f"{self._num_fast_failures} workers in a row died while they started; see the server's log",
            retry_after_seconds=self._settings.slow_retry_seconds,
        )

    # -- what the worker says ---------------------------------------------------------------------

    def _on_frame(self, link: Link, frame: Frame) -> None:
        meta = frame.meta
        if isinstance(meta, Result):
            self._on_result(meta, frame.body)
        elif isinstance(meta, BatchReport):
            self._on_batch_report(meta)
        elif isinstance(meta, Loaded):
            self._on_loaded(link, meta)
        elif isinstance(meta, Hello):
            self._on_hello(link, meta)
        elif isinstance(meta, Unload):
            done = self._unloading.pop(meta.model, None)
            if done is not None:
                done.set_result(None)
        elif isinstance(meta, HealthReport):
            link.lose(Loss.HUNG if meta.is_hung else Loss.CRASHED, meta.reason)
        else:
            raise FrameError(f"a worker does not send {Kind(frame.kind).name} frames")

    def _on_hello(self, link: Link, hello: Hello) -> None:
        if hello.version != hilbert.__version__:
            link.lose(
                Loss.CRASHED,
                f"it is hilbert {hello.version} and this server is {hilbert.__version__}: restart the server",
            )
            return
        self._link = link
        link.write(encode(Kind.WELCOME, Welcome(self._settings.log_level)))
        self._ordered = []
        self._has_answered = False
        self._set_patience()
        for engine in self._by_number.values():
            if engine.state in (Health.LOADING, Health.READY):
                self._order_load(engine)
        self._note_ready()

    def _order_load(self, engine: WorkerEngine) -> None:
        if self._link is not None:
            self._ordered.append(engine.number)
            self._set_patience()
            self._link.write(
                encode_load(engine.number, engine.key, engine.spec, engine.settings, engine.limits)
            )

    def _on_loaded(self, link: Link, loaded: Loaded) -> None:
        self._ordered.remove(loaded.model)
        engine = self._by_number.get(loaded.model)
        if engine is not None:
            engine.num_lost_loads = 0
            if loaded.info is not None:
                engine.loaded_info = loaded.info
                engine.failure = None
                if engine.state is not Health.DRAINING:
                    engine.state = Health.READY
                self._ready.add(engine.number)
                self._settle_load(engine, None)
            else:
                assert loaded.error is not None
                error = decode_error(loaded.error)
                if engine.number in self._loading:
                    self._settle_load(engine, error)
                else:
                    self._set_failed(engine, error, self._settings.slow_retry_seconds)
        self._set_patience()
        self._note_ready()
        self._pump()

    def _on_result(self, result: Result, body: bytearray | memoryview) -> None:
        self._has_answered = True
        if result.num_part_sequences:
            self._on_part(result, body)
            return
        pending = self._pending.pop(result.request, None)
        may_send = self._ledger.answered(result.request)
        if pending is not None and not pending.future.done():
            request, parts = pending.request, pending.parts
            if parts is None:
                output = decode_result(result, body, request.id, len(request.sequences))
            else:
                output = parts.finish(result, body, len(request.sequences))
            pending.future.set_result(output)
        if may_send or not self._pending:
            self._after_answer()

    def _on_part(self, result: Result, body: bytearray | memoryview) -> None:
        pending = self._pending.get(result.request)
        if pending is None:  # nobody waits for it any more
            return
        if pending.parts is None:
            pending.parts = Parts(pending.request.id)
        pending.parts.add(result, body)

    def _on_batch_report(self, report: BatchReport) -> None:
        engine = self._by_number.get(report.model)
        if engine is None:
            return
        stats = report.stats
        engine.longest_batch_seconds = max(engine.longest_batch_seconds, stats.run_seconds)
        engine.queued_tokens = stats.num_queued_tokens
        engine.queued_sequences = stats.num_queued_sequences
        if self._on_batch is not None:
            self._on_batch(engine.key, stats)

    def _on_pong(self, pong: Pong) -> None:
        self.resident_bytes = pong.stats.resident_bytes
        for number, engine in self._by_number.items():
            engine.queued_tokens = pong.stats.queued_tokens.get(number, 0)
            engine.queued_sequences = pong.stats.queued_sequences.get(number, 0)

    def _note_ready(self) -> None:
        """When nothing is left to load, this worker has succeeded."""
        if self._link is not None and self._link.ready_at is None and not self._ordered:
            self._link.ready_at = monotonic()
            self._has_given_up = False

    def _set_patience(self) -> None:
        if self._link is not None:
            # Where another model has callers, they are promised the usual limit.
            is_first = not self._ready and any(number in self._loading for number in self._ordered)
            settings = self._settings
            self._link.timeout_seconds = (
                settings.first_load_timeout_seconds if is_first else settings.worker_timeout_seconds
            )

    def _settle_load(self, engine: WorkerEngine, error: Exception | None) -> None:
        """End a first load; a model that failed it is forgotten."""
        future = self._loading.pop(engine.number, None)
        if future is None:
            return
        if error is not None:
            engine.failure = error
            engine.state = Health.FAILED
            self._by_number.pop(engine.number, None)
            if self._models.get(engine.key) is engine:
                del self._models[engine.key]
        if not future.done():
            future.set_result(None)

    def _set_failed(self, engine: WorkerEngine, error: ServingError, pause_seconds: float) -> None:
        """A model that was loaded before cannot be loaded again: try later."""
        logger.error("model %s cannot be loaded again: %s", engine.key, error)
        engine.state, engine.failure = Health.FAILED, error
        for pending in [p for p in self._pending.values() if p.model is engine]:
            self._settle(pending.id, error)
        self._loop.call_later(pause_seconds, self._load_again, engine)

    def _load_again(self, engine: WorkerEngine) -> None:
        if engine.state is Health.FAILED and self._by_number.get(engine.number) is engine:
            engine.state = Health.READY  # as far as orders are concerned; `_ready` says the truth
            engine.num_lost_loads = 0
            self._order_load(engine)

    # -- sending and answering --------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what may be sent."""
        link = self._link
        if link is None or link.is_lost:
            return
        now = monotonic()
        for request_id in self._ledger.next_to_send(self._ready):
            pending = self._pending[request_id]
            pending.give_up_at = None
            link.write(encode_submit(pending.model.number, request_id, pending.request, now))
            if self._ledger.trial == request_id and self._last_loss is Loss.HUNG:
                self._watch_trial(link, request_id, link.progress)

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

        self._trial_timer = self._loop.call_later(seconds, look)

    def _settle(self, request_id: int, error: ServingError) -> None:
        """Answer a request with an error, wherever it is."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        if self._ledger.abandon(request_id) and self._link is not None:
            self._link.write(encode(Kind.CANCEL, Cancel(pending.model.number, request_id)))
        if not pending.future.done():
            pending.future.set_exception(error)
        self._after_answer()

    def _after_answer(self) -> None:
        if self._ledger.has_waiting:
            self._pump()
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _set_alarm(self, due: float) -> None:
        """Look after deadlines at `due`, or earlier."""
        if due < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = due
            self._alarm = self._loop.call_later(max(0.0, due - monotonic()), self._ring)

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
