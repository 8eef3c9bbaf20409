"""Late chunking: a document's chunks as tokens of one text, so that each vector has seen all of it.

The chunks are joined, with a space where neither of two neighbours brings white space, behind the prompt,
and tokenized as one text. A token belongs to the chunk in which its last character lies; the special tokens
and the prompt in front belong to the first chunk, those at the end to the last, so that a document of one
chunk has the vector that its text alone has.

A document that is longer than the model goes through it in windows. Each window begins with the last tokens
of the one before, which are there to be seen and are not counted again, and has the prompt and the special
tokens of any text.

Source: Günther et al. 2024, "Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding
Models" (arXiv 2409.04701), algorithms 1 and 2; where special tokens and prompts belong is as in the
authors' evaluation code. Repeating the prompt in each window is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hilbert.core import Sequence
from hilbert.core.request import FloatArray, IntArray
from hilbert.errors import InputTooLong, InvalidInput
from hilbert.processors.text import MAX_TEXT_CHARS, TextProcessor

# An eighth of a window has been seen in the one before: 1024 of 8192 tokens. The authors take 256 of 8192.
_OVERLAP = 8
# Of one request, as all their vectors are in memory at once: half a gigabyte at 1024 numbers each.
MAX_CHUNKED_TOKENS = 131_072
# A window with less room than this would be all overlap.
_LEAST_ROOM = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a document that the model sees at once.

    Attributes:
        input_ids: ``[n]`` int32, special tokens included.
        first, end: the rows of the window that count.
    """

    input_ids: IntArray
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """One document, tokenized.

    Attributes:
        windows: in order; their counting rows, one after the other, are the document's.
        starts: ``[C]``: the first of those rows of each chunk.
    """

    windows: tuple[Window, ...]
    starts: npt.NDArray[np.int64]

    def pool(self, tables: AbstractSequence[FloatArray]) -> FloatArray:
        """The mean of each chunk's token vectors, summed in float64.

        Args:
            tables: for each window ``[n, E]``.
        Returns:
            ``[C, E]`` float32.
        """
        rows = np.concatenate([t[w.first : w.end] for t, w in zip(tables, self.windows, strict=True)])
        if not len(rows):  # one chunk, without a single token
            return np.zeros((len(self.starts), rows.shape[1]), np.float32)
        ends = np.append(self.starts[1:], len(rows))
        means = np.empty((len(ends), rows.shape[1]), np.float32)
        for mean, start, end in zip(means, self.starts, ends, strict=True):  # a tenth of `reduceat`
            np.divide(
                np.add.reduce(rows[start:end], dtype=np.float64), end - start, out=mean, casting="same_kind"
            )
        return means


