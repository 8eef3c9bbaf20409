"""Which files hold the weights and the shipped graphs of a snapshot. Reads no tensor.

safetensors first; ``.bin`` and ``.pt`` (pickles, loaded with ``weights_only=True`` elsewhere) only where
a repository has nothing else.
"""

from __future__ import annotations

from pathlib import Path

from hilbert.errors import ModelError, ModelUnavailable
from hilbert.hub.files import read_object, safe_folder, tensor_shapes

WHOLE_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "pytorch_model.pt")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
GRAPH_FILES = (
    ("openvino/openvino_model.xml", "openvino/openvino_model.bin"),
    ("openvino_model.xml", "openvino_model.bin"),
    ("onnx/model.onnx",),
    ("model.onnx",),
)
# Ends of the names that token embedding tables have, over all families.
EMBEDDING_NAMES = (
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_tokens.weight",
    "shared.weight",
    "wte.weight",
    "embedding.weight",
)


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    """The shard files of an index, in order.

    Raises:
        ModelUnavailable: a shard is missing.
    """
    weight_map = read_object(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / index} has no weight_map.")
    names = sorted({safe_folder(name, folder / index) for name in weight_map.values()})
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelUnavailable(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}; "
            "download the model again (`hilbert models pull`)."
        )
    return tuple(names)


def weight_files(folder: Path) -> tuple[str, ...]:
    """Weight files relative to `folder`, in load order; empty where it has none."""
    for whole, index in zip(WHOLE_FILES[:2], INDEX_FILES, strict=True):
        if (folder / whole).is_file():
            return (whole,)
        if (folder / index).is_file():
            return _shards(folder, index)
    return next(((name,) for name in WHOLE_FILES[2:] if (folder / name).is_file()), ())


def graph_files(snapshot: Path) -> tuple[str, ...]:
    """Shipped graphs that are there with all their files, relative to `snapshot`."""
    return tuple(names[0] for names in GRAPH_FILES if all((snapshot / name).is_file() for name in names))


def embedding_shape(folder: Path, weights: tuple[str, ...]) -> tuple[int, int] | None:
    """``[V, D]`` of the token embeddings, from safetensors headers; None where they do not say."""
    for name in weights:
        if not name.endswith(".safetensors"):
            continue
        for tensor, shape in tensor_shapes(folder / name).items():
            if tensor.endswith(EMBEDDING_NAMES) and len(shape) == 2:
                return shape[0], shape[1]
    return None
