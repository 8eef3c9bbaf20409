"""Text to `Sequence`: token ids exactly as sentence-transformers computes them, with `tokenizers` alone.

Decides the prompt, the truncation and what is refused. Knows no device and no batching. A
`TextProcessor` is immutable after its construction, so any number of threads may call it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence as AbstractSequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from hilbert.core import NO_IDS, EmbedRequest, Input, Media, MediaRef, ModelSpec, Sequence, Side, Token
from hilbert.core.request import IntArray
from hilbert.errors import InputTooLong, InvalidInput, ModelError, ModelUnavailable
from hilbert.processors.chat import FILLERS, ChatTemplate, common_suffix
from hilbert.processors.frame import Frame
from hilbert.processors.media import MediaProcessor
from hilbert.processors.prompts import resolve_prompt
from hilbert.processors.remember import remembered
from hilbert.processors.sides import fill, is_query, longest_side, shaped, side_limit
from hilbert.processors.spelling import Spelling
from hilbert.processors.words import WordTable, cut, splits_at_spaces

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# A text of a million characters takes a second and 0.4 GB to tokenize; Infinity's limit is 122,880.
MAX_TEXT_CHARS = 1_000_000
# Of a whole request, every input counted with its prompt; tokenized a million at a time.
MAX_REQUEST_CHARS = 64_000_000

# About four characters a token in English prose; only admission uses it, before the true count is known.
_CHARS_PER_TOKEN = 4
_INT32_MAX = 2**31 - 1
# Tokenizer classes of transformers that make token types unless told otherwise; "" where none is named,
# as the families that have several types come with one of these.
_CLASSES_WITH_TYPES = frozenset(
    f"{name}Tokenizer"
    for name in ("Bert", "Electra", "MobileBert", "SqueezeBert", "ConvBert", "Deberta", "DebertaV2")
) | {""}
# How many offending ids an error message names.
_NAMED_IDS = 5


class TextProcessor:
    """Turns texts and token ids into sequences for one model.

    Attributes:
        tokenizer: the library's own, configured as sentence-transformers would; not to be changed.
        num_types: token types that the model tells apart; 0 where it is given none.
        has_foreign_ids: some tokens have no embedding; a text that holds one is refused.
        truncates_left: long texts lose their beginning, not their end.
        template: what every text goes through before it is tokenized; None for most models.
    """

    def __init__(
        self, spec: ModelSpec, tokenizer_file: Path | None = None, truncation_side: Side | None = None
    ) -> None:
        """Load the tokenizer.

        Args:
            spec: the model; its `path` holds ``tokenizer.json``.
            tokenizer_file: a tokenizer from elsewhere, for repositories that ship none.
            truncation_side: where long texts are cut; None means where the tokenizer's files say.

        Raises:
            ModelUnavailable: there is no ``tokenizer.json``, or it cannot be read.
            ModelError: ``tokenizer_config.json`` holds a value that does not belong there.
        """
        from tokenizers import Tokenizer

        file = tokenizer_file or find_tokenizer_file(spec)
        if file is None:
            raise ModelUnavailable(
                f"{spec.model_id} has no tokenizer.json, which is the only tokenizer format served. Convert "
                "it once: transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER), and "
                "serve that folder; or run `hilbert export`, which does so."
            )
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise ModelUnavailable(f"{file.name} of {spec.model_id} cannot be read: {error}") from error
        self.spec = spec
        self._file = file
        self._lock = threading.Lock()
        self._other_side: TextProcessor | None = None
        self._spelling: Spelling | None = None
        self._is_static = spec.kind == "static"
        config = _tokenizer_config(spec)
        self._media = MediaProcessor(spec) if spec.towers else None
        side = _configure(self.tokenizer, spec, config, truncation_side)
        truncation = self.tokenizer.truncation
        self._max_len: int | None = truncation["max_length"] if truncation else None
        self.truncates_left = side == "left"
        self.template = None if spec.chat is None else ChatTemplate(spec.chat)
        # A template writes the special tokens itself, as a rule.
        self._is_bare = self._is_static or (spec.chat is not None and not spec.chat.is_framed)
        self._num_special = 0 if self._is_bare else self.tokenizer.num_special_tokens_to_add(False)
        self._template_chars = 0 if self.template is None else self.template.num_chars
        self.num_types = int(spec.config.get("type_vocab_size") or 0) if _makes_types(config) else 0
        self._has_token_types = self._probe_token_types()
        # A few repositories add tokens without growing the embedding table; texts that hold them are refused.
        # What config.json of the repository's own code calls its vocabulary, nobody knows.
        self._vocab_size = spec.vocab_size or self.tokenizer.get_vocab_size()
        self.has_foreign_ids = self.tokenizer.get_vocab_size() > self._vocab_size
        needs_tokenizer = (
            self.truncates_left or self._is_bare or self._has_token_types or self.has_foreign_ids
        )
        is_by_words = not needs_tokenizer and splits_at_spaces(self.tokenizer)
        self._words = WordTable(self.tokenizer) if is_by_words else None
        self._special_ids = frozenset(
            token_id for token_id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special
        )
        pooling = spec.pooling
        # What sentence-transformers runs alone may hold a pooling that leaves the prompt out.
        self._excludes_prompt = spec.kind == "other" if pooling is None else not pooling.include_prompt
        self._prompt_len = remembered(self._measure_prompt)
        self._lone_suffix = remembered(self._measure_lone_suffix)

    @property
    def inline_chars(self) -> int:
        """Texts shorter than this together take well under a millisecond, and need no thread."""
        return 2_000 if self._words is None else 24_000

    @cached_property
    def frame(self) -> Frame:
        """The special tokens around a text."""
        return Frame(NO_IDS, NO_IDS) if self._is_bare else Frame.of(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._vocab_size

    @property
    def has_token_types(self) -> bool:
        """Whether a text alone has tokens of another type than 0."""
        return self._has_token_types

    @property
    def max_len(self) -> int | None:
        """Tokens of the longest sequence, special tokens included; None where there is no limit."""
        return self._max_len

    def cutting(self, side: Side | None) -> TextProcessor:
        """This processor, or one that cuts long texts on the side that is asked for.

        The other one is made when it is first asked for, which may take a second: not on an event loop.
        """
        if side is None or (side == "left") is self.truncates_left:
            return self
        with self._lock:
            if self._other_side is None:
                self._other_side = TextProcessor(self.spec, self._file, side)
        return self._other_side

    def is_small(self, inputs: AbstractSequence[Input], prompt_chars: int = 0) -> bool:
        """Whether tokenizing takes so little that a thread would cost more.

        Args:
            inputs: of one request.
            prompt_chars: characters that are put before each of them.
        """
        if self._media is not None and any(isinstance(x, Media | MediaRef) for x in inputs):
            return False
        texts = cast("AbstractSequence[str | IntArray]", inputs)
        extra = prompt_chars + self._template_chars
        return sum(map(len, texts)) + len(texts) * extra < self.inline_chars

    def estimate_tokens(
        self, inputs: AbstractSequence[Input], prompt_chars: int = 0, *, truncate: bool = True
    ) -> int:
        """A guess at the request's tokens, from lengths alone; for admission, before any tokenizing.

        Args:
            inputs: of one request.
            prompt_chars: characters that are put before each of them.
            truncate: long inputs will be cut; else all their tokens must be counted, and so do here.
        """
        limit = (self._max_len if truncate else None) or _INT32_MAX
        extra = prompt_chars + self._template_chars
        num_tokens = 0
        if self._media is not None:
            media = [x for x in inputs if isinstance(x, Media | MediaRef)]
            num_tokens = sum(map(self._media.num_tokens, media))
            inputs = [x for x in inputs if not isinstance(x, Media | MediaRef)] if media else inputs
        return num_tokens + sum(
            min(limit, ((len(x) + extra) // _CHARS_PER_TOKEN if isinstance(x, str) else len(x)) + 2)
            for x in cast("AbstractSequence[str | IntArray]", inputs)
        )

    def encode(self, request: EmbedRequest, request_id: int) -> tuple[Sequence, ...]:
        """Tokenize all inputs of a request, in order. May take long; frees the GIL while it does.

        A sequence may have no tokens at all (an empty text, and a tokenizer without special tokens).

        Raises:
            InvalidInput: an unknown prompt, ids outside the vocabulary, text that is not valid Unicode.
            InputTooLong: an input exceeds the model's length and `truncate` is false.
        """
        cutting = self.cutting(request.truncation_side)
        if cutting is not self:
            return cutting.encode(request, request_id)
        sides, tower = self.spec.multivector, self.spec.text_tower
        if tower is not None:
            sequences = self._encode(request, self._limit_of(request, self._max_len), request_id)
            return tuple(s if s.features is not None else shaped(s, tower) for s in sequences)
        if sides is None:
            return self._encode(request, self._limit_of(request, self._max_len), request_id)
        limit = self._limit_of(request, side_limit(self.spec, sides, request))
        sequences = self._encode(request, limit, request_id)
        if not is_query(request):
            return sequences
        return tuple(msgspec.structs.replace(s, input_ids=fill(s.input_ids, sides)) for s in sequences)

    def _limit_of(self, request: EmbedRequest, limit: int | None) -> int | None:
        """Tokens that a text of this request may have.

        Raises:
            InvalidInput: the request leaves no room for text, or wants a cut that this tokenizer cannot make.
        """
        if request.max_tokens is None:
            return limit
        if self._has_token_types:
            raise InvalidInput(
                "The tokens of this model have types, so that texts are cut only where its tokenizer cuts "
                "them; leave out `max_tokens`.",
                param="max_tokens",
            )
        if request.max_tokens <= self._num_special:
            raise InvalidInput(
                f"max_tokens is {request.max_tokens}, of which the model's special tokens take "
                f"{self._num_special}; allow at least {self._num_special + 1}.",
                param="max_tokens",
            )
        return request.max_tokens if limit is None else min(limit, request.max_tokens)

    def spans(self, text: str, index: int = 0) -> tuple[IntArray, IntArray]:
        """All tokens of a text without any special ones, and the characters that they lie in.

        Args:
            text: any text.
            index: what errors call it.
        Returns:
            Ids ``[n]`` int32, and ``[n]`` int32: the place in the text of the last character of each token,
            never falling.

        Raises:
            InvalidInput: the text is not valid Unicode, or holds tokens outside the vocabulary.
        """
        refuse_invalid_unicode(text, index)
        encoding = self.tokenizer.encode_batch([text], add_special_tokens=False)[0]
        pieces = _in_order(encoding, self.truncates_left)
        ids = np.array([i for piece in pieces for i in piece.ids], dtype=np.int32)
        if self.has_foreign_ids:
            self._refuse_foreign_ids(ids, index)
        places = [np.array(piece.offsets, dtype=np.int32).reshape(-1, 2) for piece in pieces]
        starts, ends = np.concatenate(places).T
        return ids, np.maximum.accumulate(np.maximum(starts, ends - 1))

    def prompt_len(self, prompt: str) -> int:
        """Leading tokens of a text behind this prompt that stay out of the pool."""
        is_measured = prompt and self._excludes_prompt and self.template is None
        return self._prompt_len(prompt) if is_measured else 0

    def clipped(self, texts: AbstractSequence[str], max_tokens: int) -> tuple[str, ...]:
        """The beginnings of texts that have more tokens than this, special ones not counted."""
        check_chars(texts)
        return tuple(self._clipped(text, max_tokens, index) for index, text in enumerate(texts))

    def _clipped(self, text: str, max_tokens: int, index: int) -> str:
        if len(text.encode("utf-8", "replace")) <= max_tokens:  # no token is made of less than a byte
            return text
        _, lasts = self.spans(text, index)
        return text if len(lasts) <= max_tokens else text[: int(lasts[max_tokens - 1]) + 1]

    def contents(self, texts: AbstractSequence[str], *, is_exact: bool) -> list[tuple[IntArray, int]]:
        """The tokens of texts without any special ones, to be put together by the caller.

        Args:
            texts: as they are; no prompt is added.
            is_exact: count the tokens of long texts to their end.
        Returns:
            For each text its ids, ``[n]`` int32 with n up to at least the model's length (the end that
            truncation would keep), and how many tokens it has in all; with `is_exact` false that may be
            too low for a text longer than the model takes.

        Raises:
            InvalidInput: a text is not valid Unicode, or holds tokens outside the vocabulary.
            InputTooLong: they are too long to be tokenized at all.
        """
        check_chars(texts)
        words, limit = self._words, self._max_len
        if words is not None:
            try:
                cuts = texts if is_exact or limit is None else [cut(text, limit) for text in texts]
                return [(ids, len(ids)) for ids in map(words.content, cuts)]
            except TypeError:  # not Unicode: the other way says which text it is
                pass
        encodings = self._tokenize(texts, is_framed=False)
        counts = [len(e) + sum(map(len, e.overflowing)) for e in encodings]
        kept = [np.array(e.ids, dtype=np.int32) for e in encodings]
        if self.has_foreign_ids:
            for index, ids in enumerate(kept):
                self._refuse_foreign_ids(ids, index)
        return list(zip(kept, counts, strict=True))

    def count_cut(self, request: EmbedRequest) -> tuple[int, int] | None:
        """What truncation does to the first text of a request.

        Returns:
            Its tokens in all and those that are kept, special tokens included; None where all are.
        """
        sides, text = self.spec.multivector, request.inputs[0]
        limit = self._max_len if sides is None else side_limit(self.spec, sides, request)
        # No token is made of less than a byte.
        if limit is None or not isinstance(text, str):
            return None
        prompted = self._prompted((text,), resolve_prompt(self.spec, request), request.input_type)[0]
        if len(prompted.encode("utf-8", "replace")) + self._num_special <= limit:
            return None
        ((_, num_tokens),) = self.contents([prompted], is_exact=True)
        num_tokens += self._num_special
        return (num_tokens, limit) if num_tokens > limit else None

    def spell(
        self, texts: AbstractSequence[str], prompt_name: str | None = None, *, is_framed: bool = True
    ) -> tuple[tuple[Token, ...], ...]:
        """Every token of texts, as the model would see them if there were no limit. May take long.

        Args:
            texts: each gets the prompt.
            prompt_name: as in `EmbedRequest`.
            is_framed: add the special tokens that the model expects.
        Raises:
            InvalidInput: an unknown prompt, or text that is not valid Unicode.
            InputTooLong: a text is too long to be tokenized at all.
        """
        prompt = resolve_prompt(self.spec, EmbedRequest(tuple(texts), prompt_name=prompt_name))
        check_chars(texts, len(prompt))
        for index, text in enumerate(texts):
            refuse_invalid_unicode(text, index)
        prompted = self._prompted(texts, prompt, None)
        return self._speller().spell(prompted, is_framed=is_framed and not self._is_bare)

    def unspell(
        self, inputs: AbstractSequence[AbstractSequence[int]], *, skips_special: bool = True
    ) -> tuple[str, ...]:
        """The texts of token ids. May take long.

        Raises:
            InvalidInput: an id is outside the vocabulary.
        """
        for index, ids in enumerate(inputs):
            if ids:
                self._refuse_foreign_ids(token_array(list(ids), index), index)
        return self._speller().unspell(inputs, skips_special=skips_special)

    def _speller(self) -> Spelling:
        with self._lock:
            if self._spelling is None:
                self._spelling = Spelling(self.tokenizer)
        return self._spelling

    def _encode(self, request: EmbedRequest, limit: int | None, request_id: int) -> tuple[Sequence, ...]:
        prompt, side = resolve_prompt(self.spec, request), request.input_type
        inputs, truncate = request.inputs, request.truncate is not False
        num_texts = sum(1 for x in inputs if isinstance(x, str))
        if num_texts == len(inputs):
            texts = cast("tuple[str, ...]", inputs)
            return self._encode_texts(texts, prompt, side, truncate, limit, request_id)
        if self._media is not None:
            self._media.check_together(inputs)
        has_ids = any(isinstance(x, np.ndarray) for x in inputs)
        if has_ids and (request.prompt or request.prompt_name):
            raise InvalidInput(
                "A prompt is put before a text and cannot be put before token ids; send texts, or ids with "
                "the prompt's own tokens in front.",
                param="prompt" if request.prompt else "prompt_name",
            )
        sequences: list[Sequence] = []
        for index, x in enumerate(inputs):
            if isinstance(x, str):
                sequences += self._encode_texts((x,), prompt, side, truncate, limit, request_id, index)
            elif isinstance(x, Media):
                assert self._media is not None, "a model without towers has refused it"
                sequences.append(self._media.encode(x, request_id, index))
            else:
                assert not isinstance(x, MediaRef), "references are loaded before"
                sequences.append(self._check_ids(x, truncate, limit, request_id, index))
        return tuple(sequences)

    def _encode_texts(
        self,
        texts: tuple[str, ...],
        prompt: str,
        side: str | None,
        truncate: bool,
        limit: int | None,
        request_id: int,
        first_index: int = 0,
    ) -> tuple[Sequence, ...]:
        check_chars(texts, len(prompt), first_index)
        pieces = _slices(texts, len(prompt))
        if len(pieces) > 1:  # bounds the memory of what is tokenized at once
            return tuple(
                sequence
                for piece in pieces
                for sequence in self._encode_texts(
                    texts[piece], prompt, side, truncate, limit, request_id, first_index + piece.start
                )
            )
        prompted = self._prompted(texts, prompt, side)
        prompt_len = self.prompt_len(prompt)
        by_words = self._encode_by_words(prompted, truncate, limit)
        if by_words is not None:
            return tuple(
                Sequence(request_id, index, ids, None, prompt_len)
                for index, ids in enumerate(by_words, start=first_index)
            )
        encodings = self._tokenize(prompted, first_index)
        if not truncate and limit is not None:
            self._refuse_too_long(encodings, limit, first_index)
        suffix = None if self.template is None else self._lone_suffix(prompt, side)
        if self.has_foreign_ids:
            for index, encoding in enumerate(encodings, start=first_index):
                self._refuse_foreign_ids(np.array(encoding.ids, dtype=np.int32), index)
        return tuple(
            Sequence(
                request_id,
                index,
                self._cut(np.array(encoding.ids, dtype=np.int32), limit, suffix),
                self._token_types(encoding) if self._has_token_types else None,
                prompt_len,
            )
            for index, encoding in enumerate(encodings, start=first_index)
        )

    def _prompted(self, texts: AbstractSequence[str], prompt: str, side: str | None) -> AbstractSequence[str]:
        """What is tokenized: texts behind their prompt, or what the template makes of both."""
        if self.template is not None:
            return [self.template.lone(text, prompt, side) for text in texts]
        return [prompt + text for text in texts] if prompt else texts

    def _measure_lone_suffix(self, prompt: str, side: str | None) -> IntArray:
        assert self.template is not None
        return self.suffix_of([self.template.lone(filler, prompt, side) for filler in FILLERS])

    def suffix_of(self, rendered: AbstractSequence[str]) -> IntArray:
        """The tokens that a template ends in, whatever the texts: what truncation must leave.

        Args:
            rendered: the template with each of `chat.FILLERS` for the texts.
        """
        assert self.spec.chat is not None
        if not self.spec.chat.restores_suffix:
            return np.empty(0, np.int32)
        # With what the tokenizer's own truncation cut off: the template alone may be too long for the model.
        whole = (
            [*e.ids, *(i for piece in e.overflowing for i in piece.ids)]
            for e in self._tokenize(rendered, is_framed=False)
        )
        first, second = (np.array(ids, dtype=np.int32) for ids in whole)
        return common_suffix(first, second)

    def _cut(self, ids: IntArray, limit: int | None, suffix: IntArray | None) -> IntArray:
        """Down to the limit, where that is less than the tokenizer's; a template keeps its end."""
        if limit is None:
            return ids
        if suffix is not None and len(suffix):
            return with_suffix(ids, limit, suffix, self.truncates_left)
        return self.frame.cut(ids, limit, self.truncates_left)

    def _encode_by_words(
        self, texts: AbstractSequence[str], truncate: bool, limit: int | None
    ) -> list[IntArray] | None:
        """Tokens from the table of words; None where only the tokenizer itself will do."""
        words = self._words
        if words is None:
            return None
        try:
            if limit is None:
                return [words.encode(text, None) for text in texts]
            if truncate:
                return [words.encode(cut(text, limit), limit) for text in texts]
            # At the limit a word itself may have been cut, so that only less than that is certain.
            ids = [words.encode(text, None) for text in texts]
            return ids if all(len(i) < limit for i in ids) else None
        except TypeError:  # not Unicode: the other way says which text it is
            return None

    def _tokenize(
        self, texts: AbstractSequence[str], first_index: int = 0, is_framed: bool = True
    ) -> list[Encoding]:
        is_framed = is_framed and not self._is_bare
        try:
            # `encode_batch_fast` alone frees the GIL; `encode` holds it (30 ms at 100,000 characters).
            return self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=is_framed)
        except TypeError:
            for index, text in enumerate(texts, start=first_index):
                refuse_invalid_unicode(text, index)
            raise

    def _refuse_too_long(self, encodings: list[Encoding], limit: int, first_index: int) -> None:
        for index, encoding in enumerate(encodings, start=first_index):
            overflowing = encoding.overflowing
            if overflowing or len(encoding) > limit:
                # What was cut off comes back in pieces, each with its own special tokens.
                num_tokens = len(encoding) + sum(len(piece) - self._num_special for piece in overflowing)
                raise _too_long(index, num_tokens, limit)

    def _check_ids(
        self, ids: IntArray, truncate: bool, limit: int | None, request_id: int, index: int
    ) -> Sequence:
        if len(ids) == 0:
            raise InvalidInput(f"input[{index}] is an empty list of token ids.", param="input", index=index)
        self._refuse_foreign_ids(ids, index)
        if limit is not None and len(ids) > limit:
            if not truncate:
                raise _too_long(index, len(ids), limit)
            ids = ids[-limit:] if self.truncates_left else ids[:limit]
        return Sequence(request_id, index, np.ascontiguousarray(ids, dtype=np.int32))

    def _refuse_foreign_ids(self, ids: IntArray, index: int) -> None:
        bad = ids[(ids < 0) | (ids >= self._vocab_size)]
        if len(bad):
            raise _out_of_vocabulary(bad.tolist(), self._vocab_size, index)

    def _token_types(self, encoding: Encoding) -> IntArray | None:
        type_ids = np.array(encoding.type_ids, dtype=np.int32)
        return type_ids if type_ids.any() else None

    def _probe_token_types(self) -> bool:
        """Whether a lone text ever has a token type other than 0, which the template alone decides."""
        types = [i for e in self._tokenize(["a", ""]) for i in e.type_ids]
        return 0 < max(types, default=0) < self.num_types

    def _measure_prompt(self, prompt: str) -> int:
        """Tokens of the prompt alone, without a closing special token.

        Source: sentence-transformers' Transformer measures it so, and pools from there on.
        """
        ids = self._tokenize([prompt])[0].ids
        return len(ids) - 1 if ids and ids[-1] in self._special_ids else len(ids)


