"""Where the engines of a server live: in worker processes, one per device, or in this process.

`serve` does not know which. Opening an engine returns its handle at once; it answers when it is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from hilbert.cli.runtime import runtime_settings
from hilbert.config import ModelSettings, ServerSettings
from hilbert.config.machine import resident_bytes
from hilbert.core import ModelSpec, Output, Request
from hilbert.engine import EngineLimits, start_engine
from hilbert.engine.base import EngineHandle, Health
from hilbert.engine.stats import BatchStats
from hilbert.errors import EngineError, ModelLoading
from hilbert.observability import DeviceReading, WorkerReading
from hilbert.runtimes import has_cuda
from hilbert.runtimes.base import RuntimeInfo
from hilbert.runtimes.memory import DeviceMemory, device_memory
from hilbert.runtimes.tracing import Tracer, one_child
from hilbert.worker.spawn import WorkerProcess

OnBatch = Callable[[str, BatchStats], None]

# What a worker imports while it waits for its first order.
OPENVINO_MODULES = ("hilbert.runtimes.openvino_runtime",)


class Fleet(Protocol):
    """All engines of one server."""

    async def open(self, key: str, model: ModelSettings, spec: ModelSpec) -> EngineHandle:
        """Begin to load a model under a key of its own; its health says when it is there."""
        ...

    async def wait_loaded(self, key: str) -> None:
        """Return when the model can answer.

        Raises:
            ServingError: it cannot be loaded.
        """
        ...

    async def unload(self, key: str) -> None:
        """Give the model's memory back; harmless where it could not be loaded."""
        ...

    def used_bytes(self) -> int:
        """Memory of the processes beside this one."""
        ...

    def epoch(self) -> int | None:
        """How many workers were lost so far; None while what they held is not all back."""
        ...

    def device_memory(self, device: str) -> DeviceMemory:
        """The own memory of a device, at the last load, unload or ping; zeros while none is known."""
        ...

    def workers(self) -> list[WorkerReading]:
        """The worker processes."""
        ...

    def devices(self) -> list[DeviceReading]:
        """The devices with memory of their own."""
        ...

    async def close(self) -> None:
        """Answer whoever waits and end everything; no process and no thread is left. Harmless twice."""
        ...


def device_of(model: ModelSettings) -> str:
    """Models with the same answer share a worker."""
    if model.device == "auto":
        return "cuda:0" if model.engine != "openvino" and has_cuda() else "cpu"
    return "cuda:0" if model.device == "cuda" else model.device


def _limits(model: ModelSettings, settings: ServerSettings) -> EngineLimits:
    return EngineLimits(model.max_batch_tokens, model.max_batch_requests, settings.worker_timeout)


class WorkerFleet:
    """One supervised worker process per device."""

    def __init__(self, settings: ServerSettings, first: WorkerProcess | None, on_batch: OnBatch) -> None:
        from hilbert.worker.client import WorkerEngine
        from hilbert.worker.supervisor import Supervisor

        self._settings = settings
        self._first = first
        self._on_batch = on_batch
        self._supervisors: dict[str, Supervisor] = {}
        self._engines: dict[str, tuple[Supervisor, WorkerEngine]] = {}

    async def open(self, key: str, model: ModelSettings, spec: ModelSpec) -> EngineHandle:
        """See `Fleet`."""
        from hilbert.worker.settings import SupervisorSettings
        from hilbert.worker.supervisor import Supervisor

        device = device_of(model)
        supervisor = self._supervisors.get(device)
        if supervisor is None:
            first, self._first = self._first, None
            supervisor = Supervisor(
                SupervisorSettings(
                    worker_timeout_seconds=self._settings.worker_timeout,
                    preload=OPENVINO_MODULES if device == "cpu" else (),
                    log_level=self._settings.log_level,
                    is_json_log=self._settings.json_output,
                ),
                first=first,
                on_batch=self._on_batch,
            )
            self._supervisors[device] = supervisor
            await supervisor.start()
        limits = _limits(model, self._settings)
        engine = supervisor.begin_load(key, spec, runtime_settings(model, self._settings), limits)
        self._engines[key] = (supervisor, engine)
        return engine

    async def wait_loaded(self, key: str) -> None:
        """See `Fleet`."""
        supervisor, engine = self._engines[key]
        await supervisor.wait_loaded(engine)

    async def unload(self, key: str) -> None:
        """See `Fleet`."""
        supervisor, engine = self._engines.pop(key)
        if supervisor.models.get(key) is engine:
            await supervisor.unload(key)

    def used_bytes(self) -> int:
        """See `Fleet`."""
        pids = [supervisor.pid for supervisor in list(self._supervisors.values())]
        if self._first is not None:
            pids.append(self._first.pid)
        return sum(resident_bytes(pid) for pid in pids if pid is not None)

    def epoch(self) -> int | None:
        """See `Fleet`."""
        epochs = [supervisor.epoch for supervisor in self._supervisors.values()]
        known = [epoch for epoch in epochs if epoch is not None]
        return sum(known) if len(known) == len(epochs) else None

    def device_memory(self, device: str) -> DeviceMemory:
        """See `Fleet`."""
        supervisor = self._supervisors.get(device)
        return DeviceMemory() if supervisor is None else supervisor.device

    def workers(self) -> list[WorkerReading]:
        """See `Fleet`."""
        return [
            WorkerReading(device, 0 if s.pid is None else resident_bytes(s.pid), s.num_restarts)
            for device, s in list(self._supervisors.items())  # asked from a thread, as the metrics are
        ]

    def devices(self) -> list[DeviceReading]:
        """See `Fleet`."""
        return [
            DeviceReading(device, s.device.used_bytes, s.device.total_bytes)
            for device, s in list(self._supervisors.items())
            if s.device.total_bytes
        ]

    async def close(self) -> None:
        """See `Fleet`."""
        supervisors, self._supervisors = self._supervisors, {}
        for supervisor in supervisors.values():
            await supervisor.drain(0.0)
        first, self._first = self._first, None
        if first is not None:
            first.close()


