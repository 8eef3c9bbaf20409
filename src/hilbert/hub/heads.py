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
    LogitScoreModule,
    Module,
    MultivectorSpec,
    NormalizeModule,
    SparseCodeModule,
    SpladeModule,
    StaticQueriesSpec,
    TokenVectorsModule,
    TokenWeightsModule,
)
from hilbert.errors import ModelError
from hilbert.hub.chain import ModuleEntry, Unsupported, read_chain
from hilbert.hub.files import read_json, read_object, safe_folder, tensor_shapes
from hilbert.hub.lengths import max_model_len

# bge-m3 ships two linear layers beside its transformer.
M3_SPARSE = "sparse_linear.pt"
M3_VECTORS = "colbert_linear.pt"
MULTIVECTOR_TYPES = ("MultiVectorEncoder", "ColBERT")
# Modules of PyLate that MultiVectorEncoder takes for its own.
_PYLATE_MODULES = {"pylate.models.Dense.Dense": "Dense"}
# What sentence-transformers takes where a repository of PyLate or of Stanford's ColBERT says nothing.
QUERY_LEN = 32
STANFORD_DIMENSION = 128
# By any of these it knows settings of PyLate, where queries are filled unless something else is said.
PYLATE_SETTINGS = frozenset(
    {
        "query_length",
        "document_length",
        "query_expansion",
        "do_query_expansion",
        "attend_to_expansion_tokens",
        "attend_to_mask_tokens",
        "query_prefix",
        "document_prefix",
        "skiplist_words",
    }
)


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


def read_logit_score(folder: Path) -> LogitScoreModule:
    """The answers that a language model is scored by.

    Raises:
        ModelError: an id is missing or is none.
    """
    source = folder / "config.json"
    config = read_object(source)
    true_id, false_id = config.get("true_token_id"), config.get("false_token_id")
    if not isinstance(true_id, int) or not isinstance(false_id, int | None):
        raise ModelError(f"{source}: true_token_id {true_id!r} and false_token_id {false_id!r} are no ids.")
    return LogitScoreModule(true_id, false_id)


def answer_ids(folder: Path) -> tuple[int, int] | None:
    """Ids of ``yes`` and ``no``, which CrossEncoder takes by default; None where one is missing."""
    try:
        ids, _ = _token_ids(folder)
    except Unsupported:
        return None
    return (ids["yes"], ids["no"]) if {"yes", "no"} <= ids.keys() else None


def read_router(
    snapshot: Path, router: ModuleEntry, settings: dict[str, Any]
) -> tuple[tuple[ModuleEntry, ...], StaticQueriesSpec]:
    """The modules of a sparse model's documents, and the table that its queries are weighed by.

    Raises:
        Unsupported: the router leads elsewhere.
        ModelError: a path leaves the repository.
    """
    names = ("router_config.json", "config.json")
    sources = (snapshot / router.folder / name for name in names)
    source, config = next(((s, c) for s in sources if (c := read_object(s))), (snapshot / names[0], {}))
    types, structure, parameters = (config.get(key) or {} for key in ("types", "structure", "parameters"))
    queries, documents = structure.get("query") or [], structure.get("document") or []
    classes = {name: str(types.get(name, "")) for name in (*queries, *documents)}
    is_known = (
        settings.get("model_type") == "SparseEncoder"
        and structure.keys() == {"query", "document"}
        and not parameters.get("route_mappings")
        and [classes[name].rpartition(".")[2] for name in queries] == ["SparseStaticEmbedding"]
        and all(path.startswith("sentence_transformers.") for path in classes.values())
        and documents
    )
    if not is_known:
        raise Unsupported("its router leads elsewhere than to static queries and inferred documents")

    def folder_of(name: str) -> str:
        return safe_folder(f"{router.folder}/{name}".lstrip("/"), source)

    folder = folder_of(queries[0])
    if not (snapshot / folder / "model.safetensors").is_file():
        raise Unsupported("the weights of its static queries are not a safetensors file")
    entries = (
        ModuleEntry(classes[name].rpartition(".")[2], classes[name], folder_of(name)) for name in documents
    )
    default = parameters.get("default_route") or next(iter(structure))
    tokenizer = read_object(snapshot / folder / "tokenizer_config.json")
    max_len = max_model_len({}, tokenizer.get("model_max_length"))
    return tuple(entries), StaticQueriesSpec(folder, max_len, is_default=default == "query")