def _in_order(encoding: Encoding, cuts_left: bool) -> list[Encoding]:
    """What the tokenizer kept of a text and what it cut off, in the order of the text."""
    pieces = [encoding, *encoding.overflowing]
    return pieces[::-1] if cuts_left else pieces


def with_suffix(ids: IntArray, limit: int, suffix: IntArray, cuts_left: bool) -> IntArray:
    """At most `limit` tokens that end in a template's own end, where any were cut off.

    Source: sentence-transformers writes the suffix over the last tokens of what was truncated.
    """
    if len(ids) < limit or len(suffix) == 0:
        return ids
    kept = ids[len(ids) - limit :] if cuts_left else ids[:limit]
    end = suffix[-limit:]
    return np.concatenate([kept[: limit - len(end)], end])


def check_chars(
    texts: AbstractSequence[str], prompt_chars: int = 0, first_index: int = 0, name: str = "input"
) -> None:
    """Refuse texts that would cost seconds and gigabytes to tokenize, prompt included.

    Raises:
        InputTooLong: a text is longer than `MAX_TEXT_CHARS`, or all are longer than `MAX_REQUEST_CHARS`.
    """
    num_chars = len(texts) * prompt_chars
    for index, text in enumerate(texts, start=first_index):
        num_chars += len(text)
        if len(text) + prompt_chars > MAX_TEXT_CHARS:
            raise InputTooLong(
                f"{name}[{index}] has {len(text) + prompt_chars:,} characters, its prompt included; at most "
                f"{MAX_TEXT_CHARS:,} are taken. Split it.",
                param=name,
                index=index,
            )
    if num_chars > MAX_REQUEST_CHARS:
        raise InputTooLong(
            f"The {len(texts)} inputs have {num_chars:,} characters with their prompts; a request may have "
            f"{MAX_REQUEST_CHARS:,}. Send fewer at once.",
            param=name,
        )


