"""A query and its documents as a cross-encoder sees them: pairs, each one sequence.

The ids and token types are those of the reference tokenizer's own pair encoding, with its truncation
(`longest_first`); the query is tokenized once, the documents in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np

from hilbert.core import Sequence
from hilbert.core.request import IntArray
from hilbert.errors import InputTooLong
from hilbert.processors.frame import PairFrame, longest_first
from hilbert.processors.naming import called
from hilbert.processors.text import TextProcessor


@dataclass(frozen=True, slots=True)
class Pairs:
    """One sequence per document, and what became of the query.

    Attributes:
        num_query_tokens: tokens of the whole query, without special ones.
        num_kept: tokens of it in the pair where least of it is left.
    """

    sequences: tuple[Sequence, ...]
    num_query_tokens: int
    num_kept: int


class PairProcessor:
    """Pairs for one model. Any number of threads may use it at once."""

    def __init__(self, texts: TextProcessor) -> None:
        """Measure the template of the text processor's tokenizer.

        Raises:
            ModelUnavailable: the tokenizer has no template for a query and a document in this order.
        """
        self._texts = texts
        self._frame = PairFrame.of(texts.tokenizer)
        self._prompt = texts.spec.prompts.get(texts.spec.default_prompt_name or "") or ""
        self._has_types = 0 < int(self._frame.types.max()) < texts.num_types
        limit = texts.max_len
        self._room = None if limit is None else max(0, limit - self._frame.num_tokens)

    def encode(self, query: str, documents: AbstractSequence[str], truncate: bool, request_id: int) -> Pairs:
        """Pair the query with each document, in order. Frees the GIL while it tokenizes.

        Raises:
            InvalidInput: a text is not valid Unicode.
            InputTooLong: `truncate` is false and a pair exceeds the model's length.
        """
        room = self._room
        with called("query", is_list=False):
            ((query_ids, num_query),) = self._texts.contents([self._prompt + query], is_exact=True)
        # Which of two texts is the longer one matters only where both are longer than a sequence.
        is_exact = not truncate or (room is not None and num_query > room)
        with called("documents"):
            contents = self._texts.contents(documents, is_exact=is_exact)
        head = np.concatenate([self._frame.before, query_ids, self._frame.between])
        sequences = []
        num_kept = num_query
        for index, (ids, num_document) in enumerate(contents):
            kept, kept_document = num_query, num_document
            if room is not None and num_query + num_document > room:
                if not truncate:
                    raise self._too_long(index, num_query + num_document)
                kept, kept_document = longest_first(num_query, num_document, room)
                num_kept = min(num_kept, kept)
            first = head if kept == num_query else self._head(query_ids, kept)
            pair = np.concatenate([first, self._cut(ids, kept_document), self._frame.after])
            types = self._types(kept, kept_document) if self._has_types else None
            sequences.append(Sequence(request_id, index, pair, types))
        return Pairs(tuple(sequences), num_query, num_kept)

    def _head(self, query_ids: IntArray, kept: int) -> IntArray:
        return np.concatenate([self._frame.before, self._cut(query_ids, kept), self._frame.between])

    def _cut(self, ids: IntArray, kept: int) -> IntArray:
        return ids[len(ids) - kept :] if self._texts.truncates_left else ids[:kept]

    def _types(self, num_query: int, num_document: int) -> IntArray:
        frame = self._frame
        lengths = (len(frame.before), num_query, len(frame.between), num_document, len(frame.after))
        return np.repeat(frame.types, lengths)

    def _too_long(self, index: int, num_tokens: int) -> InputTooLong:
        return InputTooLong(
            f"documents[{index}] and the query have {num_tokens + self._frame.num_tokens} tokens together; "
            f"the model takes at most {self._texts.max_len}. Shorten them, or leave out `truncate: false`.",
            param="documents",
            index=index,
        )
