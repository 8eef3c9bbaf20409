"""Trace a model once into a graph that is served without torch: OpenVINO's, ONNX, or CTranslate2's.

Run as a child process (``python -m hilbert.programs.export``, by `runtimes.tracing`), so that torch and
transformers never enter the process that serves: orders in on stdin, artifact folders out, one line of JSON
on stdout for each.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from hilbert.core import ModelSpec, Tower
from hilbert.errors import ModelError, UnsupportedArchitecture
from hilbert.lifetime import die_with
from hilbert.programs.choose import PROGRAM_VERSION, Target, token_dimensions, trailing_id, unseen_id

if TYPE_CHECKING:
    from hilbert.programs.program import GroupedGraph
    from hilbert.programs.towers import TowerGraph

GRAPH = "model.xml"
ONNX_GRAPH = "model.onnx"
# The newest that torch's tracing exporter writes all our operators in.
ONNX_OPSET = 20

# Above this a model is loaded and traced in bf16: half the memory, and its file need not pass through
# float16. Below, float32 weights rounded to float16 keep more of small models (bench/LOG.md).
BF16_TRACE_PARAMETERS = 250_000_000

# Convolutions sum in another order than torch's; a frozen shape differs by more than 1e-2.
TOWER_TOLERANCE = 1e-3


class ExportOrder(msgspec.Struct, frozen=True):
    """What the child is asked to do; `num_groups` is for a packed program."""

    spec: ModelSpec
    folder: str
    dtype: str
    num_groups: int
    trust_remote_code: bool = False
    target: Target = "openvino"


def export(order: ExportOrder) -> dict[str, Any]:
    """Write the graph into `order.folder`.

    Returns:
        What the runtime must know of the program: name, reason, inputs, groups, dtype, versions.

    Raises:
        ModelError: the model cannot be loaded, or neither program computes what the model computes.
    """
    warnings.simplefilter("ignore")  # torch.jit says of every shape that it may be frozen; we check
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its absence selects the stub
    if order.target == "ctranslate2":
        from hilbert.programs.ctranslate import convert

        return convert(order.spec, Path(order.folder), order.trust_remote_code) | _facts(order)
    import torch

    from hilbert.programs.build import build

    spec = order.spec
    # A quantised graph is traced in float32 and computes in 16 bits what it does not quantise.
    half = order.target == "openvino" and order.dtype != "float32"
    large = half and _num_parameters(spec) > BF16_TRACE_PARAMETERS
    built = build(spec, torch.bfloat16 if large else torch.float32, order.num_groups, order.trust_remote_code)
    if order.target == "onnx":
        versions = _write_onnx(built.graph.eval(), order)
    else:
        versions = _write_openvino(built.graph.eval(), order, half, large)
        _write_towers(built.towers, order, half)
    return {
        **versions,
        "program": built.program,
        "reason": built.reason,
        "inputs": built.graph.input_names,
        "outputs": built.graph.program.heads.names,
        "num_groups": built.graph.num_groups,
        "num_parameters": built.num_parameters,
    } | _facts(order)


def _facts(order: ExportOrder) -> dict[str, Any]:
    """What holds of every graph of a model."""
    spec = order.spec
    return {
        "dtype": order.dtype,
        "dimensions": spec.dimensions,
        "num_labels": len(spec.labels),
        "token_dimensions": token_dimensions(spec),
        "vocab_size": spec.vocab_size,
        "special_ids": spec.special_ids,
        "trailing_id": trailing_id(spec),
        "unseen_id": unseen_id(spec),
        "towers": [
            {"modality": t.modality.value, "file": tower_file(t), "shape": t.shape} for t in spec.towers
        ],
        "program_version": PROGRAM_VERSION,
    }


def _examples(graph: GroupedGraph, spec: ModelSpec) -> tuple[Any, ...]:
    from hilbert.programs.build import example_inputs

    random = np.random.default_rng(3)
    probes = [random.integers(0, spec.vocab_size, n).astype(np.int32) for n in (2, 3, 5, 6, 7, 9, 11, 12)]
    return example_inputs(probes, graph.num_groups, graph.skips)


def _write_openvino(graph: GroupedGraph, order: ExportOrder, half: bool, large: bool) -> dict[str, str]:
    """``model.xml`` and ``model.bin``; returns the version of what wrote them."""
    import openvino as ov
    import torch

    from hilbert.programs.build import check_traced, example_inputs

    spec, examples = order.spec, _examples(graph, order.spec)
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
    if order.dtype == "int8":
        model = _quantized(model)
    ov.save_model(model, Path(order.folder) / GRAPH, compress_to_fp16=half and not large)
    return {"openvino": ov.__version__}


def _quantized(model: Any) -> Any:
    """The transformer's weights in 8 bits, a scale per output; heads keep theirs.

    Where the CPU multiplies bf16 natively the scales move behind the products, so that the weights become
    bf16 once, when the graph is compiled, not at each call; whole numbers to 127 are exact in bf16. Elsewhere
    they stay beside the weights, which is what OpenVINO's dynamic quantisation of activations looks for.
    """
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    heads = nncf.IgnoredScope(patterns=[r".*program\.heads.*"], validate=False)
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=heads)
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        for product in [op for op in model.get_ops() if op.get_type_name() == "MatMul"]:
            _move_scale(product)
        model.validate_nodes_and_infer_types()
    return model


def _move_scale(product: Any) -> None:
    """``x · (W * scale)ᵀ`` → ``(x · Wᵀ) * scale``; what has another form is left as it is."""
    from openvino import opset13 as opset

    weight = product.input_value(1).get_node()
    if weight.get_type_name() == "Convert":
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != "Multiply" or not product.get_attributes()["transpose_b"]:
        return
    levels, scale = (weight.input_value(i).get_node() for i in range(2))
    if scale.get_type_name() != "Constant" or list(scale.get_output_shape(0))[1:] != [1]:
        return
    rows = product.input_value(0)
    kind = rows.get_element_type()
    whole = opset.matmul(rows, opset.convert(levels.input_value(0), kind), False, True)
    factors = opset.constant(scale.get_data().astype(np.float32).reshape(-1))
    product.output(0).replace(opset.multiply(whole, opset.convert(factors, kind)).output(0))


def _write_onnx(graph: GroupedGraph, order: ExportOrder) -> dict[str, str]:
    """``model.onnx``, checked by running it; returns the version of what wrote it."""
    import onnxruntime
    import torch

    from hilbert.programs.build import check_traced, example_inputs

    spec, file = order.spec, Path(order.folder) / ONNX_GRAPH
    axes = {n: {0: n, 1: f"{n}_width"} if n.startswith("slots") else {0: n} for n in graph.input_names}
    outputs = graph.program.heads.names
    try:
        torch.onnx.export(
            graph,
            _examples(graph, spec),
            file,
            input_names=graph.input_names,
            output_names=list(outputs),
            dynamic_axes=axes | {name: {0: f"{name}_rows"} for name in outputs},
            opset_version=ONNX_OPSET,
            dynamo=False,
        )
    except Exception as error:  # the exporter raises whatever it meets
        raise UnsupportedArchitecture(f"{spec.model_id}: it cannot be traced to ONNX ({error})") from error
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    taken = {port.name for port in session.get_inputs()}

    def run(probes: list[np.ndarray]) -> list[np.ndarray]:
        tensors = example_inputs(probes, graph.num_groups, graph.skips)
        feed = {n: t.numpy() for n, t in zip(graph.input_names, tensors, strict=True) if n in taken}
        return session.run(list(outputs), feed)  # type: ignore[no-any-return]  # it is untyped

    check_traced(graph, spec, run)
    return {"torch": torch.__version__}


def _write_towers(towers: tuple[TowerGraph, ...], order: ExportOrder, half: bool) -> None:
    """A graph for each tower, beside that of the text; never in 8 bits."""
    import openvino as ov

    for graph in towers:
        traced = _trace_tower(order.spec, graph.float())
        ov.save_model(traced, Path(order.folder) / tower_file(graph.tower), compress_to_fp16=half)


def tower_file(tower: Tower) -> str:
    """Name of a tower's graph, beside that of the text."""
    return f"{tower.modality.value}.xml"


