"""A `ModelSpec`'s weights as torch modules: transformers builds the body, we build the heads.

Pickled weights go through ``weights_only=True`` alone. A weight that is missing from the files is an
error: transformers would fill it with random numbers and only log it.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hilbert.core import ClassifierModule, LogitScoreModule, ModelSpec, SpladeModule
from hilbert.errors import ModelError, UnsafeWeights, UnsupportedArchitecture, WeightMismatch, in_short

# Weights that a checkpoint may lack because nothing on the way to the vectors reads them.
_UNUSED_PREFIXES = ("lm_head.", "cls.", "classifier.", "decoder.")


def load_model(
    spec: ModelSpec, attention: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> nn.Module:
    """The transformer of a model in inference mode; with its own head where an output needs that.

    Args:
        attention: an attention implementation by transformers' name.
        dtype: of the weights.
        trust_remote_code: allow the repository's own Python code.
    Raises:
        UnsupportedArchitecture: transformers cannot build it.
        WeightMismatch: weights are missing or have other shapes than the configuration says.
        UnsafeWeights: the weights are a pickle that asks for more than tensors.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = str(Path(spec.path) / spec.transformer_folder)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        model, report = _builder(spec, config).from_pretrained(
            folder,
            config=config,
            attn_implementation=attention,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **({"use_safetensors": False} if spec.weights and _is_pickle(spec.weights[0]) else {}),
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever it meets
        if _is_unsafe_pickle(error):
            raise _unsafe(spec, spec.weights[0] if spec.weights else "weights", error) from error
        why = in_short(error)
        raise UnsupportedArchitecture(f"{spec.model_id}: transformers cannot load it: {why}") from error
    missing = [key for key in report["missing_keys"] if not _is_unused(spec, key)]
    if missing or report.get("mismatched_keys"):
        wrong = sorted(map(str, [*missing, *report.get("mismatched_keys", ())]))
        raise WeightMismatch(
            f"{spec.model_id}: {len(wrong)} weights are missing or have other shapes than config.json says, "
            f"first {wrong[:3]}; the download is incomplete or the repository is broken"
        )
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]  # the builder is Any


def _builder(spec: ModelSpec, config: Any) -> Any:
    """The transformers class whose outputs the model's modules need."""
    import transformers

    if _has_own_classifier(spec):
        return transformers.AutoModelForSequenceClassification
    kinds = {type(module) for module in spec.modules}
    if LogitScoreModule in kinds:
        return transformers.AutoModelForCausalLM
    if SpladeModule in kinds:
        return transformers.AutoModelForMaskedLM
    encoders = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    if spec.family in encoders:
        return getattr(transformers, encoders[spec.family])
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitecture(
            f"{spec.model_id}: the encoder of {spec.family!r} cannot be taken out of its model"
        )
    return transformers.AutoModel


def _has_own_classifier(spec: ModelSpec) -> bool:
    return any(isinstance(module, ClassifierModule) and module.is_own for module in spec.modules)


def _is_unused(spec: ModelSpec, key: str) -> bool:
    """Whether nothing on the way to the outputs reads this weight."""
    if _has_own_classifier(spec) or any(isinstance(module, LogitScoreModule) for module in spec.modules):
        return False
    is_pooler = key.startswith("pooler.") or ".pooler." in key
    if any(isinstance(module, SpladeModule) for module in spec.modules):
        return is_pooler
    return is_pooler or key.startswith(_UNUSED_PREFIXES)


def load_tensors(spec: ModelSpec, folder: str) -> dict[str, torch.Tensor]:
    """The tensors of one module folder of the repository.

    Raises:
        WeightMismatch: the folder holds no weights.
        UnsafeWeights: a pickle that asks for more than tensors.
    """
    root = Path(spec.path) / folder
    if (file := root / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(file)
    for name in ("pytorch_model.bin", "model.pt"):
        if (file := root / name).is_file():
            return load_pickle(spec, file)
    raise WeightMismatch(f"{spec.model_id}: {folder or 'the root'} holds no model.safetensors")


def load_pickle(spec: ModelSpec, file: Path) -> dict[str, torch.Tensor]:
    """A state dict from a pickle, tensors only.

    Raises:
        UnsafeWeights: the pickle asks for more than tensors.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unsafe(spec, file.name, error) from error
    return dict(state)


def _is_pickle(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".pkl"))


def _is_unsafe_pickle(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, pickle.UnpicklingError) or "weights_only" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _unsafe(spec: ModelSpec, name: str, error: BaseException) -> UnsafeWeights:
    return UnsafeWeights(
        f"{spec.model_id}: {name} is not a plain pickle of tensors and was not executed{_asked_for(error)}; "
        "convert the weights to safetensors"
    )


def _asked_for(error: BaseException) -> str:
    """What the pickle wanted to call. torch says it amid advice on how to let it, which is not passed on."""
    found = re.search(r"\bGLOBAL ([\w.]+)", str(error))
    return f" (it asks for {found.group(1)})" if found else ""
