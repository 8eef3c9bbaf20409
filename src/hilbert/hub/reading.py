"""A snapshot folder to a `ModelSpec`, from the repository's own JSON.

Reads three layouts: sentence-transformers (modules.json), plain transformers (config.json alone) and
model2vec; a fourth, GLiNER's, is read in `extractors`. Never imports torch or transformers; the values equal
what sentence-transformers would load (tests/hub/test_families.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hilbert.core import (
    RELEVANCE,
    ChatSpec,
    ClassifierModule,
    DenseModule,
    Modality,
    ModelSpec,
    Module,
    MultivectorSpec,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
    SparseCodeModule,
    SpladeModule,
    StaticQueriesSpec,
    Task,
    TextTower,
    TokenWeightsModule,
    Tower,
    with_task,
)
from hilbert.errors import ModelError, ModelUnavailable, in_short
from hilbert.hub import heads
from hilbert.hub.chain import ModuleEntry, Unsupported, output_size, read_chain, read_entries
from hilbert.hub.chat import frame_of_queries, names_pair_roles, read_chat, read_template
from hilbert.hub.extractors import is_extractor, read_extractor
from hilbert.hub.files import read_object, tensor_shapes
from hilbert.hub.lengths import max_model_len
from hilbert.hub.towers import is_dual, other_tower, read_dual
from hilbert.hub.weights import embedding_shape, graph_files, weight_files

# The Transformer module's own file had a name per family once.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Names that sentence-transformers knows for every model, with an empty text where the repository has none.
EMPTY_PROMPTS = ("query", "document")
TASKS = {
    "CrossEncoder": Task.RERANK,
    "SparseEncoder": Task.SPARSE_EMBED,
    "MultiVectorEncoder": Task.MULTI_EMBED,
    "ColBERT": Task.MULTI_EMBED,
}
LOADED_AS = {name: name for name in ("CrossEncoder", "SparseEncoder", "MultiVectorEncoder")} | {
    "ColBERT": "MultiVectorEncoder"
}
# What a Transformer module returns for each thing that it can be loaded for.
TRANSFORMER_OUTPUTS = {
    "feature-extraction": "last_hidden_state",
    "sequence-classification": "logits",
    "fill-mask": "logits",
    "text-generation": "logits",
}
# Arguments for the tokenizer that change nothing but padding, which Hilbert does not do.
HARMLESS_TOKENIZER_ARGUMENTS = frozenset(
    {"model_max_length", "padding_side", "use_fast", "trust_remote_code"}
)


class _TokenizerConfig(msgspec.Struct):
    """What is needed of tokenizer_config.json; the rest (it may be megabytes) is skipped unread."""

    model_max_length: Any = None


@dataclass
class _Draft:
    """What the layouts have in common, filled in by one of them."""

    config: dict[str, Any]
    folder: str = ""
    kind: str = "transformer"
    reason: str = ""
    modules: tuple[Module, ...] = ()
    normalize: bool = False
    max_seq_length: Any = None
    tokenizer_max: Any = None
    lower_case: bool = False
    remote_code: bool = False
    transformer: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    activation: str = ""
    special_ids: tuple[int, ...] = ()
    multivector: MultivectorSpec | None = None
    prompts: dict[str, str] | None = None
    family: str = ""
    text_tower: TextTower | None = None
    towers: tuple[Tower, ...] = ()
    chat: ChatSpec | None = None
    static_queries: StaticQueriesSpec | None = None
    answer_ids: tuple[int, int] | None = None
    is_masked_lm: bool = False
    loaded_as: str = "SentenceTransformer"
    settings: dict[str, Any] = field(default_factory=dict)

    def leave_to_sentence_transformers(self, reason: str) -> None:
        """Only the first reason is kept: it is the one to look at first."""
        if self.kind != "other":
            self.kind, self.reason = "other", reason


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the text model, where it is nested."""
    for key in ("text_config", "thinker_config", "llm_config", "vlm_config"):
        nested = config.get(key)
        if isinstance(nested, dict):
            return text_config(nested)
    return config


