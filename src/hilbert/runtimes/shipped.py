"""Graphs that a repository ships itself (``openvino/``, ``onnx/``), run by OpenVINO without torch.

Taken when there is no artifact and nothing installed to make one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hilbert.config.machine import available_threads
from hilbert.core import Batch, ModelSpec, Sequence
from hilbert.core.request import FloatArray
from hilbert.runtimes import ov
from hilbert.runtimes.base import RuntimeSettings
from hilbert.runtimes.padded import PaddedRuntime


def load_shipped(spec: ModelSpec, settings: RuntimeSettings, dtype: str) -> PaddedRuntime:
    """The first graph that a repository ships.

    Raises:
        UnsupportedArchitecture: the graph, or what comes after it, needs torch.
    """
    name = spec.graph_files[0]
    encoder = _OpenVinoEncoder(Path(spec.path) / name, settings, dtype)
    reason = f"torch is not installed, and the repository ships {name}"
    runtime = PaddedRuntime(spec, encoder, "shipped", reason)
    with ov.first_calls():
        runtime.run(runtime.prepare(Batch((Sequence(0, 0, np.zeros(1, np.int32)),), runtime.info.outputs)))
    return runtime


class _OpenVinoEncoder:
    """A padded graph on the CPU."""

    engine = "openvino"
    device = "cpu"

    def __init__(self, file: Path, settings: RuntimeSettings, dtype: str) -> None:
        self.dtype = dtype
        model = ov.read_graph(file)
        self.inputs = tuple(port.get_any_name() for port in model.inputs)
        names = [sorted(port.get_names()) for port in model.outputs]
        self.outputs = tuple(name for aliases in names for name in aliases)
        self._place = {name: i for i, aliases in enumerate(names) for name in aliases}
        self._compiled = ov.compile_model(
            model,
            {
                "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" else "bf16",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": settings.threads or available_threads(),
            },
        )
        self._request = self._compiled.create_infer_request()

    def encode(self, arrays: dict[str, np.ndarray], output: str) -> FloatArray:
        """See `Encoder.encode`."""
        inputs = [arrays[name] for name in self.inputs]
        ov.infer(self._request, inputs, f"{len(inputs[0])} sequences of up to {inputs[0].shape[1]} tokens")
        rows: FloatArray = self._request.get_output_tensor(self._place[output]).data
        return rows

    def close(self) -> None:
        """Release the graph."""
        del self._request
        del self._compiled
