"""The inside of a worker process: orders in, engines at work, answers out. Threads, no asyncio.

It decides nothing about requests (the engine does) and nothing about restarts (the front does). It
knows how to build an engine from an order, and that it must not outlive its front.

Threads: the main thread reads frames; two others build and unload engines, one at a time (`orders.py`),
while the rest serve; the engines' own threads write the answers. An error that
nobody expected ends the process: the front starts a new one and sends everything again, which beats a
worker that is half alive.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

import msgspec

import hilbert
from hilbert.config.machine import give_memory_back, resident_bytes
from hilbert.core import Batch, BatchOutput, ModelSpec, Output, Request
from hilbert.engine import BatchStats, Device, Engine, has_rows, start_engine
from hilbert.errors import EngineError, ServingError, ShuttingDown, WorkerLost
from hilbert.logs import log_to_stderr
from hilbert.runtimes.base import Runtime, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.memory import DeviceMemory, device_memory, give_device_memory_back
from hilbert.worker.answers import encode_result
from hilbert.worker.frames import (
    BatchReport,
    Buffer,
    Cancel,
    Frame,
    FrameReader,
    HealthReport,
    Hello,
    Kind,
    Load,
    Loaded,
    Ping,
    Pong,
    Shutdown,
    Submit,
    Unload,
    Unloaded,
    Welcome,
    WorkerStats,
    decode_spec,
    decode_submit,
    encode,
    encode_error,
    memoryview_bytes,
)
from hilbert.worker.journal import NO_LANE, NUM_LANES, Journal
from hilbert.worker.orders import EXIT_BROKEN, Orders, TraceNeeded

logger = logging.getLogger(__name__)

MakeRuntime = Callable[[ModelSpec, RuntimeSettings], Runtime[Any]]

# Below this, joining buffers is cheaper than a vector of them.
_JOIN_BYTES = 64 << 10
_MAX_BUFFERS = 512  # IOV_MAX is 1024 on Linux and macOS
# Exit statuses; the front only tells them from 0.
_EXIT_DEVICE_LOST = 75


def run(fd: int, journal_fd: int, runtime_factory: str | None, preload: Sequence[str]) -> None:
    """Serve the front on an inherited socket until it hangs up. Does not return.

    Args:
        fd: the connected unix socket.
        journal_fd: memory shared with the front.
        runtime_factory: ``"module:function"`` instead of `runtimes.load_runtime`.
        preload: modules to import right away.
    """
    status = EXIT_BROKEN
    try:
        channel = Channel(socket.socket(fileno=fd))
        channel.send(encode(Kind.HELLO, Hello(os.getpid(), hilbert.__version__)))
        for module in preload:
            # Only a head start: whoever needs the module says what is wrong with it.
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        Worker(channel, Journal(journal_fd), _runtime_maker(runtime_factory)).serve()
        status = 0
    except (BrokenPipeError, ConnectionResetError):  # the front is gone: there is nobody to tell
        status = 0
    except BaseException:
        logger.exception("worker %d broke", os.getpid())
    finally:
        sys.stderr.flush()
        os._exit(status)  # native libraries may hang when they are taken down properly


def _runtime_maker(factory: str | None) -> MakeRuntime:
    if factory is not None:
        module, _, name = factory.partition(":")
        make: MakeRuntime = getattr(importlib.import_module(module), name)
        return make

    def load(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
        from hilbert.runtimes import load_runtime

        return load_runtime(spec, settings)

    return load


class Channel:
    """The socket to the front. `send` may be called from any thread; a frame is never torn."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, buffers: list[Buffer]) -> None:
        """Write whole frames; blocks while the front is behind."""
        if sum(map(memoryview_bytes, buffers)) <= _JOIN_BYTES:
            with self._lock:
                self._sock.sendall(b"".join(buffers))
            return
        with self._lock:
            for start in range(0, len(buffers), _MAX_BUFFERS):
                self._send_vector([memoryview(b).cast("B") for b in buffers[start : start + _MAX_BUFFERS]])

    def receive_into(self, buffer: memoryview) -> int:
        """Block until something arrives; 0 when the front has hung up."""
        return self._sock.recv_into(buffer)

    def _send_vector(self, views: list[memoryview]) -> None:
        while views:
            sent = self._sock.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]