def hidden_size(config: dict[str, Any]) -> int | None:
    """``D``, under any of the names that families give it."""
    text = text_config(config)
    for key in ("hidden_size", "d_model", "dim", "n_embd", "hidden_dim"):
        value = text.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _tokenizer_max(folder: Path) -> Any:
    try:
        data = (folder / "tokenizer_config.json").read_bytes()
        return msgspec.json.decode(data, type=_TokenizerConfig).model_max_length
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelUnavailable(f"{folder / 'tokenizer_config.json'} cannot be read: {error}.") from error


def _arguments(settings: dict[str, Any], new: str, old: str) -> dict[str, Any]:
    value = settings.get(new, settings.get(old))
    return value if isinstance(value, dict) else {}


def _read_transformer(draft: _Draft, snapshot: Path) -> None:
    """The settings of the Transformer module; they may change config.json and the length."""
    folder = snapshot / draft.folder
    settings = next((found for name in TRANSFORMER_CONFIGS if (found := read_object(folder / name))), {})
    draft.transformer = settings
    draft.max_seq_length = settings.get("max_seq_length")
    draft.lower_case = bool(settings.get("do_lower_case", False))

    overrides = _arguments(settings, "config_kwargs", "config_args")
    draft.config = draft.config | {k: v for k, v in overrides.items() if k != "trust_remote_code"}
    tokenizer = _arguments(settings, "processor_kwargs", "tokenizer_args")
    if "model_max_length" in tokenizer:
        draft.max_seq_length = tokenizer["model_max_length"]
    if unknown := sorted(set(tokenizer) - HARMLESS_TOKENIZER_ARGUMENTS):
        draft.leave_to_sentence_transformers(f"its tokenizer wants the argument {unknown[0]!r}")

    task = settings.get("transformer_task", "feature-extraction")
    if task not in TRANSFORMER_OUTPUTS:
        draft.leave_to_sentence_transformers(f"its transformer is loaded for {task!r}")
    processing = settings.get("processing_kwargs")
    processing = processing if isinstance(processing, dict) else {}
    if processing.get("text") or processing.get("common"):
        draft.leave_to_sentence_transformers("its processing_kwargs change how text is tokenized")
    modalities = settings.get("modality_config")
    if isinstance(modalities, dict) and task in TRANSFORMER_OUTPUTS:
        wanted = {"method": "forward", "method_output_name": TRANSFORMER_OUTPUTS[task]}
        message = modalities.get("message")
        through = message if isinstance(message, dict) else modalities.get("text")
        if not isinstance(through, dict) or {k: v for k, v in through.items() if k != "format"} != wanted:
            draft.leave_to_sentence_transformers("text does not go through the model's plain forward pass")
        elif through is message and modalities.keys() <= {"text", "message"}:
            _read_chat(draft, folder, message, processing)


def _read_chat(
    draft: _Draft, folder: Path, message: dict[str, Any] | None, processing: dict[str, Any]
) -> None:
    try:
        draft.chat = read_chat(folder, draft.config, message, processing)
    except Unsupported as unsupported:
        draft.leave_to_sentence_transformers(str(unsupported))


