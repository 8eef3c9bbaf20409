"""ONNX Runtime, driven directly: a graph that the repository ships, else one traced from its weights.

The one module that imports onnxruntime. Decides the execution provider and which graph is taken; float32
only, as its CPU kernels know no bfloat16 and its own quantisation changes the vectors (bench/LOG.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hilbert.config.machine import available_threads
from hilbert.core import Batch, BatchOutput, ModelSpec
from hilbert.core.request import FloatArray
from hilbert.errors import EngineError, InvalidInput, OutOfMemory, UnsupportedArchitecture
from hilbert.runtimes.base import Runtime, RuntimeSettings
from hilbert.runtimes.packing import PackedBatch
from hilbert.runtimes.padded import PaddedRuntime
from hilbert.runtimes.traced import Prepared, TracedBatches, find_or_trace, read_program

GRAPH = "model.onnx"

# The graph's own opset decides what runs it, so an artifact outlives a version of onnxruntime.
_FORMAT = "opset20"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

onnxruntime.disable_telemetry_events()


def load_onnx(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    """Run the shipped graph of a model, or trace one.

    Raises:
        InvalidInput: a dtype or device that ONNX Runtime does not serve here.
        MissingDependency: there is no graph, and torch to make one is not installed.
        ModelError: the weights are missing, wrong or unsafe.
    """
    if settings.dtype not in ("auto", "float32"):
        raise InvalidInput(
            f"dtype {settings.dtype} is not served by engine onnx, which computes in float32; "
            "take --dtype float32, or --engine openvino for bfloat16 and int8"
        )
    device = _device(settings.device)
    shipped = [name for name in spec.graph_files if name.endswith(".onnx")]
    why = ""
    if shipped:
        try:
            graph = _Session(Path(spec.path) / shipped[0], settings, device)
            return PaddedRuntime(spec, graph, "shipped", f"the repository ships {shipped[0]}")
        except UnsupportedArchitecture as error:
            why = error.message
    folder, _, is_from_cache = find_or_trace(spec, settings, "float32", "onnx", _FORMAT)
    runtime = OnnxRuntime(folder, settings, device, why)
    runtime.info = replace(runtime.info, is_from_cache=is_from_cache)
    return runtime


def _device(device: str) -> str:
    """``"cpu"`` or ``"cuda:N"``.

    Raises:
        InvalidInput: this build of onnxruntime cannot compute there.
    """
    available = onnxruntime.get_available_providers()
    has_cuda = _PROVIDERS["cuda"] in available
    if device == "auto":
        return "cuda:0" if has_cuda else "cpu"
    if device == "cpu":
        return device
    if device.startswith("cuda") and has_cuda:
        return f"cuda:{int(device.partition(':')[2] or 0)}"
    raise InvalidInput(
        f"device {device!r} is not served by engine onnx: onnxruntime {onnxruntime.__version__} has "
        f"{', '.join(available)}; install onnxruntime-gpu in its place, or take --device cpu"
    )


class _Session:
    """An inference session; an `Encoder` for graphs that take padded ids."""

    engine = "onnx"
    dtype = "float32"

    def __init__(self, file: Path, settings: RuntimeSettings, device: str) -> None:
        self.device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads or available_threads()
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        kind, _, number = device.partition(":")
        provider = (_PROVIDERS[kind], {"device_id": number} if number else {})
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=[provider])
        except Exception as error:  # onnxruntime raises whatever it meets
            raise UnsupportedArchitecture(
                f"onnxruntime cannot load {file.name}: {_first_line(error)}"
            ) from error
        self.inputs = tuple(port.name for port in self._session.get_inputs())
        self.outputs = tuple(port.name for port in self._session.get_outputs())

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Some of the outputs.

        Raises:
            OutOfMemory: the batch does not fit.
            EngineError: whatever else goes wrong inside.
        """
        try:
            rows: list[np.ndarray] = self._session.run(names, feed)
        except Exception as error:  # onnxruntime's exceptions have no names that could be caught
            if "alloc" in str(error).lower():
                raise OutOfMemory(_first_line(error)) from error
            raise EngineError(f"onnxruntime: {_first_line(error)}") from error
        return rows

    def encode(self, arrays: dict[str, np.ndarray], output: str) -> FloatArray:
        """See `Encoder.encode`."""
        return self.run([output], arrays)[0]

    def close(self) -> None:
        """Release the graph."""
        del self._session


class OnnxRuntime:
    """A traced graph in ONNX Runtime."""

    num_slots = 2

    def __init__(self, folder: Path, settings: RuntimeSettings, device: str, why: str = "") -> None:
        program = read_program(folder)
        self._batches = TracedBatches(program)
        self._session = _Session(folder / GRAPH, settings, device)
        self._names = (program.inputs, program.outputs)
        self.info = program.info("onnx", device, "float32", why)

    def prepare(self, batch: Batch) -> Prepared:
        """See `Runtime.prepare`."""
        return self._batches.prepare(batch)

    def num_padding_tokens(self, prepared: Prepared) -> int:
        """See `Runtime.num_padding_tokens`."""
        return self._batches.num_padding_tokens(prepared)

    def run(self, prepared: Prepared) -> BatchOutput:
        """See `Runtime.run`."""
        return self._batches.run(prepared, self._infer)

    def close(self) -> None:
        """Release the graph."""
        self._session.close()

    def _infer(self, part: PackedBatch, wanted: list[int]) -> list[np.ndarray]:
        inputs, outputs = self._names
        taken = self._session.inputs  # torch's exporter leaves out what the model does not read
        feed = dict(zip(inputs, self._batches.feed(part), strict=True))
        return self._session.run([outputs[i] for i in wanted], {name: feed[name] for name in taken})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
