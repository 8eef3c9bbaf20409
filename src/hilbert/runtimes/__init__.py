"""Whatever computes: `Batch` in, rows out. One protocol in `base`, imported lazily by choice.

Decides which runtime a model gets. Knows no queue, no request, no HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from hilbert.config.settings import Dtype, wrong_device
from hilbert.core import ModelSpec
from hilbert.errors import InvalidInput, MissingDependency, UnsupportedArchitecture
from hilbert.hub.artifacts import Exported, exported_of
from hilbert.programs.choose import plan
from hilbert.runtimes import matrix
from hilbert.runtimes.base import Runtime, RuntimeInfo, RuntimeSettings

__all__ = ["Runtime", "RuntimeInfo", "RuntimeSettings", "has_cuda", "load_runtime"]


def load_runtime(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    """Load a model on the device that the settings name.

    Raises:
        ModelError: the model cannot be run here; the message says what to install or change.
        InvalidInput: the settings contradict each other, or name what there is not.
    """
    _check_known(settings)
    if spec.kind == "static":
        from hilbert.runtimes.static import StaticRuntime

        return StaticRuntime(spec)
    if spec.kind == "extractor":
        return _gliner(spec, settings)
    export = exported_of(Path(spec.path))
    if export is not None:
        _check_runs_exports(spec, export, settings)
    else:
        engine = _engine(settings)
        matrix.check(spec, engine)
        if engine == "torch":
            return _torch(spec, settings)
        if engine == "onnx":
            return _onnx(spec, settings)
        if engine == "ctranslate2":
            return _ctranslate2(spec, settings)
    if export is None and plan(spec)[0] == "sentence-transformers":
        return _last_resort(spec, settings, spec.reason)
    from hilbert.runtimes.openvino_runtime import load_openvino

    try:
        return load_openvino(spec, settings)
    except (UnsupportedArchitecture, MissingDependency) as error:
        if spec.graph_files and settings.dtype != "int8":  # such a graph is not quantised
            from hilbert.runtimes.openvino_runtime import cpu_dtype
            from hilbert.runtimes.shipped import load_shipped

            return load_shipped(spec, settings, cpu_dtype(settings.dtype))
        if isinstance(error, MissingDependency):
            raise
        return _last_resort(spec, settings, error.message)


def _check_known(settings: RuntimeSettings) -> None:
    """Refuse an engine, dtype or device that no model has; which of them this one has is asked later."""
    choices = {"engine": ("auto", *matrix.ENGINES), "dtype": get_args(Dtype)}
    for name, known in choices.items():
        if (value := getattr(settings, name)) not in known:
            raise InvalidInput(f"{name} {value!r} is unknown; take {', '.join(known)}", param=name)
    if remedy := wrong_device(settings.device):
        raise InvalidInput(f"device {settings.device!r} is unknown; {remedy}", param="device")


def _check_runs_exports(spec: ModelSpec, export: Exported, settings: RuntimeSettings) -> None:
    """An export holds a graph for the CPU and no weights: only ``auto`` and ``openvino`` can mean it."""
    if settings.engine == "auto" and settings.device in ("auto", "cpu"):
        return
    if (engine := _engine(settings)) != "openvino":
        asked = f"engine {engine}" if settings.engine == engine else f"device {settings.device}"
        raise InvalidInput(
            f"{spec.path} is an export of {export}: it holds a traced graph and no weights, so {asked} "
            f"cannot run it; serve it with --engine openvino, or serve the original with -m {export.model_id}"
        )


def _torch(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    try:
        from hilbert.runtimes.torch_runtime import load_torch
    except ImportError as error:
        raise _missing("torch", "torch", error) from error
    return load_torch(spec, settings)


def _onnx(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    try:
        from hilbert.runtimes.onnx_runtime import load_onnx
    except ImportError as error:
        raise _missing("onnx", "onnx", error) from error
    return load_onnx(spec, settings)


def _ctranslate2(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    try:
        from hilbert.runtimes.ctranslate_runtime import load_ctranslate2
    except ImportError as error:
        raise _missing("ctranslate2", "ctranslate2", error) from error
    return load_ctranslate2(spec, settings)


def _missing(engine: str, extra: str, error: ImportError) -> MissingDependency:
    return MissingDependency(
        f"engine {engine} needs {error.name or extra} ({error}): pip install 'hilbert[{extra}]'"
    )


def _last_resort(spec: ModelSpec, settings: RuntimeSettings, reason: str) -> Runtime[Any]:
    """What can be neither packed nor traced runs through sentence-transformers, so nobody is turned away."""
    try:
        from hilbert.runtimes.sentence_transformers_runtime import SentenceTransformersRuntime
    except ImportError as error:
        raise MissingDependency(
            f"{spec.model_id} can only be run by sentence-transformers ({reason}): "
            "pip install 'hilbert[torch]'"
        ) from error
    return SentenceTransformersRuntime(spec, settings, reason)


def _gliner(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    if settings.engine not in ("auto", "torch"):
        raise UnsupportedArchitecture(
            f"{spec.model_id}: engine {settings.engine} does not find spans of texts; take --engine torch"
        )
    try:
        from hilbert.runtimes.gliner_runtime import GlinerRuntime
    except ImportError as error:
        raise MissingDependency(
            f"{spec.model_id} can only be run by gliner ({error}): pip install 'hilbert[gliner]'"
        ) from error
    return GlinerRuntime(spec, settings)


def _engine(settings: RuntimeSettings) -> str:
    """One of `matrix.ENGINES`."""
    engine = settings.engine
    wants_gpu = settings.device.startswith(("cuda", "mps"))
    if engine == "openvino" and wants_gpu:
        raise InvalidInput(f"engine openvino runs on the CPU, not on {settings.device!r}; take engine torch")
    if engine != "auto":
        return engine
    return "torch" if wants_gpu or (settings.device == "auto" and has_cuda()) else "openvino"


def has_cuda() -> bool:
    """Whether an NVIDIA device is visible, asked without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
