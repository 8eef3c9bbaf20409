"""The special tokens that a tokenizer puts around a text, or around a query and a document.

They are measured on the tokenizer itself, once, so that texts can be tokenized apart and put together
later: a query meets a thousand documents and is tokenized once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hilbert.core.request import IntArray
from hilbert.errors import ModelUnavailable

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# Any text with at least one token in every vocabulary.
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before and after one text."""

    before: IntArray
    after: IntArray

    @staticmethod
    def of(tokenizer: Tokenizer) -> Frame:
        """Measure the template for a lone text."""
        encoding = tokenizer.encode(_PROBE)
        (start, end), ids = _place_of(encoding, 0), _array(encoding.ids)
        return Frame(ids[:start], ids[end:])

    def cut(self, ids: IntArray, max_len: int, from_left: bool) -> IntArray:
        """A framed text with so many tokens less that `max_len` are left; the frame stays."""
        if len(ids) <= max_len:
            return ids
        if from_left:
            return np.concatenate([self.before, ids[len(ids) - max_len + len(self.before) :]])
        return np.concatenate([ids[: max_len - len(self.after)], self.after])


@dataclass(frozen=True, slots=True)
class PairFrame:
    """What stands before, between and after a query and a document.

    Attributes:
        types: ``[5]``: the token types of `before`, the query, `between`, the document, `after`.
    """

    before: IntArray
    between: IntArray
    after: IntArray
    types: IntArray

    @staticmethod
    def of(tokenizer: Tokenizer) -> PairFrame:
        """Measure the template for a pair.

        Raises:
            ModelUnavailable: the template is none in which the query comes first.
        """
        encoding = tokenizer.encode(_PROBE, _PROBE)
        ids, types = _array(encoding.ids), encoding.type_ids
        (a, b), (c, d) = _place_of(encoding, 0), _place_of(encoding, 1)
        if b > c:
            raise ModelUnavailable("its tokenizer puts the document before the query")
        parts = (types[:a], types[a:b], types[b:c], types[c:d], types[d:])
        return PairFrame(ids[:a], ids[b:c], ids[d:], _array([part[0] if part else 0 for part in parts]))

    @property
    def num_tokens(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)


def longest_first(num_query: int, num_document: int, limit: int) -> tuple[int, int]:
    """How many tokens of each text a pair keeps.

    The longer text is cut first; where both are longer than half of the room, each gets half.

    Args:
        num_query, num_document: tokens without special ones.
        limit: tokens that both may have together.
    Source: the strategy of this name in the library tokenizers; tests/processors/test_pairs.py
    """
    if num_query + num_document <= limit:
        return num_query, num_document
    short, long = sorted((num_query, num_document))
    if 2 * short <= limit:
        long = limit - short
    else:
        short = limit // 2
        long = limit - short
    return (long, short) if num_query > num_document else (short, long)


def _place_of(encoding: Encoding, sequence: int) -> tuple[int, int]:
    places = [i for i, s in enumerate(encoding.sequence_ids) if s == sequence]
    return places[0], places[-1] + 1


def _array(ids: list[int]) -> IntArray:
    return np.array(ids, dtype=np.int32)
