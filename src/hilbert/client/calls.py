"""Each call once: what is sent, how its answer is read, and how the answers of its parts become one.

Sans-IO. A call with many inputs goes in parts, each a request of its own; the drivers in `client.py` send
them. An answer's numbers travel as bytes: base64 of little-endian float32 in JSON, arrays in msgpack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypedDict, TypeVar

import msgspec
import numpy as np

from hilbert.client import inputs as forms
from hilbert.client import wire
from hilbert.client.inputs import Input
from hilbert.client.wire import Encoded, FloatArray, Hit, LabelScore
from hilbert.core import SparseVector
from hilbert.errors import InvalidInput, ServingError

T = TypeVar("T")
R = TypeVar("R")
JSON = "application/json"
MSGPACK = "application/msgpack"
# The server reads 32 MiB by default; base64 makes four bytes of three.
_MAX_PART_BYTES = 16 * 1024 * 1024
_PLACE = re.compile(r"\b(input|documents|items)\[(\d+)\]")


class EmbedOptions(TypedDict, total=False):
    """How inputs become vectors.

    Attributes:
        dimensions: keep the first so many numbers, normalised again.
        prompt_name: one of the model's prompts; ``""`` for none.
        prompt: text to put before every text.
        input_type: ``"query"`` or ``"document"``.
        truncate: cut texts that are too long for the model; when false they are an error.
    """

    dimensions: int | None
    prompt_name: str | None
    prompt: str | None
    input_type: str | None
    truncate: bool


class SparseOptions(TypedDict, total=False):
    """`EmbedOptions` without what has no meaning for weights over a vocabulary."""

    prompt_name: str | None
    prompt: str | None
    input_type: str | None
    truncate: bool


class DenseOptions(EmbedOptions, total=False):
    """`EmbedOptions`, and what all inputs are.

    Attributes:
        modality: ``"text"``, ``"image"`` or ``"audio"``; by default each input is what it looks like.
    """

    modality: str | None


class RerankOptions(TypedDict, total=False):
    """How documents are ordered.

    Attributes:
        top_n: return only so many of the best.
        raw_scores: a cross-encoder's logits instead of their sigmoid.
        truncate: cut texts that are too long for the model; when false they are an error.
        prompt: the instruction of a reranker that takes one; None takes the model's own.
    """

    top_n: int | None
    raw_scores: bool
    truncate: bool
    prompt: str | None


class ClassifyOptions(TypedDict, total=False):
    """How texts are classified.

    Attributes:
        raw_scores: logits instead of probabilities.
        truncate: cut texts that are too long for the model; when false they are an error.
    """

    raw_scores: bool
    truncate: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of the SDK.

    Attributes:
        path: below ``/v1``.
        items: what it is about; a request carries some of them.
        write: the body for some items.
        read: an answer's body.
        join: the answers of several requests, each with the place of its first item.
        media_type: of body and answer.
        reads_files: whether `write` may wait for a disk, or for Pillow.
    """

    path: str
    items: Sequence[Any]
    write: Callable[[Sequence[Any]], bytes]
    read: Callable[[bytes], T]
    join: Callable[[Sequence[tuple[int, T]]], T]
    media_type: str = JSON
    reads_files: bool = False

    def parts(self, max_items: int) -> list[range]:
        """Which items go together: at most `max_items` and some megabytes, and one request at least."""
        parts, start, size = [], 0, 0
        for place, item in enumerate(self.items):
            more = forms.weight(item)
            if place - start == max_items or (place > start and size + more > _MAX_PART_BYTES):
                parts.append(range(start, place))
                start, size = place, 0
            size += more
        return [*parts, range(start, len(self.items))]

    def body(self, part: range) -> bytes:
        """The body of one request."""
        return self.write(self.items[part.start : part.stop])


def placed(error: ServingError, start: int) -> ServingError:
    """An error of a request, in terms of the whole call: `index` is that of the guilty item."""
    found = _PLACE.search(error.message)
    if found is None:
        return error
    error.index = int(found[2]) + start
    error.message = f"{error.message[: found.start(2)]}{error.index}{error.message[found.end(2) :]}"
    error.args = (error.message,)
    return error


def embed(
    inputs: Input | Iterable[Input],
    model: str | None,
    *,
    dimensions: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    input_type: str | None = None,
    truncate: bool = True,
    modality: str | None = None,
) -> Call[FloatArray]:
    """Dense vectors."""
    items = forms.listed(inputs)
    fields = _present(
        encoding_format="base64",
        model=model,
        dimensions=dimensions,
        prompt_name=prompt_name,
        prompt=prompt,
        input_type=input_type,
        truncate=None if truncate else False,
        modality=modality,
    )

    def write(some: Sequence[Input]) -> bytes:
        return msgspec.json.encode({"input": [forms.as_json(item, modality) for item in some], **fields})

    return Call("/embeddings", items, write, wire.read_vectors, _stacked, reads_files=_has_files(items))