def _slices(texts: AbstractSequence[str], prompt_chars: int) -> list[slice]:
    """Runs of texts of at most `MAX_TEXT_CHARS` characters together."""
    slices, start, num_chars = [], 0, 0
    for index, text in enumerate(texts):
        size = len(text) + prompt_chars
        if num_chars + size > MAX_TEXT_CHARS and index > start:
            slices.append(slice(start, index))
            start, num_chars = index, 0
        num_chars += size
    slices.append(slice(start, len(texts)))
    return slices


def token_array(ids: list[int], index: int) -> IntArray:
    """A caller's token ids as int32.

    Raises:
        InvalidInput: the list is empty, or an id does not fit 32 bits.
    """
    if not ids:
        raise InvalidInput(f"input[{index}] is an empty list of token ids.", param="input", index=index)
    try:
        return np.array(ids, dtype=np.int32)
    except OverflowError:
        bad = [i for i in ids if not -_INT32_MAX <= i <= _INT32_MAX]
        raise _out_of_vocabulary(bad, None, index) from None


def find_tokenizer_file(spec: ModelSpec) -> Path | None:
    """``tokenizer.json`` beside the transformer, else in the root of the repository."""
    root = Path(spec.path)
    for folder in (root / spec.transformer_folder, root):
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    return None


