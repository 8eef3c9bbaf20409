"""Keeps one worker process running, and the models in it loaded.

It decides when to start the next worker and when to stop hoping. When a worker counts as lost is `link`'s
decision, and the requests lie on the `desk`. It does not know what a model is, nor HTTP.

A worker is lost when its socket closes, when the process exits, when it reports a lost device, when it
answers no ping for `worker_timeout_seconds` while the process lives (stopped, or a thread that keeps
the GIL), or when a suspect on trial makes no progress. It is killed, with its process group, and
replaced; every model is loaded again, in the order in which it came. A model that was being built when
the worker was lost comes last, and not while requests are tried alone: so it can be told which of them
brings workers down.

Everything here runs on one event loop; the only other thread per worker waits for its exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from time import monotonic

import hilbert
from hilbert.core import ModelSpec, Request
from hilbert.engine import BatchStats, EngineLimits, Health
from hilbert.errors import EngineError, ModelLoading, ServingError, ShuttingDown, WorkerLost
from hilbert.runtimes.base import RuntimeSettings
from hilbert.runtimes.memory import DeviceMemory
from hilbert.worker.client import Pending, WorkerEngine
from hilbert.worker.desk import Desk
from hilbert.worker.frames import (
    BatchReport,
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
    Unloaded,
    Welcome,
    decode_error,
    encode,
    encode_load,
)
from hilbert.worker.ledger import Loss
from hilbert.worker.link import End, Link
from hilbert.worker.settings import Restart, SupervisorSettings
from hilbert.worker.spawn import WorkerProcess, prestart

logger = logging.getLogger(__name__)

# The first restart is immediate; a second fast failure in a row waits so long, each further one doubles it.
_FIRST_PAUSE_SECONDS = 0.1
# A worker that lived at least so long after it was ready did not fail fast.
_STABLE_SECONDS = 1.0
# The more pings, the more exactly a hang is noticed; each costs some 50 microseconds.
_PINGS_PER_LIMIT = 8
_MAX_PING_SECONDS = 1.0
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
        device: memory of its device at the last ping, load or unload; zeros where that has none of its own.
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
        self.device = DeviceMemory()
        self._models: dict[str, WorkerEngine] = {}
        self._by_number: dict[int, WorkerEngine] = {}
        self._loading: dict[int, asyncio.Future[None]] = {}  # first loads
        self._unloading: dict[int, asyncio.Future[None]] = {}
        self._desk = Desk(self._settings, self._order_held)
        self._next_number = 1
        self._is_draining = False
        self._is_closed = False
        self._has_given_up = False
        self._num_fast_failures = 0
        # Of the present worker:
        self._pid: int | None = None
        self._lived_seconds: float | None = None  # the last one, after it was ready
        self._ordered: list[int] = []  # loads that it has been told and not answered, in order
        self._traced: list[int] = []  # of which it said that they wait for a trace
        self._held: list[int] = []  # loads that it will be told when no request is suspected
        self._task: asyncio.Task[None] | None = None

    # -- for the owner ----------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Process id of the present worker."""
        return self._pid

    @property
    def _link(self) -> Link | None:
        """The present worker, from its hello to its loss."""
        return self._desk.link

    @property
    def num_pending(self) -> int:
        """Requests that are not answered."""
        return self._desk.num_pending

    @property
    def epoch(self) -> int | None:
        """Workers lost so far; None while the models that were loaded are not all back."""
        held = (e.number for e in self._by_number.values() if e.state in (Health.READY, Health.DRAINING))
        return self.num_restarts if self._desk.ready.issuperset(held) else None

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
            raise _shutting_down()
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
        await self._desk.until_answered(engine, seconds)
        self._desk.refuse_all(lambda: ShuttingDown(f"model {key} is being unloaded"), engine)
        del self._by_number[engine.number]
        engine.state = Health.STOPPED
        self._settle_load(engine, ShuttingDown(f"model {key} is being unloaded"))
        if self._link is not None:
            self._desk.ready.discard(engine.number)
            done = self._unloading[engine.number] = self._loop.create_future()
            self._link.write(encode(Kind.UNLOAD, Unload(engine.number)))
            await asyncio.shield(done)  # it is told whether or not somebody still waits

    async def drain(self, drain_seconds: float | None = None) -> None:
        """Take no new requests, finish those that came, then end the worker. No process is left."""
        self._is_draining = True
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        await self._desk.until_idle(seconds)
        self._is_closed = True
        self._desk.refuse_all(_shutting_down)
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
        self._desk.refuse_all(_shutting_down)
        self._end_unloading()
        for engine in list(self._by_number.values()):
            self._settle_load(engine, _shutting_down())
            engine.state = Health.STOPPED
        self._desk.close()

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
            model.number in self._desk.ready
            and not self._desk.keeps_waiting
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
        return self._desk.enter(model, request)

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        self._desk.abandon(pending)

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
        self._lived_seconds = None
        try:
            link = self._begin_life()
        except (OSError, RuntimeError) as error:  # no file, no memory, no process, no thread is left
            return End(Loss.CRASHED, f"it cannot be started: {error}", frozenset(), monotonic())
        try:
            return await link.live()
        finally:
            self._lived_seconds = None if link.ready_at is None else monotonic() - link.ready_at
            self._pid = None
            self._desk.leave_worker()

    def _begin_life(self) -> Link:
        settings = self._settings
        process, self._first = self._first, None
        if process is None:
            process = prestart(settings.runtime_factory, settings.preload)
        try:
            link = Link(
                process,
                lambda frame: self._on_frame(link, frame),
                self._on_pong,
                min(settings.worker_timeout_seconds / _PINGS_PER_LIMIT, _MAX_PING_SECONDS),
                settings.start_seconds,
                settings.exit_seconds,
            )
        except (OSError, RuntimeError):
            process.close()
            raise
        self._pid = process.pid
        return link

    def _after_loss(self, end: End) -> None:
        """Blame somebody for it, and tell the owner."""
        self.num_restarts += 1
        self.device = DeviceMemory()
        self._end_unloading()
        num_convicted = self._desk.lose(end, was_building=bool(self._ordered))
        self._blame_load(end)
        self._count_failure(end)
        if self._num_fast_failures >= self._settings.max_fast_failures:
            self._give_up()
        if self._on_restart is not None:
            num_suspects = len(end.running or ())
            self._on_restart(
                Restart(end.loss, end.reason, num_suspects, num_convicted, self._desk.num_pending)
            )

    def _count_failure(self, end: End) -> None:
        """Count the workers in a row that died at their start; what a request did does not count."""
        lived = self._lived_seconds
        was_useful = self._desk.has_answered or end.running != frozenset()
        if lived is None or (lived < _STABLE_SECONDS and not was_useful):
            self._num_fast_failures += 1
        else:
            self._num_fast_failures = 0

    def _blame_load(self, end: End) -> None:
        """Perhaps the model that it was building is the reason; a traced one, if it computed nothing."""
        suspects = self._ordered or ([] if end.running else self._traced)
        engine = self._by_number.get(suspects[0]) if suspects else None
        self._ordered, self._traced = [], []
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
        self._desk.refuse_all(self._hopeless)
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
            self._desk.take(meta, frame.body)
        elif isinstance(meta, BatchReport):
            self._on_batch_report(meta)
        elif isinstance(meta, Loaded):
            self._on_loaded(link, meta)
        elif isinstance(meta, Hello):
            self._on_hello(link, meta)
        elif isinstance(meta, Unloaded):
            self.device = meta.device
            done = self._unloading.pop(meta.model, None)
            if done is not None:
                done.set_result(None)
        elif isinstance(meta, HealthReport):
            self._ordered, self._traced = [], []  # it says itself why, and it is no load
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
        self._desk.link = link
        welcome = Welcome(self._settings.log_level, self._settings.is_json_log)
        link.write(encode(Kind.WELCOME, welcome))
        self._ordered, self._traced, self._held = [], [], []
        self._desk.has_answered = False
        self._set_patience()
        for engine in self._by_number.values():
            if engine.state not in (Health.LOADING, Health.READY, Health.DRAINING):
                continue
            if engine.num_lost_loads:
                self._held.append(engine.number)
            else:
                self._order_load(engine)
        self._order_held()
        self._note_ready()

    def _order_held(self) -> None:
        """Load the models of which the last worker may have died, once no request is suspected of it."""
        if not self._held or self._ordered or self._desk.keeps_waiting:
            return
        held, self._held = self._held, []
        for number in held:
            if (engine := self._by_number.get(number)) is not None:
                self._order_load(engine)

    def _order_load(self, engine: WorkerEngine) -> None:
        if self._link is not None and not self._link.is_lost:
            self._ordered.append(engine.number)
            self._set_patience()
            self._link.write(
                encode_load(engine.number, engine.key, engine.spec, engine.settings, engine.limits)
            )

    def _on_loaded(self, link: Link, loaded: Loaded) -> None:
        (self._traced if loaded.model in self._traced else self._ordered).remove(loaded.model)
        if loaded.info is None and loaded.error is None:
            self._traced.append(loaded.model)  # the next one is being built now
            self._order_held()
            return
        self.device = loaded.device
        engine = self._by_number.get(loaded.model)
        if engine is not None:
            engine.num_lost_loads = 0
            if loaded.info is not None:
                engine.loaded_info = loaded.info
                engine.failure = None
                if engine.state is not Health.DRAINING:
                    engine.state = Health.READY
                self._desk.ready.add(engine.number)
                self._settle_load(engine, None)
            else:
                assert loaded.error is not None
                error = decode_error(loaded.error)
                if engine.number in self._loading:
                    self._settle_load(engine, error)
                else:
                    self._set_failed(engine, error, self._settings.slow_retry_seconds)
        self._desk.pump()
        self._order_held()
        self._set_patience()
        self._note_ready()

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
        self.device = pong.stats.device
        for number, engine in self._by_number.items():
            engine.queued_tokens = pong.stats.queued_tokens.get(number, 0)
            engine.queued_sequences = pong.stats.queued_sequences.get(number, 0)

    def _note_ready(self) -> None:
        """When nothing is left to load, this worker has succeeded."""
        is_loading = self._ordered or self._traced
        if self._link is not None and self._link.ready_at is None and not is_loading:
            self._link.ready_at = monotonic()
            self._has_given_up = False

    def _set_patience(self) -> None:
        if self._link is not None:
            # Where another model has callers, they are promised the usual limit.
            is_first = not self._desk.ready and any(
                number in self._loading for number in (*self._ordered, *self._traced)
            )
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

    def _end_unloading(self) -> None:
        """What was to be unloaded is gone with the process."""
        for done in self._unloading.values():
            done.set_result(None)
        self._unloading.clear()

    def _set_failed(self, engine: WorkerEngine, error: ServingError, pause_seconds: float) -> None:
        """A model that was loaded before cannot be loaded again: try later."""
        logger.error("model %s cannot be loaded again: %s", engine.key, error)
        engine.state, engine.failure = Health.FAILED, error
        self._desk.refuse_all(lambda: error, engine)
        self._loop.call_later(pause_seconds, self._load_again, engine)

    def _load_again(self, engine: WorkerEngine) -> None:
        if engine.state is Health.FAILED and self._by_number.get(engine.number) is engine:
            engine.state = Health.READY  # as far as orders are concerned; `Desk.ready` says the truth
            engine.num_lost_loads = 0
            self._order_load(engine)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server is shutting down")
