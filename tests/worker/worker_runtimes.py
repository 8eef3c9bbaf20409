"""Runtimes for worker processes under test: exact vectors, and every way to bring a process down.

Named on the command line of the worker (`--runtime-factory worker_runtimes:make`), never over the socket.
What a load does is told by `spec.config`; what a run does, by marker tokens.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

from hilbert.core import ModelSpec, OutputType
from hilbert.errors import UnsupportedArchitecture, WorkerLost
from hilbert.runtimes import tracing
from hilbert.runtimes.base import RuntimeSettings
from hilbert.runtimes.tracing import Tracer
from hilbert.testing.runtime import FakeRuntime

SEGFAULT, EXIT, HANG, KEEP_GIL, RAISE, DEVICE_LOST, SLOW, ABORT = range(900_001, 900_009)
ALLOCATE, NAN = 900_100, 900_101


class DangerousRuntime(FakeRuntime):
    """`FakeRuntime` with tokens that kill the process."""

    ballast: bytes = b""

    def run(self, prepared):
        ids = set(prepared.input_ids.tolist())
        if SEGFAULT in ids:
            ctypes.string_at(0)
        if ABORT in ids:
            os.abort()
        if EXIT in ids:
            os._exit(3)
        if HANG in ids:
            threading.Event().wait()
        if KEEP_GIL in ids:
            ctypes.PyDLL(None).sleep(1000)  # a native call that never lets go of the GIL
        if DEVICE_LOST in ids:
            raise WorkerLost("the device fell off the bus")
        if SLOW in ids:
            time.sleep(0.3)
        if ALLOCATE in ids:
            np.ones(1 << 40, np.uint8)
        return super().run(prepared)


def make(spec: ModelSpec, settings: RuntimeSettings) -> DangerousRuntime:
    config = spec.config
    if (path := config.get("die_while_exists")) and Path(path).exists():
        os._exit(9)
    if (path := config.get("fail_while_exists")) and Path(path).exists():
        raise UnsupportedArchitecture("no program can run this architecture")
    if path := config.get("wait_for"):
        while not Path(path).exists():
            time.sleep(0.01)
    if path := config.get("traced_when"):
        trace_when(spec, Path(path))
    if path := config.get("start_child"):
        Path(path).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
    if size := config.get("fail_after_bytes"):
        pieces = [os.urandom(1000) for _ in range(size // 1000)]
        raise UnsupportedArchitecture(f"{len(pieces)} pieces are not what was expected")
    if size := config.get("allocate_bytes"):
        np.ones(size, np.uint8)
    runtime = DangerousRuntime(
        dimensions=spec.dimensions,
        seconds_per_batch=config.get("seconds_per_batch", 0.0),
        max_batch_tokens=config.get("max_batch_tokens", 2048),
        raise_on_token=RAISE,
        nan_on_token=NAN,
        outputs=frozenset(map(OutputType, config.get("outputs", ["dense"]))),
        num_labels=5,
        token_dimensions=config.get("token_dimensions", 6),
    )
    if size := config.get("ballast_bytes"):
        runtime.ballast = os.urandom(1) * size
    return runtime


def trace_when(spec: ModelSpec, path: Path) -> None:
    """What the load of a model without a cached graph does; the trace ends when the file is there."""

    def trace(self: Tracer, order: object, *, is_alone: bool = False) -> dict[str, object]:
        while not path.exists():
            time.sleep(0.01)
        return {}

    Tracer.trace = trace  # type: ignore[method-assign]
    tracing.trace(spec, "float32", Path(), False)
