"""How many tokens a sequence may have: what sentence-transformers answers, and what the positions allow.

Knows the families whose learned position table is a hard wall; everything else is read from the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# fmt: off
# Learned absolute positions counted from 0: one token beyond the table is an index error.
ABSOLUTE_POSITIONS = frozenset({
    "albert", "bert", "big_bird", "convbert", "distilbert", "electra", "ernie", "funnel", "layoutlm",
    "layoutlmv2", "megatron-bert", "mobilebert", "nystromformer", "squeezebert", "yoso", "bert-generation",
    "rembert", "tapas", "roc_bert", "gpt2", "gpt_neo", "openai-gpt", "opt", "mra", "splinter",
    "visual_bert", "clip_text_model", "siglip_text_model",
})
# Learned absolute positions counted from padding_idx + 1.
OFFSET_POSITIONS = frozenset({
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm", "longformer",
    "data2vec-text", "ibert", "xmod", "luke", "mluke", "lilt", "layoutlmv3", "esm", "markuplm",
    "clap_text_model",
})
# fmt: on
# Padding ids of configurations that leave pad_token_id out: the defaults of transformers.
DEFAULT_PADDING_ID = 1
# Tokenizers without a limit say 1e30; no context is longer than this.
UNBOUNDED = 100_000_000


def _whole(value: Any) -> int | None:
    """A positive length, or None for null, infinity, 1e30 and what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < UNBOUNDED:
        return None
    return int(value)


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens that the learned position table can hold; None where positions are relative or rotary."""
    family = str(config.get("model_type", ""))
    positions = _whole(config.get("max_position_embeddings") or config.get("n_positions"))
    if positions is None:
        return None
    if family in OFFSET_POSITIONS:
        padding_id = config.get("pad_token_id")
        return positions - (padding_id if isinstance(padding_id, int) else DEFAULT_PADDING_ID) - 1
    if family in ABSOLUTE_POSITIONS:
        return positions
    if family in ("deberta", "deberta-v2") and config.get("position_biased_input", True):
        return positions
    return None


def max_model_len(config: Mapping[str, Any], tokenizer_max: Any, max_seq_length: Any = None) -> int | None:
    """Tokens per sequence, special tokens included; None when unbounded.

    Args:
        config: config.json of the transformer (its text part where it is nested).
        tokenizer_max: `model_max_length` of tokenizer_config.json.
        max_seq_length: of sentence_bert_config.json; wins over the other two.
    Source: equals `SentenceTransformer.max_seq_length`, except where that is more than the position
        table holds (there sentence-transformers fails on long texts); tests/hub/test_families.py
    """
    explicit = _whole(max_seq_length)
    if explicit is not None:
        lengths = [explicit]
    else:
        lengths = [n for n in (_whole(tokenizer_max), _whole(config.get("max_position_embeddings"))) if n]
    wall = position_limit(config)
    if wall is not None:
        lengths.append(wall)
    return min(lengths, default=None)