def _configure(
    tokenizer: Tokenizer, spec: ModelSpec, config: dict[str, Any], truncation_side: Side | None
) -> str:
    """Set truncation, padding and normalisation as sentence-transformers would.

    Returns:
        the side from which long inputs are cut.
    """
    stored = tokenizer.truncation
    own_side = config.get("truncation_side") or (stored["direction"] if stored else "right")
    if own_side not in ("left", "right"):
        raise _bad_value(spec, "truncation_side", own_side, '"left" or "right"')
    side: str = truncation_side or own_side
    tokenizer.no_padding()
    limit = longest_side(spec)
    if limit is not None:
        tokenizer.enable_truncation(limit, stride=0, strategy="longest_first", direction=side)
    elif spec.kind != "static":  # a static model keeps what its tokenizer.json says
        tokenizer.no_truncation()
    _follow_bert_flags(tokenizer, spec, config)
    if spec.multivector is not None:
        _keep_whole(tokenizer, spec.multivector.markers)
    if spec.text_tower is not None and spec.text_tower.strips_punctuation:
        _put_canonical_first(tokenizer)
    if spec.lower_case:
        _put_lowercase_first(tokenizer)
    return side


def _follow_bert_flags(tokenizer: Tokenizer, spec: ModelSpec, config: dict[str, Any]) -> None:
    """BERT's tokenizer classes take three flags from tokenizer_config.json over the normaliser's own."""
    from tokenizers import normalizers

    normalizer = tokenizer.normalizer
    is_bert = str(config.get("tokenizer_class", "")).removesuffix("Fast") == "BertTokenizer"
    if not is_bert or not isinstance(normalizer, normalizers.BertNormalizer):
        return
    strips = config.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(spec, config, "tokenize_chinese_chars"),
        strip_accents=None if strips is None else _flag(spec, config, "strip_accents"),
        lowercase=_flag(spec, config, "do_lower_case"),
    )


