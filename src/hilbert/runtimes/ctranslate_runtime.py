"""CTranslate2: BERT-like encoders, converted on first use, pooled here.

The one module that imports ctranslate2 to run a model. Dense vectors and plain token vectors only: it holds
no head of a model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ctranslate2
import numpy as np

from hilbert.config.machine import available_threads
from hilbert.core import ModelSpec
from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput
from hilbert.runtimes.base import RuntimeSettings
from hilbert.runtimes.padded import PaddedRuntime
from hilbert.runtimes.traced import find_or_trace, read_program

# Ours → what CTranslate2 calls it. Sums are kept in float32.
_COMPUTE_TYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "int8_float32",
}


def load_ctranslate2(spec: ModelSpec, settings: RuntimeSettings) -> PaddedRuntime:
    """Convert a model where the cache has no converted one, and load it.

    Raises:
        UnsupportedArchitecture: CTranslate2 does not know the family, or computes something else.
        InvalidInput: the device does not exist, or does not compute in the dtype.
        MissingDependency: the model must be converted first, and what does that is not installed.
    """
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, device)
    version = ctranslate2.__version__
    folder, _, is_from_cache = find_or_trace(spec, settings, "float32", "ctranslate2", version)
    program = read_program(folder)
    encoder = _Encoder(folder, settings, device, dtype)
    runtime = PaddedRuntime(spec, encoder, program.program, program.reason)
    runtime.info = replace(runtime.info, is_from_cache=is_from_cache)
    return runtime


def _device(device: str) -> str:
    """``"cpu"`` or ``"cuda:N"``.

    Raises:
        InvalidInput: it does not exist here.
    """
    count = ctranslate2.get_cuda_device_count()
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number < count:
        return f"cuda:{number}"
    raise InvalidInput(
        f"device {device!r} is not served by engine ctranslate2, which sees {count} CUDA devices; "
        "take --device cpu"
    )


def _dtype(dtype: str, device: str) -> str:
    """A dtype that CTranslate2 computes in on this device.

    Raises:
        InvalidInput: it does not.
    """
    kind, _, number = device.partition(":")
    supported = ctranslate2.get_supported_compute_types(kind, int(number or 0))
    if dtype == "auto":
        return "float16" if kind == "cuda" and "float16" in supported else "float32"
    if _COMPUTE_TYPES.get(dtype) not in supported:
        able = ", ".join(ours for ours, theirs in _COMPUTE_TYPES.items() if theirs in supported)
        raise InvalidInput(
            f"dtype {dtype} is not computed by engine ctranslate2 on {device}; take one of {able}, "
            "or --engine openvino"
        )
    return dtype


class _Encoder:
    """A converted model; an `Encoder`."""

    engine = "ctranslate2"
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    outputs: tuple[str, ...] = ("last_hidden_state",)

    def __init__(self, folder: Path, settings: RuntimeSettings, device: str, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        kind, _, number = device.partition(":")
        self._on_cpu = kind == "cpu"
        self._encoder = ctranslate2.Encoder(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            compute_type=_COMPUTE_TYPES[dtype],
            inter_threads=1,
            intra_threads=settings.threads or available_threads(),
        )

    def encode(self, arrays: dict[str, np.ndarray], output: str) -> FloatArray:
        """See `Encoder.encode`."""
        lengths = arrays["attention_mask"].sum(axis=1).tolist()

        def rows(name: str) -> list[list[int]]:
            return [row[:n] for row, n in zip(arrays[name].tolist(), lengths, strict=True)]

        found = self._encoder.forward_batch(rows("input_ids"), token_type_ids=rows("token_type_ids"))
        hidden = found.last_hidden_state
        if not self._on_cpu:
            hidden = hidden.to_device(ctranslate2.Device.cpu)
        return np.asarray(hidden.to(ctranslate2.DataType.float32))

    def close(self) -> None:
        """Release the weights."""
        self._encoder.unload_model()
