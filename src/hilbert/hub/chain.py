"""modules.json to the modules that run after the transformer.

Decides which sentence-transformers modules Hilbert computes itself. What it does not know it does not
guess: `Unsupported` carries the reason, and the model is left to sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hilbert.core import (
    DenseModule,
    LayerNormModule,
    Module,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
    SparseCodeModule,
    TextProjectionModule,
)
from hilbert.errors import ModelError
from hilbert.hub.files import read_json, read_object, safe_folder

# The boolean keys of older repositories, in the order in which the pooled vectors are concatenated.
BOOLEAN_MODES = {
    "pooling_mode_cls_token": PoolingMode.CLS,
    "pooling_mode_max_tokens": PoolingMode.MAX,
    "pooling_mode_mean_tokens": PoolingMode.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT,
    "pooling_mode_weightedmean_tokens": PoolingMode.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": PoolingMode.LAST,
}
# What sentence-transformers takes where the key is absent, or names a class outside torch.
DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"


class Unsupported(Exception):
    """The chain holds something that only sentence-transformers can run; the text says what."""


class ModuleEntry(msgspec.Struct, frozen=True):
    """One line of modules.json: the class's bare name (``""`` for code of the repository's own)."""

    name: str
    class_path: str
    folder: str


def read_entries(snapshot: Path) -> tuple[ModuleEntry, ...] | None:
    """The modules in order, or None where the repository has no modules.json.

    Old and new class paths (``sentence_transformers.models.Pooling``,
    ``sentence_transformers.sentence_transformer.modules.pooling.Pooling``) end in the same name.

    Raises:
        ModelError: a path leaves the repository, or the file is no list of modules.
    """
    source = snapshot / "modules.json"
    value = read_json(source)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise ModelError(f"{source} must hold a list of modules.")
    entries = []
    for entry in value:
        class_path = str(entry.get("type", ""))
        ours = class_path.startswith("sentence_transformers.")
        name = class_path.rsplit(".", 1)[-1] if ours else ""
        entries.append(ModuleEntry(name, class_path, safe_folder(entry.get("path", ""), source)))
    return tuple(entries)


def _size(config: dict[str, Any], source: Path, *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise ModelError(f"{source} must give a positive {keys[0]}, got {config.get(keys[0])!r}.")


def _pooling(config: dict[str, Any], source: Path) -> PoolingModule:
    value = config.get("pooling_mode")
    if value is None:
        modes = tuple(mode for key, mode in BOOLEAN_MODES.items() if config.get(key))
    else:
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names:
            raise ModelError(f"{source}: pooling_mode {value!r} is neither a name nor a list of names.")
        known = {mode.value for mode in PoolingMode}
        if unknown := [name for name in names if name not in known]:
            raise Unsupported(f"pooling mode {unknown[0]!r} is unknown")
        modes = tuple(PoolingMode(name) for name in names)
    return PoolingModule(modes or (PoolingMode.MEAN,), bool(config.get("include_prompt", True)))


def _check_names(config: dict[str, Any], folder: str, output: str = "sentence_embedding") -> None:
    """Newer modules may work on something else than the pooled vector, e.g. on every token."""
    read = config.get("module_input_name") or "sentence_embedding"
    written = config.get("module_output_name") or read
    if (read, written) != ("sentence_embedding", output):
        raise Unsupported(f"the module in {folder!r} reads {read!r} and writes {written!r}")


def _dense(
    config: dict[str, Any], folder: str, source: Path, trust_remote_code: bool, output: str
) -> DenseModule:
    _check_names(config, folder, output)
    if config.get("use_residual"):
        raise Unsupported(f"Dense in {folder!r} has a residual connection")
    activation = config.get("activation_function", DEFAULT_ACTIVATION)
    if not isinstance(activation, str):
        raise ModelError(f"{source}: activation_function must be a class name, got {activation!r}.")
    if not activation.startswith("torch."):
        if trust_remote_code:
            raise Unsupported(f"Dense in {folder!r} has an activation of its own, {activation!r}")
        activation = DEFAULT_ACTIVATION
    return DenseModule(
        folder=folder,
        in_features=_size(config, source, "in_features"),
        out_features=_size(config, source, "out_features"),
        bias=bool(config.get("bias", True)),
        activation="" if activation.endswith(".Identity") else activation,
    )


def read_chain(
    snapshot: Path,
    entries: Sequence[ModuleEntry],
    *,
    trust_remote_code: bool = False,
    output: str = "sentence_embedding",
) -> tuple[tuple[Module, ...], bool]:
    """The modules after the transformer, and whether the chain ends in a normalisation.

    Args:
        snapshot: the repository's folder.
        entries: modules.json without its first module.
        trust_remote_code: the user allows activations from outside torch.
        output: what the last module writes: ``"scores"`` in a cross-encoder.
    Raises:
        Unsupported: a module that Hilbert does not compute itself.
        ModelError: a configuration that nobody could run.
    """
    modules: list[Module] = []
    for entry in entries:
        source = snapshot / entry.folder / "config.json"
        config = read_object(source)
        match entry.name:
            case "Pooling":
                modules.append(_pooling(config, source))
            case "Dense":
                written = output if entry is entries[-1] else "sentence_embedding"
                modules.append(_dense(config, entry.folder, source, trust_remote_code, written))
            case "LayerNorm":
                modules.append(LayerNormModule(entry.folder, _size(config, source, "dimension")))
            case "Normalize":
                _check_names(config, entry.folder)
                modules.append(NormalizeModule())
            case "Dropout":
                continue  # does nothing outside training
            case "":
                raise Unsupported(f"module {entry.class_path!r} is code of its own")
            case _:
                raise Unsupported(f"module {entry.class_path!r} is not one that Hilbert computes")
    normalize = False
    while modules and isinstance(modules[-1], NormalizeModule):
        modules.pop()
        normalize = True
    return tuple(modules), normalize


def output_size(hidden_size: int, modules: Sequence[Module]) -> int:
    """``E``: what becomes of ``D`` along the chain."""
    size = hidden_size
    for module in modules:
        match module:
            case PoolingModule(modes=modes):
                size *= len(modes)
            case DenseModule(out_features=out_features) | TextProjectionModule(out_features=out_features):
                size = out_features
            case SparseCodeModule(dimension=dimension):
                size = dimension
            case _:
                pass
    return size