def _read_sentence_transformers(
    snapshot: Path, entries: tuple[ModuleEntry, ...], trust_remote_code: bool
) -> _Draft:
    settings = read_object(snapshot / "config_sentence_transformers.json")
    static_queries, route_error = None, ""
    if [entry.name for entry in entries] == ["Router"]:
        try:
            entries, static_queries = heads.read_router(snapshot, entries[0], settings)
        except Unsupported as unsupported:
            route_error = str(unsupported)
    entries = heads.with_known_names(entries, settings)
    first = entries[0]
    draft = _Draft(config=read_object(snapshot / first.folder / "config.json"), folder=first.folder)
    draft.settings, draft.static_queries = settings, static_queries
    draft.loaded_as = LOADED_AS.get(str(settings.get("model_type", "")), draft.loaded_as)
    draft.remote_code = any(entry.name == "" for entry in entries)
    if route_error:
        draft.leave_to_sentence_transformers(route_error)
        return draft
    if (
        first.name in ("CLIPModel", "Transformer")
        and is_dual(draft.config)
        and _is_plain_dual(draft, snapshot)
    ):
        _read_dual(draft, snapshot)
        try:
            _append_chain(draft, snapshot, entries, trust_remote_code)
        except Unsupported as unsupported:
            draft.leave_to_sentence_transformers(str(unsupported))
        return draft
    if first.name in ("Transformer", "MLMTransformer"):
        _read_transformer(draft, snapshot)
        if not draft.config:
            draft.leave_to_sentence_transformers("its transformer has no config.json (an adapter?)")
    elif first.name == "StaticEmbedding":
        draft.kind, draft.config = "static", {}
    else:
        draft.leave_to_sentence_transformers(f"its first module is {first.class_path!r}")
    try:
        _read_modules(draft, snapshot, entries, trust_remote_code)
    except Unsupported as unsupported:
        draft.leave_to_sentence_transformers(str(unsupported))
    return draft


def _is_plain_dual(draft: _Draft, snapshot: Path) -> bool:
    """Whether each side of a dual model is asked for its own features, and nothing else."""
    if draft.settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return False
    settings = read_object(snapshot / draft.folder / TRANSFORMER_CONFIGS[0])
    modalities = settings.get("modality_config")
    if not isinstance(modalities, dict):
        return str(settings.get("transformer_task", "feature-extraction")) == "feature-extraction"
    return all(
        isinstance(way, dict)
        and way.get("method") == f"get_{modality}_features"
        and way.get("method_output_name") == "pooler_output"
        for modality, way in modalities.items()
    )


def _read_dual(draft: _Draft, snapshot: Path) -> None:
    """A model with a tower beside its text; both sides end in the same space."""
    folder = snapshot / draft.folder
    dual = read_dual(folder, draft.config)
    draft.family = str(draft.config["model_type"])
    draft.config, draft.modules, draft.normalize = dual.config, dual.modules, dual.normalize
    draft.text_tower, draft.towers, draft.lower_case = dual.text, (dual.tower,), dual.lower_case
    draft.max_seq_length = read_object(folder / TRANSFORMER_CONFIGS[0]).get("max_seq_length")


def _append_chain(
    draft: _Draft, snapshot: Path, entries: tuple[ModuleEntry, ...], trust_remote_code: bool
) -> None:
    """The modules that both sides of a dual model go through at the end."""
    chain, normalize = read_chain(snapshot, entries[1:], trust_remote_code=trust_remote_code)
    if any(isinstance(module, PoolingModule) for module in chain):
        raise Unsupported("it pools what is one vector already")
    if chain and draft.normalize:
        chain = (NormalizeModule(), *chain)
        draft.normalize = False
    draft.modules += chain
    draft.normalize = draft.normalize or normalize


def _read_modules(
    draft: _Draft, snapshot: Path, entries: tuple[ModuleEntry, ...], trust_remote_code: bool
) -> None:
    """What follows the transformer, by the kind of model that the repository says it is."""
    kind = str(draft.settings.get("model_type", ""))
    if draft.transformer.get("transformer_task") == "retrieval":
        _read_retriever(draft, snapshot)
    elif kind in heads.MULTIVECTOR_TYPES:
        draft.multivector, draft.prompts = heads.read_sides(
            snapshot, entries, draft.transformer, draft.settings
        )
        draft.modules, draft.normalize = heads.read_token_chain(snapshot, entries, draft.settings)
    elif kind == "SparseEncoder" or any(entry.name == "SpladePooling" for entry in entries):
        draft.modules = heads.read_sparse(snapshot, entries, draft.transformer)
        draft.loaded_as = "SparseEncoder"
    elif kind == "CrossEncoder":
        _read_cross_encoder(draft, snapshot, entries, trust_remote_code)
    else:
        task = draft.transformer.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise Unsupported(f"its transformer is loaded for {task!r}")
        for key in ("query_length", "document_length", "query_expansion"):
            if draft.transformer.get(key):
                raise Unsupported(f"it sets {key}")
        draft.modules, draft.normalize = read_chain(
            snapshot, entries[1:], trust_remote_code=trust_remote_code
        )
        if draft.kind == "transformer":
            _check_chain(draft)
            draft.modules += heads.read_m3(snapshot, hidden_size(draft.config) or 0)
            if any(isinstance(module, TokenWeightsModule) for module in draft.modules):
                draft.special_ids = heads.special_ids(snapshot / draft.folder)