class WatchedRuntime:
    """A runtime that writes into the journal what it is computing.

    Each thread that uses it gets a lane; `close` gives the lanes back.

    Attributes:
        is_lost: a run has raised `WorkerLost`.
    """

    def __init__(self, runtime: Runtime[Any], journal: Journal, free_lanes: list[int]) -> None:
        self._runtime = runtime
        self._journal = journal
        self._free_lanes = free_lanes
        self._lanes: dict[int, int] = {}
        self.is_lost = False

    @property
    def info(self) -> RuntimeInfo:
        """See `Runtime`."""
        return self._runtime.info

    @property
    def num_slots(self) -> int:
        """See `Runtime`."""
        return self._runtime.num_slots

    def prepare(self, batch: Batch) -> tuple[list[int], Any]:
        """See `Runtime`."""
        request_ids = list(dict.fromkeys([s.request_id for s in batch.sequences]))
        lane = self._enter(request_ids)
        try:
            return request_ids, self._runtime.prepare(batch)
        finally:
            self._journal.leave(lane, is_batch_done=False)

    def num_padding_tokens(self, prepared: tuple[list[int], Any]) -> int:
        """See `Runtime`."""
        return self._runtime.num_padding_tokens(prepared[1])

    def run(self, prepared: tuple[list[int], Any]) -> BatchOutput:
        """See `Runtime`."""
        lane = self._enter(prepared[0])
        try:
            return self._runtime.run(prepared[1])
        except WorkerLost:
            self.is_lost = True
            lane = -1  # the entry stays: these requests are the suspects
            raise
        finally:
            if lane >= 0:
                self._journal.leave(lane)

    def close(self) -> None:
        """See `Runtime`."""
        self._runtime.close()
        self._free_lanes += self._lanes.values()
        self._lanes.clear()

    def _enter(self, request_ids: list[int]) -> int:
        thread = threading.get_ident()
        lane = self._lanes.get(thread)
        if lane is None:
            # Lists are thread-safe enough for this. Without a free lane nobody can be cleared.
            lane = self._lanes[thread] = self._free_lanes.pop() if self._free_lanes else NO_LANE
        self._journal.enter(lane, request_ids)
        return lane


class _Model:
    """One loaded model."""

    __slots__ = ("engine", "runtime")

    def __init__(self, engine: Engine[Any], runtime: WatchedRuntime) -> None:
        self.engine = engine
        self.runtime = runtime


