"""A GPU that is none, in a worker process of its own: torch's words for memory, and models that hold some.

Named on the command line of the worker (`--runtime-factory gpu_runtimes:make`). Each model holds
100 MB, and 160 once it has seen a long text; others on the device keep 50 MB, and torch's own context 20 MB.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from hilbert.core import BatchOutput, ModelSpec
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings
from hilbert.testing.runtime import FakeRuntime

MB = 1_000_000
LONG = 50
TOTAL, OTHERS, CONTEXT = 350 * MB, 50 * MB, 20 * MB
_held: dict[int, int] = {}


class GpuRuntime(FakeRuntime):
    """Holds memory of the device from its making to its end."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.dimensions)
        _held[id(self)] = 100 * MB

    @property
    def info(self) -> RuntimeInfo:
        return replace(super().info, device="cuda:0")

    def run(self, prepared: Any) -> BatchOutput:
        if len(prepared.input_ids) >= LONG:
            _held[id(self)] = 160 * MB  # what torch keeps of a large batch
        return super().run(prepared)

    def close(self) -> None:
        super().close()
        del _held[id(self)]


def make(spec: ModelSpec, settings: RuntimeSettings) -> FakeRuntime:
    assert settings.device == "cuda", settings
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        empty_cache=lambda: None,
        memory_reserved=lambda device: sum(_held.values()),
        mem_get_info=lambda device: (TOTAL - OTHERS - CONTEXT - sum(_held.values()), TOTAL),
    )
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    return GpuRuntime(spec)