def _read_cross_encoder(
    draft: _Draft, snapshot: Path, entries: tuple[ModuleEntry, ...], trust_remote_code: bool
) -> None:
    """A classification head of its own, the logits of a language model, or a score from the pooled vector."""
    task = draft.transformer.get("transformer_task", "feature-extraction")
    names = [entry.name for entry in entries[1:]]
    draft.activation = heads.classifier_activation(draft.config, draft.settings)
    if not names and heads.is_classifier(draft.config):
        _read_classifier(draft)
    elif names == ["LogitScore"] and task == "text-generation":
        draft.modules = (heads.read_logit_score(snapshot / entries[1].folder),)
        draft.labels = (RELEVANCE,)
    elif names[:1] == ["Pooling"] and task == "feature-extraction":
        chain, _ = read_chain(snapshot, entries[1:], trust_remote_code=trust_remote_code, output="scores")
        if not isinstance(chain[-1], DenseModule):
            raise Unsupported("a cross-encoder whose last module is not Dense")
        num_labels = chain[-1].out_features
        draft.modules = (*chain, ClassifierModule(num_labels, is_own=False))
        draft.labels = tuple(f"LABEL_{i}" for i in range(num_labels))
    else:
        if heads.is_classifier(draft.config):
            draft.labels = heads.labels_of(draft.config)
        classes = ", ".join(entry.class_path for entry in entries)
        raise Unsupported(f"a cross-encoder of the modules {classes}, its transformer loaded for {task!r}")


def _read_classifier(draft: _Draft) -> None:
    draft.loaded_as = "CrossEncoder"
    draft.labels = heads.labels_of(draft.config)
    draft.modules = (ClassifierModule(len(draft.labels)),)
    draft.activation = heads.classifier_activation(draft.config, draft.settings)


def _read_retriever(draft: _Draft, snapshot: Path) -> None:
    """Visual late interaction as transformers has it: texts are queries, pages images."""
    name = _architecture(draft.config)
    draft.leave_to_sentence_transformers(f"{name} makes a vector for each part of an image itself")
    draft.loaded_as = "MultiVectorEncoder"
    draft.chat = frame_of_queries(snapshot / draft.folder, str(draft.config.get("model_type")))


def _read_stanford(draft: _Draft, snapshot: Path) -> None:
    """ColBERT as Stanford's own library saves it."""
    draft.settings, draft.loaded_as = heads.stanford_settings(snapshot), "MultiVectorEncoder"
    body = (ModuleEntry("Transformer", "", ""),)
    try:
        draft.multivector, draft.prompts = heads.read_sides(snapshot, body, {}, draft.settings)
    except Unsupported as unsupported:
        raise ModelUnavailable(f"{snapshot}: a ColBERT whose sides cannot be told: {unsupported}.") from None
    draft.modules = (heads.stanford_projection(snapshot, weight_files(snapshot)),)
    draft.normalize = True


def _check_chain(draft: _Draft) -> None:
    pools = [i for i, module in enumerate(draft.modules) if isinstance(module, PoolingModule)]
    if pools != [0]:
        draft.leave_to_sentence_transformers(
            "its chain does not pool exactly once, right after the transformer"
        )