def _flag(spec: ModelSpec, config: dict[str, Any], name: str) -> bool:
    """A flag of tokenizer_config.json that is true where the file does not say."""
    value = config.get(name, True)
    if not isinstance(value, bool):
        raise _bad_value(spec, name, value, "true or false")
    return value


def _bad_value(spec: ModelSpec, name: str, value: object, wanted: str) -> ModelError:
    return ModelError(
        f"{spec.model_id}: its tokenizer_config.json says {name} is {value!r}; it must be {wanted}. "
        "Download the model again or correct the file."
    )


def _makes_types(config: dict[str, Any]) -> bool:
    """Whether transformers' tokenizer of this configuration hands token types to the model."""
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return str(config.get("tokenizer_class") or "").removesuffix("Fast") in _CLASSES_WITH_TYPES


def _keep_whole(tokenizer: Tokenizer, markers: AbstractSequence[str]) -> None:
    """Make each marker one token, where the vocabulary has it or its first word.

    Source: sentence-transformers' MultiVectorEncoder, for markers that training put in as ids.
    """
    from tokenizers import AddedToken

    for marker in markers:
        for spelt in (marker, *marker.split(None, 1)[:1]):
            if tokenizer.token_to_id(spelt) is None:
                continue
            if tokenizer.encode(spelt, add_special_tokens=False).tokens != [spelt]:
                tokenizer.add_special_tokens([AddedToken(spelt, normalized=False, special=True)])
            break


