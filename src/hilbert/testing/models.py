"""Tiny random models, built on the spot: real folders that sentence-transformers and Hilbert both load.

One call writes config.json, a real tokenizer, safetensors weights and the sentence-transformers layout.
The weights are random but not small: at an initial std of 0.02 a wrong attention scale would go unseen,
and biases of zero would hide a forgotten bias. torch and transformers are imported inside the call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilbert.testing.vocabularies import Builder, byte_fallback_bpe, byte_level_bpe, unigram, word_piece

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# Enough for three sliding windows and a text beyond the end.
MAX_POSITIONS = 128
WINDOW = 16
HIDDEN_SIZE = 64
MATRIX_STD = 0.15
EMBEDDING_STD = 0.3
VECTOR_STD = 0.1
TANH = "torch.nn.modules.activation.Tanh"
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True, slots=True)
class Dense:
    """A Dense layer of a tiny model; `activation` is the dotted torch name."""

    out_features: int
    bias: bool = True
    activation: str = TANH


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's tiny model is made.

    Attributes:
        config: values of config.json, over those that all families share.
        tokenizer: builds its tokenizer.
        special_tokens: named tokens for tokenizer_config.json.
        pooling: what models of this family use.
        dense: layers after the pooling.
        shared: config names of hidden size, layers, heads and feed-forward size.
        padding_side: `padding_side` of tokenizer_config.json.
        encoder_class: transformers class to save, where AutoModel is not the one.
        tokenizer_class: for tokenizer_config.json; this one takes tokenizer.json as it is.
    """

    config: Mapping[str, Any]
    tokenizer: Builder
    special_tokens: Mapping[str, str]
    pooling: str = "mean"
    dense: Sequence[Dense] = ()
    shared: tuple[str, str, str, str] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    padding_side: str = "right"
    encoder_class: str = "AutoModel"
    tokenizer_class: str = "PreTrainedTokenizerFast"


def _tokens(*, cls: str, sep: str, pad: str, unk: str, mask: str) -> dict[str, str]:
    return {"cls_token": cls, "sep_token": sep, "pad_token": pad, "unk_token": unk, "mask_token": mask}


_BERT = _tokens(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]", mask="[MASK]")
_ROBERTA = _tokens(cls="<s>", sep="</s>", pad="<pad>", unk="<unk>", mask="<mask>") | {
    "bos_token": "<s>",
    "eos_token": "</s>",
}
_MPNET = _ROBERTA | {"unk_token": "[UNK]"}
_bert_tokenizer = partial(word_piece, "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")

