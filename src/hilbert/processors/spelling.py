"""Texts as their tokens, and tokens as text: what a tokenizer shows to people, without any truncation."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from itertools import accumulate
from typing import TYPE_CHECKING

from hilbert.core import Token

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Spelling:
    """Spells with a copy of a tokenizer that never truncates. Any number of threads may use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Copy a tokenizer; a large vocabulary takes a second."""
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()

    def spell(self, texts: AbstractSequence[str], *, is_framed: bool) -> tuple[tuple[Token, ...], ...]:
        """The tokens of each text, with the special ones around it where `is_framed`."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=is_framed)
        return tuple(_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True))

    def unspell(
        self, inputs: AbstractSequence[AbstractSequence[int]], *, skips_special: bool
    ) -> tuple[str, ...]:
        """The text of each list of ids, all of the vocabulary."""
        texts: list[str] = self._tokenizer.decode_batch(
            [list(ids) for ids in inputs], skip_special_tokens=skips_special
        )
        return tuple(texts)


def _tokens(text: str, encoding: Encoding) -> tuple[Token, ...]:
    # The tokenizer counts characters.
    places = range(len(text) + 1)
    if not text.isascii():
        places = [0, *accumulate(len(character.encode()) for character in text)]  # type: ignore[assignment]
    return tuple(
        Token(token_id, name, True, None, None)
        if is_special
        else Token(token_id, text[start:stop], False, places[start], places[stop])
        for token_id, name, is_special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    )
