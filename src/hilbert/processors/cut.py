"""Shorten a very long text before the tokenizer sees it, where that provably changes no token.

A tokenizer reads all of a text before it truncates: 100,000 characters cost 40 ms for the first 256
tokens. For BERT's own pipeline a prefix is enough. Its normaliser works character by character and its
pre-tokenizer splits at every space, so a text cut at a space yields a prefix of the whole text's tokens;
and each space-separated word with an ASCII letter or digit in it yields at least one token. A prefix
with as many such words as tokens are wanted therefore holds all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One match per space-separated word that holds an ASCII letter or digit; the match ends at a space.
_WORD = re.compile(r"[A-Za-z0-9][^ ]*")
# Below this many characters per wanted token the search costs more than it saves.
_MIN_CHARS_PER_TOKEN = 8


def can_cut(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer's pipeline is the one that the argument above holds for."""
    from tokenizers import models, normalizers, pre_tokenizers

    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, models.WordPiece)
        and not any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())
    )


def cut(text: str, num_tokens: int) -> str:
    """A prefix of `text` with the same first `num_tokens` tokens; often `text` itself."""
    if len(text) < num_tokens * _MIN_CHARS_PER_TOKEN:
        return text
    for count, word in enumerate(_WORD.finditer(text), start=1):
        if count == num_tokens:
            return text[: word.end()]
    return text