FAMILIES: dict[str, Family] = {
    "bert": Family(
        {"max_position_embeddings": MAX_POSITIONS, "type_vocab_size": 2, "pad_token_id": 0},
        _bert_tokenizer,
        _BERT,
        tokenizer_class="BertTokenizer",
    ),
    "roberta": Family(
        {
            "max_position_embeddings": MAX_POSITIONS + 2,
            "type_vocab_size": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        partial(byte_level_bpe, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ["<s>"], ["</s>"]),
        _ROBERTA,
    ),
    "xlm-roberta": Family(
        {
            "max_position_embeddings": MAX_POSITIONS + 2,
            "type_vocab_size": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        partial(unigram, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ["<s>"], ["</s>"], "<unk>"),
        _ROBERTA,
        pooling="cls",
    ),
    "distilbert": Family(
        {"max_position_embeddings": MAX_POSITIONS, "pad_token_id": 0},
        _bert_tokenizer,
        _BERT,
        shared=("dim", "n_layers", "n_heads", "hidden_dim"),
    ),
    "electra": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "embedding_size": 32,
            "type_vocab_size": 2,
            "pad_token_id": 0,
        },
        _bert_tokenizer,
        _BERT,
    ),
    "mpnet": Family(
        {
            "max_position_embeddings": MAX_POSITIONS + 2,
            "relative_attention_num_buckets": 32,
            "bos_token_id": 2,
            "pad_token_id": 1,
            "eos_token_id": 3,
        },
        partial(word_piece, "<s>", "</s>", "<pad>", "[UNK]", "<mask>"),
        _MPNET,
    ),
    "nomic_bert": Family(
        {"max_position_embeddings": MAX_POSITIONS, "type_vocab_size": 2, "pad_token_id": 0},
        _bert_tokenizer,
        _BERT,
    ),
    "modernbert": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "local_attention": WINDOW,
            "global_attn_every_n_layers": 3,
            "num_hidden_layers": 3,
            "cls_token_id": 0,
            "pad_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        partial(byte_level_bpe, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"], ["[CLS]"], ["[SEP]"]),
        _BERT,
    ),
    "deberta-v2": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "relative_attention": True,
            "position_buckets": 32,
            "max_relative_positions": -1,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pad_token_id": 0,
        },
        partial(unigram, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], ["[CLS]"], ["[SEP]"], "[UNK]"),
        _BERT,
    ),
    "t5": Family(
        {
            "d_kv": 16,
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 32,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        partial(unigram, ["<pad>", "</s>", "<unk>"], [], ["</s>"], "<unk>"),
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        shared=("d_model", "num_layers", "num_heads", "d_ff"),
        encoder_class="T5EncoderModel",
    ),
    "qwen3": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        partial(
            byte_level_bpe, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], ["<|endoftext|>"], nfc=True
        ),
        {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        pooling="lasttoken",
        padding_side="left",
    ),
    "qwen2": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
        partial(
            byte_level_bpe, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], ["<|endoftext|>"], nfc=True
        ),
        {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        pooling="lasttoken",
        padding_side="left",
    ),
    "gemma": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        partial(byte_fallback_bpe, ["<pad>", "<eos>", "<bos>", "<unk>"], ["<bos>"], []),
        {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        pooling="lasttoken",
        padding_side="left",
    ),
    "mistral": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        partial(byte_fallback_bpe, ["<unk>", "<s>", "</s>"], ["<s>"], ["</s>"]),
        {"pad_token": "</s>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        pooling="lasttoken",
        padding_side="left",
    ),
    "gemma3_text": Family(
        {
            "max_position_embeddings": MAX_POSITIONS,
            "use_bidirectional_attention": True,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        partial(byte_fallback_bpe, ["<pad>", "<eos>", "<bos>", "<unk>"], ["<bos>"], ["<eos>"]),
        {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        dense=(Dense(2 * HIDDEN_SIZE, False, IDENTITY), Dense(HIDDEN_SIZE, False, IDENTITY)),
    ),
}
_HEAD_CLASSES = {
    "classifier": "AutoModelForSequenceClassification",
    "splade": "AutoModelForMaskedLM",
    "routed": "AutoModelForMaskedLM",
    "logit_score": "AutoModelForCausalLM",
}
# Every transformer module that sentence-transformers 6 writes is this one.
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
PAIR_TEMPLATE = """{%- set wish = namespace(text="one that answers the query") %}
{%- for message in messages if message.role == "system" %}{% set wish.text = message.content %}{% endfor %}
{{- bos_token }}Find {{ wish.text }}.
Query: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
Document: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}
Is it one? yes or no:
"""
"""The chat template of a tiny language model that reranks."""
STATIC_FAMILIES = ("static", "model2vec")
"""The families without a transformer; `FAMILIES` has the others."""


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def _randomise(module: torch.nn.Module, generator: torch.Generator, is_centred_at_zero: bool) -> None:
    """Fill every parameter so that each one moves the output.

    `is_centred_at_zero`: norms multiply by ``1 + weight`` (Gemma), so their weights spread around 0.
    """
    import torch

    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(noise * EMBEDDING_STD)
            elif parameter.ndim >= 2:
                parameter.copy_(noise * MATRIX_STD)
            elif name.endswith("bias") or is_centred_at_zero:
                parameter.copy_(noise * VECTOR_STD)
            else:
                parameter.copy_(1 + noise * VECTOR_STD)


def _save_transformer(
    family: str,
    recipe: Family,
    folder: Path,
    vocab_size: int,
    seed: int,
    overrides: Mapping[str, Any],
    weights: str,
    head: str,
) -> int:
    import torch
    import transformers

    hidden, layers, heads, feed_forward = recipe.shared
    values: dict[str, Any] = {hidden: HIDDEN_SIZE, layers: 2, heads: 4, feed_forward: 2 * HIDDEN_SIZE}
    values |= {"vocab_size": vocab_size, **recipe.config, **overrides}
    config = transformers.AutoConfig.for_model(family, **values)
    if head in _HEAD_CLASSES:
        model = getattr(transformers, _HEAD_CLASSES[head]).from_config(config)
    elif recipe.encoder_class == "AutoModel":
        model = transformers.AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # untyped there
    else:
        model = getattr(transformers, recipe.encoder_class)(config)
    model = model.to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    _randomise(model, generator, is_centred_at_zero=family.startswith("gemma"))
    if weights == "bin":
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="100KB" if weights == "shards" else "5GB")
    return int(values[hidden])


