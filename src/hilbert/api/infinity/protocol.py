"""Infinity's bodies: OpenAI's, with an id and a time in the answer, and a looser word for `dimensions`."""

from __future__ import annotations

import time
import uuid
from typing import Annotated

import msgspec
import orjson

from hilbert.api.body import DIMENSIONS, BodyDecoder, MalformedRequest, Usage, about, usage
from hilbert.api.inputs import INPUT_FORMS
from hilbert.api.openai.protocol import Embedding, EmbeddingsBody
from hilbert.api.rerank import RerankOrder, scored
from hilbert.core import RerankResult


class InfinityEmbeddingsBody(EmbeddingsBody, kw_only=True):
    """A request for embeddings. Every field may be null; unknown fields are ignored."""

    dimensions: Annotated[
        int | str | None,
        about(
            "Keep the first so many numbers of each vector, and normalise again; 0 for all. A number as text "
            "is read, too."
        ),
    ] = None  # type: ignore[assignment]  # wider on the wire; `decode` leaves numbers only


class InfinityEmbeddingList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
    model: str
    usage: Usage
    id: str
    created: int


class InfinityRanked(msgspec.Struct):
    """One document and its score."""

    relevance_score: float
    index: int
    document: str | None


class InfinityRanking(msgspec.Struct):
    """The documents, best first."""

    object: str
    results: list[InfinityRanked]
    model: str
    usage: Usage
    id: str
    created: int


class ModelStats(msgspec.Struct):
    """How busy a model is."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class InfinityModel(msgspec.Struct):
    """One served model."""

    id: str
    stats: ModelStats
    object: str
    owned_by: str
    created: int
    backend: str
    capabilities: list[str]


class InfinityModelList(msgspec.Struct):
    """All served models."""

    data: list[InfinityModel]
    object: str


class InfinityErrorObject(msgspec.Struct):
    """What went wrong; `code` is the status, the two between are Infinity's and always null."""

    message: str
    type: None
    param: None
    code: int


class InfinityError(msgspec.Struct):
    """The body of an error that is not one of form."""

    error: InfinityErrorObject


class FormDetail(msgspec.Struct):
    """One complaint about the body."""

    type: str
    loc: list[str | int]
    msg: str


class FormError(msgspec.Struct):
    """A body of the wrong form."""

    detail: list[FormDetail]


_decoder = BodyDecoder(InfinityEmbeddingsBody, {"input": INPUT_FORMS})


def decode(raw: bytes) -> EmbeddingsBody:
    """Read a body as Infinity would: `dimensions` may be text, and 0 means all of them.

    Raises:
        MalformedRequest: it has another form.
    """
    body = _decoder.decode(raw)
    return msgspec.structs.replace(body, dimensions=_number(body.dimensions) or None)


def _number(value: int | str | None) -> int | None:
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        raise MalformedRequest(
            f"`dimensions` is {value[:50]!r} of type str, and no number; send {DIMENSIONS}.",
            param="dimensions",
        ) from None


def to_json(data: bytes, num_tokens: int, model: bytes) -> bytes:
    """The answer's body; `data` is the list of items, `model` the name, both as JSON."""
    return b'{"object":"list","data":%s,"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d},%s}' % (
        data,
        model,
        num_tokens,
        num_tokens,
        new_id(),
    )


def rerank_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """The answer of `/rerank`; a document is its text, or null when nobody asked for it."""
    results = [
        {
            "relevance_score": score,
            "index": index,
            "document": order.request.documents[index] if order.returns_documents else None,
        }
        for index, score in scored(result)
    ]
    body = {"object": "rerank", "results": results, "model": model, "usage": usage(result.num_tokens)}
    return b"%s,%s}" % (orjson.dumps(body)[:-1], new_id())


def new_id() -> bytes:
    """``"id":…,"created":…``."""
    return b'"id":"infinity-%s","created":%d' % (str(uuid.uuid4()).encode(), time.time())