def _read_plain(snapshot: Path) -> _Draft:
    """A repository without modules.json: what sentence-transformers makes of it.

    Mean pooling without normalisation; the last token where the weights were a causal language model.
    """
    config = read_object(snapshot / "config.json")
    if not config:
        raise ModelUnavailable(
            f"{snapshot} holds neither modules.json nor config.json; it is not a model repository."
        )
    draft = _Draft(config=config, settings=read_object(snapshot / "config_sentence_transformers.json"))
    if config.get("model_type") == "model2vec":
        draft.kind, draft.config = "static", {}
        draft.normalize = bool(config.get("normalize", False))
        return draft
    if is_dual(config):
        _read_dual(draft, snapshot)
        return draft
    if heads.is_stanford(config):
        _read_stanford(draft, snapshot)
        return draft
    if _architecture(config).endswith("ForRetrieval"):
        _read_retriever(draft, snapshot)
        return draft
    if text_config(config) is not config:
        draft.leave_to_sentence_transformers("it takes more than text and has no modules.json")
    template = read_template(snapshot)
    if heads.is_classifier(config):
        _read_classifier(draft)
        if template is not None and names_pair_roles(template):
            _read_chat(draft, snapshot, None, {})
        return draft
    if template is not None:
        _read_chat(draft, snapshot, None, {})
    is_causal = _architecture(config).endswith("ForCausalLM") and config.get("is_causal", True)
    if _architecture(config).endswith("ForCausalLM"):
        draft.answer_ids = heads.answer_ids(snapshot)
    draft.is_masked_lm = _architecture(config).endswith("ForMaskedLM")
    draft.modules = (PoolingModule((PoolingMode.LAST if is_causal else PoolingMode.MEAN,)),)
    draft.modules += heads.read_m3(snapshot, hidden_size(config) or 0)
    if any(isinstance(module, TokenWeightsModule) for module in draft.modules):
        draft.special_ids = heads.special_ids(snapshot)
    return draft


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _task(draft: _Draft) -> Task:
    if draft.labels:
        return Task.RERANK if len(draft.labels) == 1 else Task.CLASSIFY
    if any(isinstance(module, SpladeModule | SparseCodeModule) for module in draft.modules):
        return Task.SPARSE_EMBED
    return TASKS.get(draft.loaded_as, Task.EMBED)


def _static_shape(folder: Path, weights: tuple[str, ...]) -> tuple[int, int] | None:
    """Token ids and vector length of an embedding table; a model2vec `mapping` has one row per id."""
    if not weights or not weights[0].endswith(".safetensors"):
        return None
    shapes = tensor_shapes(folder / weights[0])
    table = shapes.get("embedding.weight") or shapes.get("embeddings")
    if table is None or len(table) != 2:
        raise ModelError(f"{folder / weights[0]} holds no embedding table, only {sorted(shapes)[:5]}.")
    mapping = shapes.get("mapping", table)
    return mapping[0], table[1]