class Worker:
    """The engines of this process, and the conversation with the front.

    Args:
        channel: to the front.
        journal: shared with the front.
        make_runtime: builds a runtime; runs on the threads of `Orders`.
    """

    def __init__(self, channel: Channel, journal: Journal, make_runtime: MakeRuntime) -> None:
        self._channel = channel
        self._journal = journal
        self._make_runtime = make_runtime
        self._free_lanes = list(range(NUM_LANES - 1, -1, -1))
        self._devices: dict[str, Device] = {}
        self._models: dict[int, _Model] = {}
        self._orders = Orders()
        self._traced: set[int] = set()  # models whose trace is waited for
        self._dropped: set[int] = set()  # those of them that were unloaded meanwhile
        self._outbox = threading.local()  # answers of the batch that this thread is delivering

    def serve(self) -> None:
        """Read orders until the front hangs up or says goodbye."""
        self._orders.start()
        reader = FrameReader()
        while num_bytes := self._channel.receive_into(reader.get_buffer()):
            for frame in reader.received(num_bytes):
                if isinstance(frame.meta, Shutdown):
                    self._shut_down(frame.meta)
                    return
                self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        meta = frame.meta
        if isinstance(meta, Submit):
            self._submit(meta, frame)
        elif isinstance(meta, Cancel):
            model = self._models.get(meta.model)
            if model is not None:
                model.engine.cancel(meta.request)
        elif isinstance(meta, Ping):
            self._channel.send(encode(Kind.PONG, Pong(meta.number, self._stats())))
        elif isinstance(meta, Load):
            self._orders.put(lambda: self._load(meta))
        elif isinstance(meta, Unload):
            self._orders.put(lambda: self._unload(meta))
        elif isinstance(meta, Welcome):
            log_to_stderr(meta.log_level, is_json=meta.is_json_log)
        else:
            raise EngineError(f"a worker does not take {Kind(frame.kind).name} frames")

    # -- requests ---------------------------------------------------------------------------------

    def _submit(self, meta: Submit, frame: Frame) -> None:
        request = decode_submit(meta, frame.body, monotonic())
        model = self._models.get(meta.model)
        if model is None:
            self._refuse(request, EngineError(f"the worker has not loaded model {meta.model}"))
            return
        try:
            model.engine.submit(request, self._deliver)
        except WorkerLost:
            pass  # this process is about to end, and the front will send the request to the next one
        except ServingError as error:
            self._refuse(request, error)

    def _refuse(self, request: Request, error: ServingError) -> None:
        errors = dict.fromkeys(range(len(request.sequences)), error)
        self._send_all(encode_result(Output(request.id, errors=errors)))

    def _deliver(self, output: Output) -> None:
        """Take an answer, from an engine's thread.

        Answers with rows come in one go per batch, and `on_batch` follows on the same thread: they are
        kept until then and leave in one system call, except those that are too large for one frame.
        Others are failures of whole requests.
        """
        with _fatal():
            self._deliver_or_raise(output)

    def _deliver_or_raise(self, output: Output) -> None:
        if has_rows(output):
            frames = encode_result(output)
            if len(frames) == 1:
                self._kept().extend(frames[0])
            else:
                self._send_all(frames)
        elif not any(isinstance(error, WorkerLost) for error in output.errors.values()):
            self._send_all(encode_result(output))
        # A lost device is no answer: the front sends the request to the next worker.

    def _send_all(self, frames: list[list[Buffer]]) -> None:
        for frame in frames:
            self._channel.send(frame)

    def _report_batch(self, model: int, stats: BatchStats) -> None:
        with _fatal():
            kept = self._kept()
            kept.extend(encode(Kind.BATCH, BatchReport(model, stats)))
            self._outbox.kept = []
            self._channel.send(kept)

    def _kept(self) -> list[Buffer]:
        kept: list[Buffer] | None = getattr(self._outbox, "kept", None)
        if kept is None:
            kept = self._outbox.kept = []
        return kept

    def _fail(self, model: int, runtime: WatchedRuntime, error: ServingError) -> None:
        """A device is lost or hangs: say so and end. What has been computed leaves first."""
        if kept := self._kept():
            self._channel.send(kept)
        self._channel.send(encode(Kind.HEALTH, HealthReport(model, error.message, not runtime.is_lost)))
        logger.error("worker %d ends: %s", os.getpid(), error)
        os._exit(_EXIT_DEVICE_LOST)

    # -- models, one at a time (see `Orders`) ------------------------------------------------------

    def _load(self, order: Load) -> None:
        began = monotonic()
        try:
            if order.model in self._dropped:  # while its trace was waited for
                raise ShuttingDown(f"model {order.key} was unloaded before it was there")
            runtime = WatchedRuntime(
                self._make_runtime(decode_spec(order), order.settings), self._journal, self._free_lanes
            )
            engine = self._start_engine(order, runtime)
        except TraceNeeded:
            self._traced.add(order.model)
            self._channel.send(encode(Kind.LOADED, Loaded(order.model)))
            raise
        except Exception as error:
            if not isinstance(error, ServingError):
                logger.exception("%s cannot be loaded", order.key)
            answer = Loaded(order.model, error=encode_error(error))
        else:
            self._models[order.model] = _Model(engine, runtime)
            answer = Loaded(order.model, info=runtime.info)
            logger.info("worker %d has loaded %s in %.2f s", os.getpid(), order.key, monotonic() - began)
        if answer.error is not None:
            _give_memory_back()  # nothing refers to it any more, the error is gone
        answer = msgspec.structs.replace(answer, device=self._device_memory())
        self._channel.send(encode(Kind.LOADED, answer))
        if self._settle(order.model):
            self._drop(order.model)

    def _settle(self, number: int) -> bool:
        """No trace is waited for any more; whether the model was unloaded meanwhile."""
        was_dropped = number in self._dropped
        self._traced.discard(number)
        self._dropped.discard(number)
        return was_dropped

    def _start_engine(self, order: Load, runtime: WatchedRuntime) -> Engine[Any]:
        return start_engine(
            runtime,
            order.limits,
            self._devices,
            order.key,
            on_batch=lambda stats: self._report_batch(order.model, stats),
            on_failed=lambda error: self._fail(order.model, runtime, error),
        )

    def _unload(self, order: Unload) -> None:
        if order.model in self._traced:
            self._dropped.add(order.model)
        self._drop(order.model)
        self._channel.send(encode(Kind.UNLOADED, Unloaded(order.model, self._device_memory())))

    def _drop(self, number: int) -> None:
        model = self._models.pop(number, None)
        if model is not None:
            model.engine.stop()
            model.runtime.close()
            del model
            _give_memory_back()

    def _shut_down(self, order: Shutdown) -> None:
        deadline = monotonic() + order.drain_seconds
        for model in list(self._models.values()):
            model.engine.drain(max(0.0, deadline - monotonic()))
            model.engine.stop()  # an engine counts a request as answered just before it delivers

    # -- numbers ----------------------------------------------------------------------------------

    def _stats(self) -> WorkerStats:
        models = list(self._models.items())
        return WorkerStats(
            resident_bytes(),
            {number: model.engine.num_queued_tokens for number, model in models},
            {number: model.engine.num_queued_sequences for number, model in models},
            self._device_memory(),
        )

    def _device_memory(self) -> DeviceMemory:
        return device_memory(list(self._devices))


def _give_memory_back() -> None:
    gc.collect()
    give_device_memory_back()
    give_memory_back()


class _fatal:
    """What fails in here would leave a caller waiting for good, so it ends the process."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if not isinstance(error, BrokenPipeError | ConnectionResetError):  # then the front is gone
                logger.error("worker %d broke", os.getpid(), exc_info=error)
            os._exit(EXIT_BROKEN)
