"""The one module that imports openvino.

It keeps OpenVINO from writing usage files and sending events, and makes the process's first call alone:
two threads making a process's first array inference together hung for good in 7 of 60 tries, holding
the GIL; with one call made first on one thread in none of 60.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # absence selects the stub
import openvino  # noqa: E402

from hilbert.errors import EngineError, WorkerLost  # noqa: E402

VERSION: str = openvino.__version__

_core: openvino.Core | None = None
_first_call = threading.Lock()


def compile_graph(graph: Path, config: dict[str, Any]) -> openvino.CompiledModel:
    """Compile a graph file for the CPU; one at a time in this process."""
    with _first_call:
        return _shared_core().compile_model(str(graph), "CPU", config)


def read_graph(graph: Path) -> openvino.Model:
    """Read an IR or ONNX file."""
    with _first_call:
        return _shared_core().read_model(str(graph))


def compile_model(model: openvino.Model, config: dict[str, Any]) -> openvino.CompiledModel:
    """Compile a model that is already in memory."""
    with _first_call:
        return _shared_core().compile_model(model, "CPU", config)


def first_inference(request: openvino.InferRequest, inputs: list[Any]) -> Any:
    """The first inference of a request, never beside another first one."""
    with _first_call:
        return request.infer(inputs)


def infer(request: openvino.InferRequest, inputs: list[Any], what: str) -> None:
    """Run a graph; its outputs lie in the request.

    Args:
        request: of the graph.
        inputs: in the graph's order; not copied.
        what: is run, for messages.

    Raises:
        WorkerLost: memory ran out inside OpenVINO. What it computes after that cannot be trusted: most such
            processes crashed, and some returned wrong vectors without a word (bench/LOG.md). A fresh worker
            runs the requests again, one at a time.
        EngineError: anything else that it refuses.
    """
    try:
        request.infer(inputs, share_inputs=True)
    except MemoryError as error:
        raise WorkerLost(f"a batch of {what} does not fit into memory") from error
    except RuntimeError as error:
        if "alloc" in str(error).lower():
            raise WorkerLost(f"a batch of {what} does not fit into memory") from error
        raise EngineError(f"openvino: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def first_calls() -> Iterator[None]:
    """Whatever runs inside is never beside another first inference."""
    with _first_call:
        yield


def is_native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices natively."""
    return "BF16" in _shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _shared_core() -> openvino.Core:
    global _core
    if _core is None:
        _core = openvino.Core()
    return _core