def _prompts(settings: dict[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts")
    return {k: v for k, v in prompts.items() if isinstance(v, str)} if isinstance(prompts, dict) else {}


def read_spec(
    snapshot: Path, *, model_id: str, commit: str = "", trust_remote_code: bool = False
) -> ModelSpec:
    """Describe the model in a folder. `digest` is left empty; `resolve` fills it.

    Args:
        snapshot: the repository's files.
        model_id: what the user typed.
        commit: the hub commit, ``""`` for a plain folder.
        trust_remote_code: the user allows code of the repository's own.
    Raises:
        ModelUnavailable: files are missing or broken.
        ModelError: the JSON contradicts itself, or a path leaves the repository.
    """
    try:
        return _read_spec(snapshot, model_id, commit, trust_remote_code)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a list where a name belongs
        raise ModelError(
            f"{snapshot}: its JSON files hold a value of a kind that does not belong there "
            f"({type(error).__name__}: {in_short(error)}); download the model again or correct them."
        ) from error


def _read_spec(snapshot: Path, model_id: str, commit: str, trust_remote_code: bool) -> ModelSpec:
    if is_extractor(snapshot):
        return read_extractor(snapshot, model_id, commit, _tokenizer_max(snapshot))
    entries = read_entries(snapshot)
    draft = (
        _read_plain(snapshot)
        if entries is None
        else _read_sentence_transformers(snapshot, entries, trust_remote_code)
    )
    folder = snapshot / draft.folder
    weights = weight_files(folder)
    graphs = graph_files(snapshot) if draft.kind != "static" else ()
    if not weights and not graphs and draft.kind != "other":
        raise ModelUnavailable(
            f"{folder} holds no weights (model.safetensors, pytorch_model.bin) and no graph "
            "(openvino/, onnx/); download the model again (`hilbert models pull`)."
        )

    if draft.kind == "other" and not draft.towers:
        ways = read_object(folder / TRANSFORMER_CONFIGS[0]).get("modality_config")
        tower = other_tower(folder, draft.config, ways)
        draft.towers = () if tower is None else (tower,)
    num_types = draft.config.get("type_vocab_size")
    if num_types is not None and (not isinstance(num_types, int) or num_types < 0):
        raise ModelError(
            f"{folder / 'config.json'}: type_vocab_size is {num_types!r}; it must be a whole number of at "
            "least 0. Download the model again or correct the file."
        )
    text = text_config(draft.config)
    size, vocab_size = hidden_size(draft.config), text.get("vocab_size")
    if draft.kind == "static":
        shape = _static_shape(folder, weights)
        if shape is None:
            draft.leave_to_sentence_transformers("its embedding table is not a safetensors file")
        vocab_size, size = shape or (0, 0)
        length = None
    else:
        if size is None or not isinstance(vocab_size, int):
            rows, columns = embedding_shape(folder, weights) or (0, 0)
            size, vocab_size = size or columns, vocab_size or rows
        length = max_model_len(text, _tokenizer_max(folder), draft.max_seq_length)
    if draft.kind == "transformer" and not (size and vocab_size):
        draft.leave_to_sentence_transformers("config.json gives no hidden_size or vocab_size")

    settings = draft.settings
    prompts = _prompts(settings) if draft.prompts is None else draft.prompts
    truncate_dim = settings.get("truncate_dim")
    max_active_dims = settings.get("max_active_dims") or heads.default_active_dims(draft.modules)
    similarity = settings.get("similarity_fn_name")
    default_prompt = settings.get("default_prompt_name")
    if default_prompt is not None and default_prompt not in {*prompts, *EMPTY_PROMPTS}:
        raise ModelError(
            f"{snapshot / 'config_sentence_transformers.json'}: default_prompt_name is {default_prompt!r}, "
            f"the prompts are {sorted(prompts)}."
        )
    spec = ModelSpec(
        model_id=model_id,
        path=str(snapshot),
        commit=commit,
        digest="",
        kind=draft.kind,
        reason=draft.reason,
        family=draft.family or str(text.get("model_type", "")),
        architecture=_architecture(draft.config),
        config=draft.config,
        transformer_folder=draft.folder,
        modules=draft.modules,
        normalize=draft.normalize,
        hidden_size=size or 0,
        dimensions=output_size(size or 0, draft.modules),
        max_model_len=length,
        vocab_size=vocab_size if isinstance(vocab_size, int) else 0,
        lower_case=draft.lower_case,
        prompts=prompts,
        default_prompt_name=default_prompt,
        similarity=similarity if similarity in SIMILARITIES else "cosine",
        weights=weights,
        graph_files=graphs,
        remote_code=draft.remote_code or bool(draft.config.get("auto_map")),
        task=_task(draft),
        labels=draft.labels,
        problem_type=str(draft.config.get("problem_type") or ""),
        activation=draft.activation,
        truncate_dim=truncate_dim if isinstance(truncate_dim, int) and truncate_dim > 0 else None,
        special_ids=draft.special_ids,
        multivector=draft.multivector,
        modalities=(Modality.TEXT, *(tower.modality for tower in draft.towers)),
        towers=draft.towers,
        text_tower=draft.text_tower,
        chat=draft.chat,
        static_queries=draft.static_queries,
        max_active_dims=max_active_dims if isinstance(max_active_dims, int) else None,
        answer_ids=draft.answer_ids,
        is_masked_lm=draft.is_masked_lm,
        loaded_as=draft.loaded_as,
    )
    if entries is None and draft.answer_ids and draft.chat and names_pair_roles(draft.chat.template):
        return with_task(spec, Task.RERANK)
    return spec