def _trace_tower(spec: ModelSpec, graph: Any) -> Any:
    """The OpenVINO graph of a tower, for any number of inputs.

    Raises:
        UnsupportedArchitecture: it cannot be traced, or another number of inputs gives other vectors.
    """
    import openvino as ov
    import torch

    shape = graph.tower.shape
    random = torch.Generator().manual_seed(5)
    try:
        with torch.no_grad():
            model = ov.convert_model(graph, example_input=(torch.randn((2, *shape), generator=random),))
    except Exception as error:  # the converter raises whatever it meets
        raise UnsupportedArchitecture(
            f"{spec.model_id}: its {graph.tower.modality} tower cannot be traced ({error})"
        ) from error
    model.reshape({model.inputs[0]: ov.PartialShape([-1, *shape])})
    probe = torch.randn((3, *shape), generator=random)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    traced = compiled([probe.numpy()])[0]
    with torch.no_grad():
        own = graph(probe).numpy()
    worst, scale = float(np.abs(traced - own).max()), max(1.0, float(np.abs(own).max()))
    if not worst <= TOWER_TOLERANCE * scale:
        raise UnsupportedArchitecture(
            f"{spec.model_id}: the traced {graph.tower.modality} tower differs from the model's own by "
            f"{worst:.1e} at scale {scale:.1f}"
        )
    return model


def _num_parameters(spec: ModelSpec) -> int:
    """An estimate from the weight files, taken as float32."""
    root = Path(spec.path) / spec.transformer_folder
    return sum((root / name).stat().st_size for name in spec.weights if (root / name).is_file()) // 4


def _extras(order: ExportOrder) -> str:
    """The extras that hold what an export of this kind imports."""
    target = {"openvino": "int8" if order.dtype == "int8" else "", "onnx": "onnx"}
    return f"torch,{extra}" if (extra := target.get(order.target, "ctranslate2")) else "torch"


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
            "message": f"tracing {order.spec.model_id} for {order.target} in {order.dtype} needs "
            f"{error.name or 'torch'} ({error}): pip install 'hilbert[{_extras(order)}]', "
            "or serve a folder made by `hilbert export` on a machine that has it",
        }
    except Exception as error:
        traceback.print_exc()
        return {"error": "ModelError", "message": f"{order.spec.model_id}: it cannot be traced ({error!r})"}


if __name__ == "__main__":
    main(int(sys.argv[1]))
