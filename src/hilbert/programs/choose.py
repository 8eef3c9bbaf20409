"""Which program a model gets, told from its `ModelSpec` alone: no weights, no torch.

This is the plan. The truth is decided when the model is loaded: a packed program that does not agree
with the model's own attention falls back to the padded one, that one to sentence-transformers, and
the artifact records what was taken and why.
"""

from __future__ import annotations

from typing import Any, Literal

from hilbert.core import ClassifierModule, ModelSpec, SparseCodeModule, TokenVectorsModule

Program = Literal["packed", "padded", "static", "sentence-transformers", "gliner"]

# What a model is traced or converted to.
Target = Literal["openvino", "onnx", "ctranslate2"]

# Bump when the meaning of an artifact's inputs or outputs changes: older entries are then rebuilt.
PROGRAM_VERSION = 4

# Attention through transformers' AttentionInterface, checked by tests/parity/test_every_family.py.
PACKED_FAMILIES = frozenset(
    {
        "bert",
        "camembert",
        "clap",
        "clip",
        "distilbert",
        "electra",
        "gemma",
        "gemma3_text",
        "mistral",
        "modernbert",
        "nomic_bert",
        "qwen2",
        "qwen3",
        "roberta",
        "siglip",
        "xlm-roberta",
    }
)

# Relative position bias inside attention: each needs its own attention code, so its own padding.
PADDED_FAMILIES = {
    "mpnet": "its relative position bias is added inside its own attention",
    "deberta": "its disentangled attention computes scores from positions itself",
    "deberta-v2": "its disentangled attention computes scores from positions itself",
    "t5": "its relative position bias is added inside its own attention",
    "mt5": "its relative position bias is added inside its own attention",
    "umt5": "its relative position bias is added inside its own attention",
}

# Encoders that CTranslate2's converters know; checked when they are converted.
CTRANSLATE2_FAMILIES = frozenset({"bert", "camembert", "distilbert", "roberta", "xlm-roberta"})

# Families whose learned positions start behind the padding id.
OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "clap"})


def plan(spec: ModelSpec) -> tuple[Program, str]:
    """The program to try first, and the reason in one sentence."""
    if spec.kind == "static":
        return "static", "a table of token vectors is averaged; there is no transformer to run"
    if spec.kind == "extractor":
        return "gliner", spec.reason
    if spec.kind == "other":
        return "sentence-transformers", spec.reason
    if spec.family in PADDED_FAMILIES:
        return "padded", f"{spec.family} cannot be packed: {PADDED_FAMILIES[spec.family]}"
    if spec.family in PACKED_FAMILIES:
        return "packed", f"{spec.family} attends through an interface that takes packed sequences"
    return "packed", f"{spec.family} is not in the list of checked families; it is checked when it is loaded"


# Families that read from left to right: their classifiers look at the last token that is not padding.
CAUSAL_FAMILIES = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"})


def trailing_id(spec: ModelSpec) -> int | None:
    """Token id that a causal classifier overlooks at the end of a sequence: the padding's; else None."""
    is_classifier = any(isinstance(module, ClassifierModule) and module.is_own for module in spec.modules)
    if not is_classifier or spec.family not in CAUSAL_FAMILIES:
        return None
    padding = spec.config.get("pad_token_id")
    return padding if isinstance(padding, int) else None


def unseen_id(spec: ModelSpec) -> int | None:
    """Token id that fills queries at their end and is seen by no other token; None where there is none.

    Source: ColBERT's query expansion without attention to the expansion, sentence-transformers' default.
    """
    sides = spec.multivector
    return None if sides is None or sides.attends_to_expansion else sides.expansion_id


def token_dimensions(spec: ModelSpec) -> int:
    """Width of a model's token vectors; 0 where it has none."""
    for module in spec.modules:
        if isinstance(module, TokenVectorsModule):
            return module.dimension
    is_embedder = spec.pooling is not None and not spec.towers and not has_other_end(spec)
    return spec.hidden_size if is_embedder and spec.kind == "transformer" else 0


def text_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a dual model's text side; of other models all of it."""
    config: dict[str, Any] = spec.config["text_config"] if spec.text_tower else spec.config
    return config


def has_other_end(spec: ModelSpec) -> bool:
    """Whether the pooled vector is only a step on the way to scores or to a sparse code."""
    return any(isinstance(module, ClassifierModule | SparseCodeModule) for module in spec.modules)


def position_offset(spec: ModelSpec) -> int:
    """What is added to positions counted from 0 before the model sees them."""
    if spec.family not in OFFSET_POSITIONS:
        return 0
    return int(text_config(spec).get("pad_token_id", 1)) + 1