def with_known_names(entries: Sequence[ModuleEntry], settings: dict[str, Any]) -> tuple[ModuleEntry, ...]:
    """The modules of a repository, those of PyLate under the names of sentence-transformers."""
    if settings.get("model_type") not in MULTIVECTOR_TYPES:
        return tuple(entries)
    return tuple(
        msgspec.structs.replace(entry, name=_PYLATE_MODULES.get(entry.class_path, entry.name))
        for entry in entries
    )


def default_active_dims(modules: Sequence[Module]) -> int | None:
    """How many weights a sparse vector keeps where the repository does not say."""
    return next((m.k for m in modules if isinstance(m, SparseCodeModule)), None)


def _read_sparse_code(snapshot: Path, entries: Sequence[ModuleEntry]) -> tuple[Module, ...]:
    chain, ends_normalized = read_chain(snapshot, entries[1:-1])
    source = snapshot / entries[-1].folder / "config.json"
    config = read_object(source)
    dimension, k = config.get("hidden_dim", 512), config.get("k", 8)
    if not isinstance(dimension, int) or not isinstance(k, int) or not 0 < k <= dimension:
        raise ModelError(f"{source}: k is {k!r} of hidden_dim {dimension!r}.")
    code = SparseCodeModule(entries[-1].folder, dimension, k, bool(config.get("normalize", False)))
    return (*chain, *((NormalizeModule(),) if ends_normalized else ()), code)


def read_sparse(
    snapshot: Path, entries: Sequence[ModuleEntry], transformer: dict[str, Any]
) -> tuple[Module, ...]:
    """The modules of a SparseEncoder.

    Raises:
        Unsupported: it is neither a masked language model with SpladePooling nor a SparseAutoEncoder behind
            a pooling.
        ModelError: a configuration that nobody could run.
    """
    names = [entry.name for entry in entries]
    if names[1:2] == ["Pooling"] and names[-1] == "SparseAutoEncoder":
        return _read_sparse_code(snapshot, entries)
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


def read_token_chain(
    snapshot: Path, entries: Sequence[ModuleEntry], settings: dict[str, Any]
) -> tuple[tuple[Module, ...], bool]:
    """The projection of a late-interaction model, and whether its token vectors are normalised.

    Args:
        snapshot: the repository's folder.
        entries: modules.json, the transformer first.
        settings: config_sentence_transformers.json.
    Raises:
        Unsupported: a module or a setting that is not computed here.
    """
    folders, is_normalized, dimension = [], settings.get("model_type") == "ColBERT", 0
    for entry in entries[1:]:
        config = read_object(snapshot / entry.folder / "config.json")
        if entry.name == "Dense":
            if not str(config.get("activation_function", "")).endswith("Identity"):
                raise Unsupported(f"the projection in {entry.folder!r} has an activation")
            if config.get("use_residual"):
                raise Unsupported(f"the projection in {entry.folder!r} has a residual connection")
            folders.append(entry.folder)
            dimension = int(config.get("out_features", 0))
        elif entry.name == "Normalize":
            is_normalized = True
        elif entry.name != "MultiVectorMask":
            raise Unsupported(f"module {entry.class_path!r} in a late-interaction model")
    if not dimension:
        raise Unsupported("a late-interaction model without a projection")
    return (TokenVectorsModule(dimension, folders=tuple(folders)),), is_normalized


def read_sides(
    snapshot: Path, entries: Sequence[ModuleEntry], transformer: dict[str, Any], settings: dict[str, Any]
) -> tuple[MultivectorSpec, dict[str, str]]:
    """How a late-interaction model encodes the two sides, and its prompts.

    Args:
        snapshot: the repository's folder.
        entries: modules.json, the transformer first.
        transformer: the Transformer module's own settings.
        settings: config_sentence_transformers.json.
    Raises:
        Unsupported: a setting that nobody but the library itself follows.
        ModelError: a configuration that nobody could run.
    """
    skip_words: list[str] = []
    skips_queries = False
    if settings.get("model_type") == "ColBERT":  # PyLate masks and normalises by itself
        words = settings.get("skiplist_words")
        skip_words = list(string.punctuation) if words is None else list(words)
    for entry in entries:
        if entry.name != "MultiVectorMask":
            continue
        config = read_object(snapshot / entry.folder / "config.json")
        if settings.get("model_type") != "ColBERT":
            skip_words = list(config.get("skiplist_words") or [])
        named = config.get("skiplist_tasks")
        tasks = ["document"] if named is None else [named] if isinstance(named, str) else list(named)
        skips_queries = "query" in tasks
        if not tasks:
            skip_words = []
        elif "document" not in tasks:
            raise Unsupported("its skip list does not apply to documents")
        if config.get("keep_only_token_ids"):
            raise Unsupported("it keeps the vectors of some token ids only")
    prompts = {k: v for k, v in (settings.get("prompts") or {}).items() if isinstance(v, str)}
    markers = []
    for side in ("query", "document"):
        prefix = settings.get(f"{side}_prefix")
        if prefix and isinstance(prefix, str):
            prompts[side] = prefix + prompts.get(side, "").removeprefix(prefix)
            markers.append(prefix)
    sides = _sides(snapshot / entries[0].folder, transformer, settings, skip_words)
    return msgspec.structs.replace(sides, skips_queries=skips_queries, markers=tuple(markers)), prompts