def _put_canonical_first(tokenizer: Tokenizer) -> None:
    """Drop ASCII punctuation, make one space of several and none of those at the ends, before all else.

    Source: SigLIP's tokenizer class does so to every text; its vocabulary knows no better.
    """
    from tokenizers import Regex, normalizers

    steps = [
        normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([*steps, *own])


def _put_lowercase_first(tokenizer: Tokenizer) -> None:
    """Lower-case before all else, unless a Lowercase step is there; BERT's own flag does not count as one."""
    from tokenizers import normalizers

    normalizer = tokenizer.normalizer
    steps: list[Any] = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        steps = list(normalizer)  # type: ignore[call-overload]  # the stubs do not say that it is iterable
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _tokenizer_config(spec: ModelSpec) -> dict[str, Any]:
    root = Path(spec.path)
    for folder in (root / spec.transformer_folder, root):
        file = folder / "tokenizer_config.json"
        if file.is_file():
            value = json.loads(file.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else {}
    return {}


def refuse_invalid_unicode(text: str, index: int) -> None:
    """Refuse a text that no tokenizer takes.

    Raises:
        InvalidInput: it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"input[{index}] is not valid Unicode: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}.",
            param="input",
            index=index,
        ) from None


def _too_long(index: int, num_tokens: int, limit: int) -> InputTooLong:
    return InputTooLong(
        f"input[{index}] has {num_tokens} tokens; the model takes at most {limit}. Shorten it, or have it "
        "cut (`truncate`).",
        param="input",
        index=index,
    )


def _out_of_vocabulary(bad: list[int], vocab_size: int | None, index: int) -> InvalidInput:
    named = ", ".join(map(str, bad[:_NAMED_IDS])) + (", …" if len(bad) > _NAMED_IDS else "")
    limit = f"; ids go from 0 to {vocab_size - 1}" if vocab_size is not None else ""
    return InvalidInput(
        f"input[{index}] holds token ids outside the model's vocabulary: {named}{limit}. Ids must come from "
        "this model's own tokenizer; clients that tokenize for OpenAI's models (LangChain: "
        "check_embedding_ctx_length=False) should send texts.",
        param="input",
        index=index,
    )