def encode(
    inputs: Input | Iterable[Input],
    model: str | None,
    outputs: Collection[str],
    *,
    dimensions: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    input_type: str | None = None,
    truncate: bool = True,
) -> Call[Encoded]:
    """Several kinds of vector from one pass."""
    items = forms.listed(inputs)
    options = _present(
        dimensions=dimensions,
        prompt_name=prompt_name,
        input_type=input_type,
        truncate=None if truncate else False,
    )
    names = [outputs] if isinstance(outputs, str) else sorted(outputs)
    params = {"output_types": names, **_present(instruction=prompt, options=options or None)}

    def write(some: Sequence[Input]) -> bytes:
        body = {"items": [forms.as_item(item) for item in some], "params": params, "model": model}
        return msgspec.msgpack.encode(body)

    return Call("/encode", items, write, wire.read_encoded, _encoded, MSGPACK, _has_files(items))


def embed_sparse(
    inputs: Input | Iterable[Input], model: str | None, **options: Any
) -> Call[list[SparseVector]]:
    """The sparse vectors of `encode`."""
    return _only(encode(inputs, model, ("sparse",), **options), wire.sparse_of)


def embed_multivector(
    inputs: Input | Iterable[Input], model: str | None, **options: Any
) -> Call[list[FloatArray]]:
    """The token vectors of `encode`."""
    return _only(encode(inputs, model, ("multivector",), **options), wire.multivector_of)


def rerank(
    query: str,
    documents: Iterable[str],
    model: str | None,
    *,
    top_n: int | None = None,
    raw_scores: bool = False,
    truncate: bool = True,
    prompt: str | None = None,
) -> Call[list[Hit]]:
    """Documents in the order of their relevance."""
    if isinstance(documents, str):
        raise InvalidInput("documents is a string; give a list of strings.", param="documents")
    items = forms.listed_texts(documents, "documents")
    fields = _present(
        query=query,
        model=model,
        top_n=top_n,
        raw_scores=raw_scores or None,
        truncate=None if truncate else False,
        prompt=prompt,
    )

    def write(some: Sequence[str]) -> bytes:
        return msgspec.json.encode({"documents": some, **fields})

    return Call("/rerank", items, write, wire.read_ranking, partial(_ranked, top_n))


def classify(
    texts: str | Iterable[str], model: str | None, *, raw_scores: bool = False, truncate: bool = True
) -> Call[list[list[LabelScore]]]:
    """The scores of all classes."""
    fields = _present(model=model, raw_scores=raw_scores or None, truncate=None if truncate else False)

    def write(some: Sequence[str]) -> bytes:
        return msgspec.json.encode({"input": some, **fields})

    items = forms.listed_texts(texts, "input")
    return Call("/classify", items, write, wire.read_classes, _chained)


def _present(**fields: Any) -> dict[str, Any]:
    """What is not asked for is not sent."""
    return {name: value for name, value in fields.items() if value is not None}


def _has_files(items: Iterable[Input]) -> bool:
    return any(not isinstance(item, str | bytes) for item in items)


def _only(call: Call[Encoded], take: Callable[[Encoded], list[R]]) -> Call[list[R]]:
    def read(content: bytes) -> list[R]:
        return take(call.read(content))

    return Call(call.path, call.items, call.write, read, _chained, call.media_type, call.reads_files)


def _stacked(answers: Sequence[tuple[int, FloatArray]]) -> FloatArray:
    try:
        return np.concatenate([rows for _, rows in answers])
    except ValueError as error:
        raise ServingError(f"The server's vectors are not all of one size: {error}") from None


def _chained(answers: Sequence[tuple[int, list[R]]]) -> list[R]:
    return [row for _, rows in answers for row in rows]


def _encoded(answers: Sequence[tuple[int, Encoded]]) -> Encoded:
    parts = [answer for _, answer in answers]
    first = parts[0]
    return Encoded(
        first.model,
        None if first.dense is None else np.concatenate([p.dense for p in parts if p.dense is not None]),
        None if first.sparse is None else [v for p in parts for v in p.sparse or ()],
        None if first.multivector is None else [v for p in parts for v in p.multivector or ()],
    )


def _ranked(top_n: int | None, answers: Sequence[tuple[int, list[Hit]]]) -> list[Hit]:
    """A document's score does not depend on the others, so rankings of parts merge."""
    hits = [Hit(hit.index + start, hit.score) for start, found in answers for hit in found]
    return sorted(hits, key=lambda hit: (-hit.score, hit.index))[:top_n]