def is_stanford(config: dict[str, Any]) -> bool:
    """Whether config.json is that of Stanford's own ColBERT, whose projection lies among its weights."""
    names = config.get("architectures")
    return isinstance(names, list) and "HF_ColBERT" in names


def stanford_settings(snapshot: Path) -> dict[str, Any]:
    """``artifact.metadata`` of Stanford's ColBERT in the words of PyLate's settings.

    Source: sentence-transformers' MultiVectorEncoder.
    """
    metadata = read_object(snapshot / "artifact.metadata")
    skips = metadata.get("mask_punctuation", True)
    return {
        "model_type": "ColBERT",
        "query_prefix": (metadata.get("query_token_id") or "[unused0]") + " ",
        "document_prefix": (metadata.get("doc_token_id") or "[unused1]") + " ",
        "query_length": metadata.get("query_maxlen"),
        "document_length": metadata.get("doc_maxlen"),
        "attend_to_mask_tokens": bool(metadata.get("attend_to_mask_tokens")),
        "skiplist_words": list(string.punctuation) if skips else [],
    }


def stanford_projection(snapshot: Path, weights: Sequence[str]) -> TokenVectorsModule:
    """The projection ``linear.weight`` among the weights of Stanford's ColBERT."""
    dimension = read_object(snapshot / "artifact.metadata").get("dim")
    for name in weights:
        if name.endswith(".safetensors"):
            shape = tensor_shapes(snapshot / name).get("linear.weight")
            dimension = shape[0] if shape else dimension
    return TokenVectorsModule(dimension if isinstance(dimension, int) else STANFORD_DIMENSION, folders=("",))


def _sides(
    folder: Path, transformer: dict[str, Any], settings: dict[str, Any], skip_words: list[str]
) -> MultivectorSpec:
    """Lengths, expansion and skip list, from the new settings or PyLate's flat ones."""
    ids, mask_id = _token_ids(folder)
    query_len = transformer.get("query_length") or settings.get("query_length")
    places = (transformer, settings)
    expansion = next((place["query_expansion"] for place in places if "query_expansion" in place), None)
    is_silent = not any("query_expansion" in place for place in places)
    if is_silent and PYLATE_SETTINGS & settings.keys() and settings.get("do_query_expansion") is not False:
        attends = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
        expansion = {"strategy": "fixed", "attend": bool(attends), "length": query_len or QUERY_LEN}
    expansion_id, attends, expansion_len = None, False, 0
    if isinstance(expansion, dict):
        strategy = expansion.get("strategy")
        if strategy not in ("fixed", "min"):
            raise Unsupported(f"query expansion by {strategy!r}")
        token = expansion.get("token")
        expansion_id = mask_id if token is None else ids.get(token)
        if expansion_id is None:
            raise ModelError(f"{folder}: the expansion token {token or '[MASK]'!r} is not in the tokenizer")
        attends = bool(expansion.get("attend", False))
        expansion_len = int(expansion.get("length") or query_len or QUERY_LEN)
        if strategy == "fixed":
            query_len = expansion_len
        elif query_len:
            query_len = max(int(query_len), expansion_len)
    document_len = transformer.get("document_length") or settings.get("document_length")
    return MultivectorSpec(
        query_len=int(query_len or 0),
        document_len=int(document_len or 0),
        expansion_id=expansion_id,
        attends_to_expansion=attends,
        skip_ids=tuple(sorted(ids[word] for word in skip_words if word in ids)),
        expansion_len=expansion_len,
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