class LocalFleet:
    """Engines on threads of this process."""

    def __init__(self, settings: ServerSettings, on_batch: OnBatch) -> None:
        self._settings = settings
        self._on_batch = on_batch
        self._devices: dict[str, Any] = {}
        self._engines: dict[str, tuple[LoadingEngine, asyncio.Task[None]]] = {}
        self._tracer = Tracer()

    async def open(self, key: str, model: ModelSettings, spec: ModelSpec) -> EngineHandle:
        """See `Fleet`."""
        handle = LoadingEngine(key)
        self._engines[key] = (handle, asyncio.create_task(self._load(handle, key, model, spec)))
        return handle

    async def _load(self, handle: LoadingEngine, key: str, model: ModelSettings, spec: ModelSpec) -> None:
        from hilbert.engine import LocalEngine
        from hilbert.runtimes import load_runtime

        try:
            with one_child(self._tracer):  # `to_thread` takes the context along
                runtime = await asyncio.to_thread(load_runtime, spec, runtime_settings(model, self._settings))
        except BaseException:
            handle.has_failed = True
            raise
        limits = _limits(model, self._settings)
        on_batch = partial(self._on_batch, key)
        engine = start_engine(runtime, limits, self._devices, key, on_batch=on_batch)
        handle.loaded = LocalEngine(engine)

    async def wait_loaded(self, key: str) -> None:
        """See `Fleet`."""
        try:
            await self._engines[key][1]
        finally:
            if all(task.done() for _, task in self._engines.values()):
                await asyncio.to_thread(self._tracer.close)

    async def unload(self, key: str) -> None:
        """See `Fleet`."""
        if key not in self._engines:  # a model that leaves while the server does
            return
        handle, task = self._engines.pop(key)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _end(handle)

    def used_bytes(self) -> int:
        """See `Fleet`."""
        return 0

    def epoch(self) -> int | None:
        """See `Fleet`."""
        return 0

    def device_memory(self, device: str) -> DeviceMemory:
        """See `Fleet`."""
        return device_memory([device])

    def workers(self) -> list[WorkerReading]:
        """See `Fleet`."""
        return []

    def devices(self) -> list[DeviceReading]:
        """See `Fleet`."""
        loaded = [handle.loaded for handle, _ in self._engines.values() if handle.loaded is not None]
        names = dict.fromkeys(engine.info.device for engine in loaded)
        memories = {name: device_memory([name]) for name in names}
        return [DeviceReading(n, m.used_bytes, m.total_bytes) for n, m in memories.items() if m.total_bytes]

    async def close(self) -> None:
        """See `Fleet`."""
        for key in list(self._engines):
            await self.unload(key)
        await asyncio.to_thread(self._tracer.close)


async def _end(handle: LoadingEngine) -> None:
    if handle.loaded is not None:
        await asyncio.to_thread(handle.loaded.engine.stop)
        handle.loaded.engine.runtime.close()
        handle.loaded = None


class LoadingEngine:
    """Implements `EngineHandle` for an engine that is being loaded in this process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.loaded: Any = None
        self.has_failed = False

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        if self.loaded is not None:
            health: Health = self.loaded.health
            return health
        return Health.FAILED if self.has_failed else Health.LOADING

    @property
    def info(self) -> RuntimeInfo:
        """What the runtime says of itself.

        Raises:
            EngineError: it is not loaded.
        """
        if self.loaded is None:
            raise EngineError(f"model {self._name} has not been loaded yet")
        info: RuntimeInfo = self.loaded.info
        return info

    async def run(self, request: Request) -> Output:
        """See `EngineHandle`."""
        if self.loaded is None:
            raise ModelLoading(f"model {self._name} is being loaded", retry_after_seconds=1.0)
        output: Output = await self.loaded.run(request)
        return output
