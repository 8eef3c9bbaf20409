"""Models that make something else than one dense vector: rerankers, classifiers, sparse, late interaction.

Decides from the repository's JSON which modules such a model has, and how its texts are encoded. What it
does not know it leaves to sentence-transformers. Knows no weights.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hilbert.core import (
    Module,
    MultivectorSpec,
    SpladeModule,
    TokenVectorsModule,
    TokenWeightsModule,
)
from hilbert.errors import ModelError
from hilbert.hub.chain import ModuleEntry, Unsupported
from hilbert.hub.files import read_json, read_object

# bge-m3 ships two linear layers beside its transformer.
M3_SPARSE = "sparse_linear.pt"
M3_VECTORS = "colbert_linear.pt"
MULTIVECTOR_TYPES = ("MultiVectorEncoder", "ColBERT")
# What PyLate takes where a repository says nothing.
QUERY_LEN = 32
DOCUMENT_LEN = 180


class _Vocabulary(msgspec.Struct):
    """The part of tokenizer.json that names tokens; a model's vocabulary is a table or a list of pairs."""

    model: dict[str, Any]
    added_tokens: list[dict[str, Any]] = []


def labels_of(config: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the logits."""
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    count = config.get("num_labels", 2)
    return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether config.json is that of a ``ForSequenceClassification``."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("ForSequenceClassification")


def classifier_activation(config: dict[str, Any], settings: dict[str, Any]) -> str:
    """The activation that sentence-transformers' CrossEncoder was saved with, ``""`` for its default."""
    nested = config.get("sentence_transformers")
    places = (
        settings.get("activation_fn"),
        nested.get("activation_fn") if isinstance(nested, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    return next((place for place in places if isinstance(place, str)), "")


def read_splade(
    snapshot: Path, entries: Sequence[ModuleEntry], transformer: dict[str, Any]
) -> tuple[Module, ...]:
    """The modules of a SparseEncoder.

    Raises:
        Unsupported: it is not a masked language model with SpladePooling alone.
    """
    names = [entry.name for entry in entries]
    is_masked_lm = names[0] == "MLMTransformer" or transformer.get("transformer_task") == "fill-mask"
    if names[1:] != ["SpladePooling"] or not is_masked_lm:
        classes = ", ".join(entry.class_path for entry in entries)
        raise Unsupported(f"a sparse encoder of the modules {classes}")
    config = read_object(snapshot / entries[1].folder / "config.json")
    strategy = str(config.get("pooling_strategy", "max"))
    activation = str(config.get("activation_function", "relu"))
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise Unsupported(f"SPLADE pooling {strategy!r} of {activation!r}")
    return (SpladeModule(strategy, activation),)


def read_m3(snapshot: Path, hidden_size: int) -> tuple[Module, ...]:
    """The two heads that bge-m3 has beside its dense vector; none for other repositories."""
    modules: list[Module] = []
    if (snapshot / M3_SPARSE).is_file():
        modules.append(TokenWeightsModule(M3_SPARSE))
    if (snapshot / M3_VECTORS).is_file():
        modules.append(TokenVectorsModule(hidden_size, file=M3_VECTORS, skip_first=True))
    return tuple(modules)


def read_multivector(
    snapshot: Path, entries: Sequence[ModuleEntry], transformer: dict[str, Any], settings: dict[str, Any]
) -> tuple[tuple[Module, ...], bool, MultivectorSpec, dict[str, str]]:
    """The modules of a late-interaction model, and how it encodes the two sides.

    Args:
        snapshot: the repository's folder.
        entries: modules.json, the transformer first.
        transformer: the Transformer module's own settings.
        settings: config_sentence_transformers.json.
    Returns:
        The modules, whether token vectors are normalised, the two sides, and the prompts.

    Raises:
        Unsupported: a module or a setting that is not computed here.
        ModelError: a configuration that nobody could run.
    """
    folders, skip_words, is_normalized, dimension = [], None, False, 0
    for entry in entries[1:]:
        config = read_object(snapshot / entry.folder / "config.json")
        if entry.name == "Dense":
            if not str(config.get("activation_function", "")).endswith("Identity"):
                raise Unsupported(f"the projection in {entry.folder!r} has an activation")
            if config.get("use_residual"):
                raise Unsupported(f"the projection in {entry.folder!r} has a residual connection")
            folders.append(entry.folder)
            dimension = int(config.get("out_features", 0))
        elif entry.name == "MultiVectorMask":
            skip_words = list(config.get("skiplist_words") or [])
            if list(config.get("skiplist_tasks") or ["document"]) != ["document"]:
                raise Unsupported("its skip list applies to queries")
            if config.get("keep_only_token_ids"):
                raise Unsupported("it keeps the vectors of some token ids only")
        elif entry.name == "Normalize":
            is_normalized = True
        else:
            raise Unsupported(f"module {entry.class_path!r} in a late-interaction model")
    if not dimension:
        raise Unsupported("a late-interaction model without a projection")
    if settings.get("model_type") == "ColBERT":  # PyLate: masks and normalises by itself
        is_normalized = True
        words = settings.get("skiplist_words")
        skip_words = list(string.punctuation) if words is None else list(words)
    prompts = {k: v for k, v in (settings.get("prompts") or {}).items() if isinstance(v, str)}
    for side in ("query", "document"):
        prefix = settings.get(f"{side}_prefix")
        if prefix:
            prompts[side] = prefix + prompts.get(side, "").removeprefix(prefix)
    modules = (TokenVectorsModule(dimension, folders=tuple(folders)),)
    sides = _sides(snapshot / entries[0].folder, transformer, settings, skip_words or [])
    return modules, is_normalized, sides, prompts


def _sides(
    folder: Path, transformer: dict[str, Any], settings: dict[str, Any], skip_words: list[str]
) -> MultivectorSpec:
    """Lengths, expansion and skip list, from the new settings or PyLate's flat ones."""
    ids, mask_id = _token_ids(folder)
    expansion = transformer.get("query_expansion", settings.get("query_expansion"))
    old = any(
        key in settings for key in ("query_prefix", "document_prefix", "do_query_expansion", "skiplist_words")
    )
    query_len = transformer.get("query_length") or settings.get("query_length")
    if expansion is None and old and settings.get("do_query_expansion") is not False:
        attends = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
        expansion = {"strategy": "fixed", "attend": bool(attends), "length": query_len or QUERY_LEN}
    expansion_id, attends = None, False
    if isinstance(expansion, dict):
        if expansion.get("strategy") != "fixed":
            raise Unsupported(f"query expansion by {expansion.get('strategy')!r}")
        token = expansion.get("token")
        expansion_id = mask_id if token is None else ids.get(token)
        if expansion_id is None:
            raise ModelError(f"{folder}: the expansion token {token or '[MASK]'!r} is not in the tokenizer")
        attends = bool(expansion.get("attend", False))
        query_len = int(expansion.get("length") or query_len or QUERY_LEN)
    document_len = transformer.get("document_length") or settings.get("document_length")
    return MultivectorSpec(
        query_len=int(query_len or 0),
        document_len=int(document_len or (DOCUMENT_LEN if old else 0)),
        expansion_id=expansion_id,
        attends_to_expansion=attends,
        skip_ids=tuple(sorted(ids[word] for word in skip_words if word in ids)),
    )


def _token_ids(folder: Path) -> tuple[dict[str, int], int | None]:
    """Ids by token, and that of the mask token."""
    try:
        vocabulary = msgspec.json.decode((folder / "tokenizer.json").read_bytes(), type=_Vocabulary)
    except (OSError, msgspec.MsgspecError) as error:
        raise Unsupported(f"its tokenizer.json cannot be read ({error})") from error
    table = vocabulary.model.get("vocab", {})
    if isinstance(table, dict):
        ids = {str(token): int(place) for token, place in table.items()}
    else:
        ids = {str(pair[0]): place for place, pair in enumerate(table)}
    ids |= {str(token["content"]): int(token["id"]) for token in vocabulary.added_tokens}
    named = read_json(folder / "tokenizer_config.json") or {}
    mask = named.get("mask_token") if isinstance(named, dict) else None
    if isinstance(mask, dict):
        mask = mask.get("content")
    return ids, ids.get(str(mask)) if mask else ids.get("[MASK]")


def special_ids(folder: Path) -> tuple[int, ...]:
    """Ids of cls, eos, pad and unk: the special tokens that bge-m3's sparse vectors leave out."""
    named = read_json(folder / "tokenizer_config.json")
    ids, _ = _token_ids(folder)
    found = set()
    for key in ("cls_token", "eos_token", "pad_token", "unk_token"):
        token = named.get(key) if isinstance(named, dict) else None
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token in ids:
            found.add(ids[token])
    return tuple(sorted(found))