def _save_dense(folder: Path, layer: Dense, in_features: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    _write(
        folder / "config.json",
        {
            "in_features": in_features,
            "out_features": layer.out_features,
            "bias": layer.bias,
            "activation_function": layer.activation,
        },
    )
    generator = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(in_features, layer.out_features, bias=layer.bias)
    _randomise(linear, generator, is_centred_at_zero=False)
    save_file({f"linear.{k}": v for k, v in linear.state_dict().items()}, folder / "model.safetensors")


def _save_layer_norm(folder: Path, dimension: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    _write(folder / "config.json", {"dimension": dimension})
    norm = torch.nn.LayerNorm(dimension)
    _randomise(norm, torch.Generator().manual_seed(seed), is_centred_at_zero=False)
    save_file({f"norm.{k}": v for k, v in norm.state_dict().items()}, folder / "model.safetensors")


def _pooling_config(pooling: str | Sequence[str], dimension: int, include_prompt: bool) -> dict[str, Any]:
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    keys = {
        "cls": "pooling_mode_cls_token",
        "max": "pooling_mode_max_tokens",
        "mean": "pooling_mode_mean_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    if unknown := set(modes) - set(keys):
        raise ValueError(f"pooling {sorted(unknown)} is unknown; there are {sorted(keys)}")
    return {
        "word_embedding_dimension": dimension,
        **{key: mode in modes for mode, key in keys.items()},
        "include_prompt": include_prompt,
    }


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, recipe: Family, model_max_length: int | None) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        **recipe.special_tokens,
        "tokenizer_class": recipe.tokenizer_class,
        "padding_side": recipe.padding_side,
        "clean_up_tokenization_spaces": False,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    _write(folder / "tokenizer_config.json", config)


def _save_layout(
    folder: Path, first: str, modules: Sequence[tuple[str, str]], settings: Mapping[str, Any]
) -> None:
    """modules.json and config_sentence_transformers.json, as sentence-transformers 2 to 4 wrote them."""
    listed = [(first, ""), *modules]
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(listed)
        ],
    )
    versions = {"sentence_transformers": "4.1.0", "transformers": "4.51.0", "pytorch": "2.7.0"}
    _write(folder / "config_sentence_transformers.json", {"__version__": versions, **settings})


