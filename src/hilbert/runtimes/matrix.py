"""Which engine returns which output of which kind of model: the one table, also of docs/engines.md.

Told from a `ModelSpec` alone. tests/conformance loads a model of every kind in every engine and holds the
table to what comes out; what is not in it is refused by name, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from hilbert.core import (
    ClassifierModule,
    LogitScoreModule,
    ModelSpec,
    OutputType,
    SparseCodeModule,
    SpladeModule,
    TokenWeightsModule,
)
from hilbert.errors import UnsupportedArchitecture
from hilbert.programs.choose import CTRANSLATE2_FAMILIES

Kind = Literal["embedder", "cross-encoder", "sparse", "bge-m3", "late interaction", "dual", "static", "other"]
ENGINES = ("openvino", "torch", "onnx", "ctranslate2")
Outputs = frozenset[OutputType]

_DENSE = frozenset({OutputType.DENSE})
_TOKENS = _DENSE | {OutputType.MULTIVECTOR}
_LOGITS = frozenset({OutputType.LOGITS})
_NONE: Outputs = frozenset()

# Per kind: what it is called in words, then what each engine returns.
MATRIX: dict[Kind, tuple[str, dict[str, Outputs]]] = {
    "embedder": (
        "embedder (a transformer and a pooling)",
        {"openvino": _TOKENS, "torch": _TOKENS, "onnx": _TOKENS, "ctranslate2": _TOKENS},
    ),
    "cross-encoder": (
        "reranker or classifier",
        {"openvino": _LOGITS, "torch": _LOGITS, "onnx": _LOGITS, "ctranslate2": _NONE},
    ),
    "sparse": (
        "sparse encoder (SPLADE)",
        dict.fromkeys(ENGINES[:3], frozenset({OutputType.SPARSE})) | {"ctranslate2": _NONE},
    ),
    "bge-m3": (
        "bge-m3",
        dict.fromkeys(ENGINES[:3], _TOKENS | {OutputType.SPARSE}) | {"ctranslate2": _DENSE},
    ),
    "late interaction": (
        "late interaction (ColBERT)",
        dict.fromkeys(ENGINES[:3], frozenset({OutputType.MULTIVECTOR})) | {"ctranslate2": _NONE},
    ),
    "dual": (
        "text beside images or sounds (CLIP, SigLIP, CLAP)",
        {"openvino": _DENSE, "torch": _DENSE, "onnx": _NONE, "ctranslate2": _NONE},
    ),
    "static": ("static embeddings", dict.fromkeys(ENGINES, _DENSE)),
    "other": (
        "anything else that sentence-transformers loads: one of",
        dict.fromkeys(ENGINES[:2], frozenset(OutputType)) | dict.fromkeys(ENGINES[2:], _NONE),
    ),
}
# What sentence-transformers' classes return.
_LOADED_AS = {
    "SentenceTransformer": _DENSE,
    "CrossEncoder": _LOGITS,
    "SparseEncoder": frozenset({OutputType.SPARSE}),
    "MultiVectorEncoder": frozenset({OutputType.MULTIVECTOR}),
}


def kind_of(spec: ModelSpec) -> Kind:
    """The row of the table that a model belongs to."""
    if spec.kind != "transformer":
        return "static" if spec.kind == "static" else "other"
    if spec.towers:
        return "dual"
    modules = {type(module) for module in spec.modules}
    if modules & {ClassifierModule, LogitScoreModule}:
        return "cross-encoder"
    if modules & {SpladeModule, SparseCodeModule}:
        return "sparse"
    if TokenWeightsModule in modules:
        return "bge-m3"
    return "embedder" if spec.pooling is not None else "late interaction"


def returned(spec: ModelSpec, engine: str) -> Outputs:
    """What an engine returns of a model; nothing where it cannot run it."""
    if engine == "ctranslate2" and spec.kind == "transformer" and spec.family not in CTRANSLATE2_FAMILIES:
        return _NONE
    found = MATRIX[kind_of(spec)][1][engine]
    return found & _LOADED_AS[spec.loaded_as] if kind_of(spec) == "other" else found


def engines_for(spec: ModelSpec, outputs: Iterable[OutputType] = ()) -> list[str]:
    """The engines that return all of these outputs, or any where none are named."""
    wanted = set(outputs)
    return [e for e in ENGINES if (found := returned(spec, e)) and wanted <= found]


def check(spec: ModelSpec, engine: str) -> None:
    """Refuse what the table does not hold.

    Raises:
        UnsupportedArchitecture: the engine returns nothing of this model; the message names one that does.
    """
    if returned(spec, engine):
        return
    able = " or ".join(engines_for(spec))
    wanted = ", ".join(sorted(returned(spec, engines_for(spec)[0])))
    family = f" of the family {spec.family!r}" if spec.family else ""
    raise UnsupportedArchitecture(
        f"{spec.model_id}: engine {engine} does not return {wanted} of a model{family} that is "
        f"{MATRIX[kind_of(spec)][0]}; take --engine {able}"
    )


def table() -> str:
    """The table in markdown."""
    rows = ["| kind of model | " + " | ".join(f"`--engine {e}`" for e in ENGINES) + " |"]
    rows.append("|---" * (len(ENGINES) + 1) + "|")
    for name, cells in MATRIX.values():
        shown = [", ".join(sorted(cells[engine])) or "nothing" for engine in ENGINES]
        rows.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(rows)
