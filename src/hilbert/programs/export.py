"""Trace a model once into an OpenVINO graph that is served without torch.

Run as a child process (``python -m hilbert.programs.export``, by `runtimes.tracing`), so that torch and
transformers never enter the process that serves: orders in on stdin, artifact folders out, one line of JSON
on stdout for each.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hilbert.core import ModelSpec
from hilbert.errors import ModelError, UnsupportedArchitecture
from hilbert.lifetime import die_with
from hilbert.programs.choose import PROGRAM_VERSION, token_dimensions, trailing_id, unseen_id

GRAPH = "model.xml"

# Above this a model is loaded and traced in bf16: half the memory, and its file need not pass through
# float16. Below, float32 weights rounded to float16 keep more of small models (bench/LOG.md).
BF16_TRACE_PARAMETERS = 250_000_000


class ExportOrder(msgspec.Struct, frozen=True):
    """What the child is asked to do; `num_groups` is for a packed program."""

    spec: ModelSpec
    folder: str
    dtype: str
    num_groups: int
    trust_remote_code: bool = False


def export(order: ExportOrder) -> dict[str, Any]:
    """Write ``model.xml`` and ``model.bin`` into `order.folder`.

    Returns:
        What the runtime must know of the program: name, reason, inputs, groups, dtype, versions.

    Raises:
        ModelError: the model cannot be loaded, or neither program computes what the model computes.
    """
    warnings.simplefilter("ignore")  # torch.jit says of every shape that it may be frozen; we check
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its absence selects the stub
    import openvino as ov
    import torch

    from hilbert.programs.build import build, check_traced, example_inputs

    spec, folder = order.spec, Path(order.folder)
    half = order.dtype != "float32"
    large = half and _num_parameters(spec) > BF16_TRACE_PARAMETERS
    built = build(spec, torch.bfloat16 if large else torch.float32, order.num_groups, order.trust_remote_code)
    graph = built.graph.eval()
    random = np.random.default_rng(3)
    examples = example_inputs(
        [random.integers(0, spec.vocab_size, n).astype(np.int32) for n in (2, 3, 5, 6, 7, 9, 11, 12)],
        graph.num_groups,
        graph.skips,
    )
    if large:
        from openvino.frontend.pytorch.patch_model import __make_16bit_traceable as make_traceable

        make_traceable(graph)
    try:
        with torch.no_grad():
            model = ov.convert_model(graph, example_input=examples)
    except Exception as error:  # the converter raises whatever it meets
        raise UnsupportedArchitecture(f"{spec.model_id}: it cannot be traced ({error})") from error
    names = graph.input_names
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    outputs = graph.program.heads.names
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(
        {
            port: ov.PartialShape([-1, -1] if n.startswith("slots") else [-1])
            for port, n in zip(model.inputs, names, strict=True)
        }
    )
    if not large:
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(probes: list[np.ndarray]) -> list[np.ndarray]:
            tensors = example_inputs(probes, graph.num_groups, graph.skips)
            return [rows.copy() for rows in compiled([t.numpy() for t in tensors]).to_tuple()]

        check_traced(graph, spec, run)
    ov.save_model(model, folder / GRAPH, compress_to_fp16=half and not large)
    return {
        "program": built.program,
        "reason": built.reason,
        "inputs": names,
        "outputs": outputs,
        "num_groups": graph.num_groups,
        "dtype": order.dtype,
        "dimensions": spec.dimensions,
        "num_labels": len(spec.labels),
        "token_dimensions": token_dimensions(spec),
        "special_ids": spec.special_ids,
        "trailing_id": trailing_id(spec),
        "unseen_id": unseen_id(spec),
        "num_parameters": built.num_parameters,
        "program_version": PROGRAM_VERSION,
        "openvino": ov.__version__,
    }


def _num_parameters(spec: ModelSpec) -> int:
    """An estimate from the weight files, taken as float32."""
    root = Path(spec.path) / spec.transformer_folder
    return sum((root / name).stat().st_size for name in spec.weights if (root / name).is_file()) // 4


def main(parent: int) -> None:
    """Read orders from stdin, one line of JSON each, and answer each with one line; until stdin ends.

    Args:
        parent: whoever gives the orders; this process does not outlive it.
    """
    die_with(parent)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=ExportOrder)
        print(json.dumps(_answer(order)), file=answers, flush=True)
        gc.collect()  # the weights, before the next model's are loaded


def _answer(order: ExportOrder) -> dict[str, Any]:
    """The program, or the error as data."""
    try:
        return {"program": export(order)}
    except ModelError as error:
        return {"error": type(error).__name__, "message": error.message}
    except ImportError as error:
        return {
            "error": "MissingDependency",
            "message": f"tracing {order.spec.model_id} needs {error.name or 'torch'} ({error}): "
            "pip install 'hilbert[torch]', "
            "or serve a folder made by `hilbert export` on a machine that has it",
        }
    except Exception as error:
        traceback.print_exc()
        return {"error": "ModelError", "message": f"{order.spec.model_id}: it cannot be traced ({error!r})"}


if __name__ == "__main__":
    main(int(sys.argv[1]))
