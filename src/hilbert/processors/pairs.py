"""A query and its documents as a cross-encoder sees them: pairs, each one sequence.

The ids and token types are those of the reference tokenizer's own pair encoding, with its truncation
(`longest_first`); the query is tokenized once, the documents in one batch. Language models have a chat
template instead, which may do anything with both texts: there the query is tokenized once with all else that
the rendered pairs share, where the tokenizer allows it (`seams`), and each pair whole where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hilbert.core import Sequence, Side
from hilbert.core.request import IntArray
from hilbert.errors import InputTooLong
from hilbert.processors.chat import FILLERS, ChatTemplate
from hilbert.processors.frame import PairFrame, longest_first
from hilbert.processors.naming import called
from hilbert.processors.remember import remembered
from hilbert.processors.seams import Seams
from hilbert.processors.text import TextProcessor, check_chars, refuse_invalid_unicode, with_suffix


@dataclass(frozen=True, slots=True)
class Pairs:
    """One sequence per document, and what became of the query.

    Attributes:
        query_cut: tokens of the whole query, without special ones, and of it in the pair where least is
            left; None where all of it is in every pair.
    """

    sequences: tuple[Sequence, ...]
    query_cut: tuple[int, int] | None = None


class PairProcessor(Protocol):
    """Pairs for one model. Any number of threads may use it at once."""

    def encode(
        self,
        query: str,
        documents: AbstractSequence[str],
        truncate: bool,
        request_id: int,
        prompt: str | None = None,
    ) -> Pairs:
        """Pair the query with each document, in order. Frees the GIL while it tokenizes.

        Args:
            query: the first text of each pair.
            documents: the second ones.
            truncate: cut what is too long for the model.
            request_id: what the sequences carry.
            prompt: text for the query; None takes the model's default.
        Raises:
            InvalidInput: a text is not valid Unicode or holds tokens outside the vocabulary, or the template
                refuses the prompt.
            InputTooLong: `truncate` is false and a pair exceeds the model's length.
        """
        ...


class PairProcessors:
    """The pair processors of one model, by the side on which they cut; made when first asked for."""

    def __init__(self, texts: TextProcessor) -> None:
        self._texts = texts
        self._by_texts: dict[int, PairProcessor] = {}

    def cutting(self, side: Side | None) -> PairProcessor:
        """The one that cuts there; None means where the model's tokenizer cuts. May take a second.

        Raises:
            ModelUnavailable: see `pair_processor`.
        """
        texts = self._texts.cutting(side)
        found = self._by_texts.get(id(texts))
        if found is None:
            found = self._by_texts[id(texts)] = pair_processor(texts)
        return found


def pair_processor(texts: TextProcessor) -> PairProcessor:
    """The pairs of a text processor's model.

    Raises:
        ModelUnavailable: its tokenizer or its chat template has no place for a query and a document.
    """
    if texts.template is not None:
        return TemplatePairs(texts, texts.template)
    return TokenizerPairs(texts)


class TokenizerPairs:
    """Implements `PairProcessor` with the template of the tokenizer: ``[CLS] query [SEP] document [SEP]``."""

    def __init__(self, texts: TextProcessor) -> None:
        """Measure the template of the text processor's tokenizer.

        Raises:
            ModelUnavailable: the tokenizer has no template for a query and a document in this order.
        """
        self._texts = texts
        self._frame = PairFrame.of(texts.tokenizer)
        self._prompt = _default_prompt(texts)
        self._has_types = 0 < int(self._frame.types.max()) < texts.num_types
        limit = texts.max_len
        self._room = None if limit is None else max(0, limit - self._frame.num_tokens)

    def encode(
        self,
        query: str,
        documents: AbstractSequence[str],
        truncate: bool,
        request_id: int,
        prompt: str | None = None,
    ) -> Pairs:
        """See `PairProcessor`. The prompt stands before the query."""
        room = self._room
        prompt = self._prompt if prompt is None else prompt
        with called("query", is_list=False):
            ((query_ids, num_query),) = self._texts.contents([prompt + query], is_exact=True)
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
                    raise _too_long(index, num_query + num_document + self._frame.num_tokens, self._texts)
                kept, kept_document = longest_first(num_query, num_document, room)
                num_kept = min(num_kept, kept)
            first = head if kept == num_query else self._head(query_ids, kept)
            pair = np.concatenate([first, self._cut(ids, kept_document), self._frame.after])
            types = self._types(kept, kept_document) if self._has_types else None
            sequences.append(Sequence(request_id, index, pair, types))
        return Pairs(tuple(sequences), (num_query, num_kept) if num_kept < num_query else None)

    def _head(self, query_ids: IntArray, kept: int) -> IntArray:
        return np.concatenate([self._frame.before, self._cut(query_ids, kept), self._frame.between])

    def _cut(self, ids: IntArray, kept: int) -> IntArray:
        return ids[len(ids) - kept :] if self._texts.truncates_left else ids[:kept]

    def _types(self, num_query: int, num_document: int) -> IntArray:
        frame = self._frame
        lengths = (len(frame.before), num_query, len(frame.between), num_document, len(frame.after))
        return np.repeat(frame.types, lengths)


class TemplatePairs:
    """Implements `PairProcessor` with a chat template; the prompt is the system's message."""

    def __init__(self, texts: TextProcessor, template: ChatTemplate) -> None:
        """Check the template.

        Raises:
            ModelUnavailable: it has no place for a query and a document.
        """
        template.check_pairs()
        self._texts = texts
        self._template = template
        self._prompt = _default_prompt(texts)
        rendered = template.pair("alpha", "bravo")
        self._query_is_first = rendered.rfind("alpha") < rendered.rfind("bravo")
        self._seams = Seams.of(texts.tokenizer)
        self._suffix = remembered(self._measure_suffix)

    def encode(
        self,
        query: str,
        documents: AbstractSequence[str],
        truncate: bool,
        request_id: int,
        prompt: str | None = None,
    ) -> Pairs:
        """See `PairProcessor`."""
        prompt = self._prompt if prompt is None else prompt
        with called("query", is_list=False):
            check_chars([query])
            refuse_invalid_unicode(query, 0)
            if self._texts.has_foreign_ids:
                self._texts.contents([query], is_exact=True)
        with called("documents"):
            check_chars(documents, len(query) + len(prompt))  # before each of them gets the query beside it
            rendered = [self._template.pair(query, document, prompt) for document in documents]
            contents = self._contents(rendered)
        limit = self._texts.max_len
        if limit is None:
            return Pairs(tuple(Sequence(request_id, index, ids) for index, (ids, _) in enumerate(contents)))
        longest = max(num_tokens for _, num_tokens in contents)
        if longest > limit and not truncate:
            index = next(i for i, (_, num_tokens) in enumerate(contents) if num_tokens > limit)
            raise _too_long(index, contents[index][1], self._texts)
        suffix, cuts_left = self._suffix(prompt), self._texts.truncates_left
        sequences = tuple(
            Sequence(request_id, index, with_suffix(ids, limit, suffix, cuts_left))
            for index, (ids, _) in enumerate(contents)
        )
        return Pairs(sequences, self._query_cut(query, prompt, longest, limit) if longest > limit else None)

    def _contents(self, rendered: AbstractSequence[str]) -> list[tuple[IntArray, int]]:
        """As `TextProcessor.contents`; what all pairs share is tokenized once."""
        head, tail = self._seams.shared(rendered)
        if not head and not tail:
            return self._texts.contents(rendered, is_exact=True)
        check_chars(rendered)
        first, last = rendered[0][:head], rendered[0][len(rendered[0]) - tail :]
        ((before, num_before), (after, num_after)) = self._texts.contents([first, last], is_exact=True)
        between = [pair[head : len(pair) - tail] for pair in rendered]
        contents = []
        for ids, num_tokens in self._texts.contents(between, is_exact=True):
            whole = np.concatenate([before, ids, after])
            contents.append((self._kept(whole), num_before + num_tokens + num_after))
        return contents

    def _kept(self, ids: IntArray) -> IntArray:
        limit = self._texts.max_len
        if limit is None or len(ids) <= limit:
            return ids
        return ids[len(ids) - limit :] if self._texts.truncates_left else ids[:limit]

    def _query_cut(self, query: str, prompt: str, longest: int, limit: int) -> tuple[int, int] | None:
        """See `Pairs`. The longest pair's query loses what the document behind it cannot make up for."""
        ((_, num_query),) = self._texts.contents([query], is_exact=True)
        num_cut = longest - limit
        if self._query_is_first is not self._texts.truncates_left:
            alone = [self._template.pair(query, "", prompt)]
            ((_, num_tokens),) = self._texts.contents(alone, is_exact=True)
            num_cut = num_tokens - limit
        return (num_query, max(0, num_query - num_cut)) if num_cut > 0 and num_query else None

    def _measure_suffix(self, prompt: str) -> IntArray:
        return self._texts.suffix_of([self._template.pair(filler, filler, prompt) for filler in FILLERS])


def _default_prompt(texts: TextProcessor) -> str:
    return texts.spec.prompts.get(texts.spec.default_prompt_name or "") or ""


def _too_long(index: int, num_tokens: int, texts: TextProcessor) -> InputTooLong:
    return InputTooLong(
        f"documents[{index}] and the query have {num_tokens} tokens together; the model takes at most "
        f"{texts.max_len}. Shorten them, or have them cut (`truncate`).",
        param="documents",
        index=index,
    )