class ChunkProcessor:
    """Tokenizes documents for one model. Any number of threads may use it at once."""

    def __init__(self, texts: TextProcessor) -> None:
        self._texts = texts

    def encode(
        self, chunks: tuple[str, ...], counts: tuple[int, ...], prompt: str, truncate: bool
    ) -> tuple[Document, ...]:
        """Tokenize documents.

        Args:
            chunks: of all documents, in order.
            counts: how many each document has.
            prompt: put before each document.
            truncate: read what is longer than the model in windows; when false that is an error.
        Raises:
            InvalidInput: a chunk has no tokens, or is not valid Unicode.
            InputTooLong: a document is too long, and `truncate` is false, or it would cost too much.
        """
        num_chars = sum(map(len, chunks)) + len(counts) * len(prompt)
        if num_chars > MAX_TEXT_CHARS:
            raise _too_much(f"{num_chars:,} characters", f"{MAX_TEXT_CHARS:,}")
        documents = tuple(
            self._document(chunks[first : first + count], first, prompt, truncate)
            for first, count in zip(_firsts(counts), counts, strict=True)
        )
        num_tokens = sum(len(window.input_ids) for document in documents for window in document.windows)
        if num_tokens > MAX_CHUNKED_TOKENS:
            raise _too_much(f"{num_tokens:,} tokens", f"{MAX_CHUNKED_TOKENS:,}")
        return documents

    def _document(self, chunks: tuple[str, ...], first: int, prompt: str, truncate: bool) -> Document:
        text, borders = joined(chunks, prompt)
        ids, lasts = self._texts.spans(text, first)
        places = np.searchsorted(borders, lasts, side="right").astype(np.int32) - 1
        num_prompt = int(np.searchsorted(places, 0))
        _check_all_have_tokens(places[num_prompt:], len(chunks), first)
        windows = tuple(_bounded(self._windows(ids, num_prompt, first, truncate)))
        num_excluded = self._texts.prompt_len(prompt)
        num_before = len(self._texts.frame.before) + num_prompt
        starts = np.searchsorted(places[num_prompt:], np.arange(len(chunks)))
        if len(chunks) > 1:  # alone, a prompt may have a token more than before a text: not the chunk's last
            num_excluded = min(num_excluded, num_before + int(starts[1]) - 1)
        windows = (Window(windows[0].input_ids, num_excluded, windows[0].end), *windows[1:])
        starts[1:] += num_before - num_excluded
        starts[0] = 0
        return Document(windows, starts)

    def _windows(self, ids: IntArray, num_prompt: int, first: int, truncate: bool) -> Iterator[Window]:
        frame, limit = self._texts.frame, self._texts.max_len
        head = np.concatenate([frame.before, ids[:num_prompt]])
        text = ids[num_prompt:]
        num_around = len(head) + len(frame.after)
        room = len(text) if limit is None else limit - num_around
        if len(text) > room:
            self._check_room(num_around + len(text), room, first, truncate)
        overlap = room // _OVERLAP
        start = seen = 0
        while True:
            end = min(start + room, len(text))
            window = np.concatenate([head, text[start:end], frame.after]).astype(np.int32)
            is_last = end == len(text)
            counts_from = 0 if start == 0 else len(head) + seen - start
            yield Window(window, counts_from, len(window) if is_last else len(head) + end - start)
            if is_last:
                return
            start, seen = end - overlap, end

    def _check_room(self, num_tokens: int, room: int, first: int, truncate: bool) -> None:
        limit = self._texts.max_len
        if not truncate:
            raise InputTooLong(
                f"The document that begins with input[{first}] has {num_tokens} tokens; the model takes at "
                f"most {limit}. Shorten it, or allow truncation: then it is read in windows.",
                param="input",
                index=first,
            )
        if room < _LEAST_ROOM:
            raise InvalidInput(
                f"Behind its prompt and special tokens the model has room for {room} of its {limit} tokens; "
                f"late chunking needs {_LEAST_ROOM}. Take a shorter prompt.",
                param="prompt",
            )


def _bounded(windows: Iterable[Window]) -> Iterator[Window]:
    """The windows of a document, as far as a request may have so many tokens: a long prompt is in each."""
    num_tokens = 0
    for window in windows:
        num_tokens += len(window.input_ids)
        if num_tokens > MAX_CHUNKED_TOKENS:
            raise _too_much(f"more than {MAX_CHUNKED_TOKENS:,} tokens", f"{MAX_CHUNKED_TOKENS:,}")
        yield window


def _too_much(size: str, limit: str) -> InputTooLong:
    return InputTooLong(
        f"The documents have {size} with their prompts; late chunking reads at most {limit} in one request. "
        "Send fewer at once.",
        param="input",
    )


def joined(chunks: tuple[str, ...], prompt: str) -> tuple[str, IntArray]:
    """The text of a document, and where in it each chunk begins, ``[C]`` int32.

    A space between two chunks counts to the second.
    """
    parts, borders, size = [prompt], [], len(prompt)
    before = " "
    for chunk in chunks:
        is_apart = before[-1:].isspace() or chunk[:1].isspace() or not chunk
        part = chunk if is_apart else " " + chunk
        borders.append(size)
        parts.append(part)
        size += len(part)
        before = part or before
    return "".join(parts), np.array(borders, dtype=np.int32)


def _check_all_have_tokens(places: IntArray, num_chunks: int, first: int) -> None:
    if num_chunks == 1:
        return
    missing = np.setdiff1d(np.arange(num_chunks), places)
    if len(missing):
        index = first + int(missing[0])
        raise InvalidInput(
            f"input[{index}] has no tokens of its own, so that late chunking has nothing to average; leave "
            "it out.",
            param="input",
            index=index,
        )


def _firsts(counts: Iterable[int]) -> Iterator[int]:
    first = 0
    for count in counts:
        yield first
        first += count


def sequences_of(documents: AbstractSequence[Document], request_id: int) -> tuple[Sequence, ...]:
    """All windows, document by document."""
    windows = (window for document in documents for window in document.windows)
    return tuple(Sequence(request_id, index, window.input_ids) for index, window in enumerate(windows))