def tiny_model(
    family: str,
    folder: str | Path,
    *,
    pooling: str | Sequence[str] | None = None,
    normalize: bool = True,
    seed: int = 0,
    dense: Sequence[Dense] | None = None,
    layer_norm: bool = False,
    include_prompt: bool = True,
    max_seq_length: int | None = None,
    model_max_length: int | None = MAX_POSITIONS,
    do_lower_case: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity: str = "cosine",
    layout: str = "sentence-transformers",
    weights: str = "safetensors",
    head: str = "",
    attend: bool = True,
    **config_overrides: Any,
) -> Path:
    """Write a tiny random model of a family and return its folder.

    Hidden size 64, 2 or 3 layers, 4 heads, 500 to 1,000 tokens, 128 positions, windows of 16. The same
    arguments give the same bytes.

    Args:
        family: a key of `FAMILIES`, ``"static"`` (sentence-transformers' StaticEmbedding) or ``"model2vec"``.
        folder: where to write; made if it is not there.
        pooling: mode or modes, named as in `PoolingMode`; the family's own by default.
        normalize: end the chain in Normalize.
        seed: of all weights.
        dense: layers after the pooling; the family's own by default.
        layer_norm: a LayerNorm module after pooling and dense layers.
        include_prompt: whether a prompt's tokens are pooled.
        max_seq_length: of sentence_bert_config.json.
        model_max_length: of tokenizer_config.json; None leaves it out.
        do_lower_case: of sentence_bert_config.json.
        prompts: prompt texts by name.
        default_prompt_name: the prompt that applies when a request names none.
        similarity: `similarity_fn_name`.
        layout: ``"sentence-transformers"``, or ``"plain"`` for a repository without modules.json.
        weights: ``"safetensors"``, ``"shards"`` (several files and an index) or ``"bin"`` (a pickle).
        head: ``""`` for dense vectors; ``"classifier"`` (with `num_labels`) for rerankers and classifiers,
            without modules.json; ``"splade"``; ``"colbert"``: a projection to 24 numbers; ``"m3"``: bge-m3's
            two linear layers beside the dense vector; ``"logit_score"``: a language model that reranks;
            ``"score"``: a cross-encoder that pools; ``"csr"``: 12 of 256 learned features; ``"routed"``:
            SPLADE documents and static queries.
        attend: whether a late-interaction query attends to its filling.
        config_overrides: values of config.json.
    Raises:
        KeyError: the family is unknown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "prompts": dict(prompts or {}),
        "default_prompt_name": default_prompt_name,
        "similarity_fn_name": similarity,
    }
    if family in STATIC_FAMILIES:
        return _tiny_static(family, folder, normalize, seed, settings, layout)

    recipe = FAMILIES[family]
    tokenizer = recipe.tokenizer()
    if head == "logit_score":
        tokenizer.add_tokens(["yes"])
    root = folder
    if head == "routed":
        folder = root / "document_0_Transformer"
        folder.mkdir(exist_ok=True)
    size = _save_transformer(
        family, recipe, folder, tokenizer.get_vocab_size(), seed, config_overrides, weights, head
    )
    _save_tokenizer(folder, tokenizer, recipe, model_max_length)
    if head == "logit_score":
        (folder / "chat_template.jinja").write_text(PAIR_TEMPLATE, encoding="utf-8")
    if layout == "plain" or head == "classifier":
        return folder
    if head == "logit_score":
        vocabulary = tokenizer.get_vocab()
        return _logit_score_layout(folder, (vocabulary["yes"], vocabulary["no"]), settings)
    if head == "routed":
        return _routed_layout(root, tokenizer.get_vocab_size(), seed, settings)
    if head == "csr":
        return _sparse_code_layout(folder, size, seed, settings)
    if head == "score":
        return _score_layout(folder, size, seed, settings)
    if head in ("splade", "colbert"):
        return _late_layout(folder, head, size, seed, settings, attend)
    if head == "m3":
        _save_m3_heads(folder, size, seed)

    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case},
    )
    pooling = recipe.pooling if pooling is None else pooling
    _write(folder / "1_Pooling" / "config.json", _pooling_config(pooling, size, include_prompt))
    modules = [("Pooling", "1_Pooling")]
    size *= 1 if isinstance(pooling, str) else len(pooling)
    for layer in recipe.dense if dense is None else dense:
        path = f"{len(modules) + 1}_Dense"
        _save_dense(folder / path, layer, size, seed + len(modules))
        modules.append(("Dense", path))
        size = layer.out_features
    if layer_norm:
        path = f"{len(modules) + 1}_LayerNorm"
        _save_layer_norm(folder / path, size, seed + len(modules))
        modules.append(("LayerNorm", path))
    if normalize:
        modules.append(("Normalize", f"{len(modules) + 1}_Normalize"))
    _save_layout(folder, "Transformer", modules, settings)
    return folder


def _save_modules(
    folder: Path, modules: Sequence[tuple[str, str]], kind: str, settings: Mapping[str, Any]
) -> Path:
    """modules.json and config_sentence_transformers.json, as sentence-transformers 6 writes them.

    Args:
        folder: of the repository.
        modules: folder and class of each.
        kind: the class that loads it.
        settings: more of config_sentence_transformers.json.
    """
    _write(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(modules)],
    )
    versions = {"sentence_transformers": "6.2.0", "transformers": "5.23.0", "pytorch": "2.13.0"}
    config = {"__version__": versions, "model_type": kind, **settings}
    _write(folder / "config_sentence_transformers.json", config)
    return folder


def _transformer_settings(task: str, output: str, name: str) -> dict[str, Any]:
    """sentence_bert_config.json of a Transformer module."""
    return {
        "transformer_task": task,
        "modality_config": {"text": {"method": "forward", "method_output_name": output}},
        "module_output_name": name,
    }


def _logit_score_layout(folder: Path, answers: tuple[int, int], settings: Mapping[str, Any]) -> Path:
    transformer = _transformer_settings("text-generation", "logits", "causal_logits")
    transformer["modality_config"]["message"] = transformer["modality_config"]["text"] | {"format": "flat"}
    _write(folder / "sentence_bert_config.json", transformer)
    ids = dict(zip(("true_token_id", "false_token_id"), answers, strict=True))
    _write(folder / "1_LogitScore" / "config.json", ids)
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    return _save_modules(folder, [("", _TRANSFORMER), ("1_LogitScore", score)], "CrossEncoder", settings)


def _pooled_modules(folder: Path, size: int) -> list[tuple[str, str]]:
    settings = _transformer_settings("feature-extraction", "last_hidden_state", "token_embeddings")
    _write(folder / "sentence_bert_config.json", settings)
    _write(folder / "1_Pooling" / "config.json", {"embedding_dimension": size, "pooling_mode": "mean"})
    pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    return [("", _TRANSFORMER), ("1_Pooling", pooling)]


def _score_layout(folder: Path, size: int, seed: int, settings: Mapping[str, Any]) -> Path:
    modules = _pooled_modules(folder, size)
    dense = "sentence_transformers.base.modules.dense.Dense"
    _save_dense(folder / "2_Dense", Dense(32, True, TANH), size, seed)
    _save_dense(folder / "3_Dense", Dense(1, True, IDENTITY), 32, seed + 1)
    written = json.loads((folder / "3_Dense" / "config.json").read_text())
    _write(folder / "3_Dense" / "config.json", written | {"module_output_name": "scores"})
    return _save_modules(folder, [*modules, ("2_Dense", dense), ("3_Dense", dense)], "CrossEncoder", settings)


def _sparse_code_layout(folder: Path, size: int, seed: int, settings: Mapping[str, Any]) -> Path:
    import torch
    from safetensors.torch import save_file

    modules = _pooled_modules(folder, size)
    path, width, generator = folder / "2_SparseAutoEncoder", 256, torch.Generator().manual_seed(seed + 5)
    _write(path / "config.json", {"input_dim": size, "hidden_dim": width, "k": 12, "normalize": True})
    tensors = {
        "pre_bias": VECTOR_STD * torch.randn(size, generator=generator),
        "latent_bias": VECTOR_STD * torch.randn(width, generator=generator),
        # The encoder's weight is the same tensor, which safetensors stores once, under this name.
        "decoder.linear.weight": MATRIX_STD * torch.randn((width, size), generator=generator),
        "stats_last_nonzero": torch.zeros(width, dtype=torch.long),
    }
    save_file(tensors, path / "model.safetensors")
    code = "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder"
    settings = {**settings, "similarity_fn_name": None}
    return _save_modules(folder, [*modules, (path.name, code)], "SparseEncoder", settings)


def _routed_layout(folder: Path, vocab_size: int, seed: int, settings: Mapping[str, Any]) -> Path:
    import shutil

    import torch
    from safetensors.torch import save_file

    document = folder / "document_0_Transformer"
    settings_file = _transformer_settings("fill-mask", "logits", "token_embeddings")
    _write(document / "sentence_bert_config.json", settings_file)
    _write(
        folder / "document_1_SpladePooling" / "config.json",
        {"pooling_strategy": "max", "activation_function": "log1p_relu", "embedding_dimension": None},
    )
    query = folder / "query_0_SparseStaticEmbedding"
    _write(query / "config.json", {"frozen": False})
    weights = torch.rand(vocab_size, generator=torch.Generator().manual_seed(seed + 3)) * 5
    save_file({"weight": weights}, query / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(document / name, query / name)
    modules = "sentence_transformers.sparse_encoder.modules"
    types = {
        query.name: f"{modules}.sparse_static_embedding.SparseStaticEmbedding",
        document.name: _TRANSFORMER,
        "document_1_SpladePooling": f"{modules}.splade_pooling.SpladePooling",
    }
    structure = {"query": [query.name], "document": [document.name, "document_1_SpladePooling"]}
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    router = {"types": types, "structure": structure, "parameters": parameters}
    _write(folder / "router_config.json", router)
    settings = {**settings, "similarity_fn_name": None}
    return _save_modules(
        folder, [("", "sentence_transformers.base.modules.router.Router")], "SparseEncoder", settings
    )


def _late_layout(
    folder: Path, head: str, size: int, seed: int, settings: Mapping[str, Any], attend: bool
) -> Path:
    """modules.json of a SparseEncoder or a MultiVectorEncoder, as sentence-transformers 6 writes them."""
    import string

    task, output = (
        ("fill-mask", "logits") if head == "splade" else ("feature-extraction", "last_hidden_state")
    )
    transformer = _transformer_settings(task, output, "token_embeddings")
    if head == "splade":
        modules = [("1_SpladePooling", "sentence_transformers.sparse_encoder.modules.SpladePooling")]
        _write(
            folder / modules[0][0] / "config.json",
            {"pooling_strategy": "max", "activation_function": "relu", "embedding_dimension": None},
        )
    else:
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        transformer |= {"query_expansion": {"strategy": "fixed", "attend": attend, "length": 24}}
        modules = [
            ("1_Dense", "sentence_transformers.base.modules.dense.Dense"),
            ("2_MultiVectorMask", "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask"),
            ("3_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
        ]
        _save_dense(folder / "1_Dense", Dense(24, False, IDENTITY), size, seed)
        dense = json.loads((folder / "1_Dense" / "config.json").read_text())
        _write(folder / "1_Dense" / "config.json", dense | names)
        _write(folder / "2_MultiVectorMask" / "config.json", {"skiplist_words": list(string.punctuation)})
        _write(folder / "3_Normalize" / "config.json", names)
    _write(folder / "sentence_bert_config.json", transformer)
    kind = "SparseEncoder" if head == "splade" else "MultiVectorEncoder"
    return _save_modules(
        folder, [("", _TRANSFORMER), *modules], kind, {**settings, "similarity_fn_name": None}
    )


def _save_m3_heads(folder: Path, size: int, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed + 77)
    for name, width in (("sparse_linear.pt", 1), ("colbert_linear.pt", size)):
        linear = torch.nn.Linear(size, width)
        _randomise(linear, generator, is_centred_at_zero=False)
        torch.save(linear.state_dict(), folder / name)


def _tiny_static(
    family: str, folder: Path, normalize: bool, seed: int, settings: Mapping[str, Any], layout: str
) -> Path:
    """An embedding table and a tokenizer; model2vec adds its own config and may drop modules.json."""
    import torch
    from safetensors.torch import save_file

    tokenizer = _bert_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn((tokenizer.get_vocab_size(), HIDDEN_SIZE), generator=generator)
    if family == "model2vec":
        save_file({"embeddings": table}, folder / "model.safetensors")
        config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": HIDDEN_SIZE}
        _write(folder / "config.json", config | {"normalize": normalize, "seq_length": 1_000_000})
        if layout == "plain":
            return folder
    else:
        save_file({"embedding.weight": table}, folder / "model.safetensors")
    _save_layout(folder, "StaticEmbedding", [("Normalize", "1_Normalize")] if normalize else [], settings)
    return folder
