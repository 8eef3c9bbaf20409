"""Infinity's bodies: OpenAI's, with an id and a time in the answer, and 0 for "all dimensions"."""

from __future__ import annotations

import time
import uuid

import msgspec

from hilbert.api.openai.protocol import Embedding, EmbeddingsBody, Usage
from hilbert.api.vectors import Encoding, embedding_list
from hilbert.core import EmbedResult


class InfinityEmbeddingList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
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


class FormDetail(msgspec.Struct):
    """One complaint about the body."""

    type: str
    loc: list[str | int]
    msg: str


class FormError(msgspec.Struct):
    """A body of the wrong form."""

    detail: list[FormDetail]


def follow_infinity(body: EmbeddingsBody) -> EmbeddingsBody:
    """Read a body as Infinity would: dimension 0 means all of them."""
    return msgspec.structs.replace(body, dimensions=body.dimensions or None)


def to_json(result: EmbedResult, encoding: Encoding, model: bytes) -> bytes:
    """The answer's body; `model` is the name as JSON."""
    tail = b',"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d},"id":"infinity-%s","created":%d' % (
        model,
        result.num_tokens,
        result.num_tokens,
        str(uuid.uuid4()).encode(),
        time.time(),
    )
    return embedding_list(result.vectors, encoding, b'"object":"list",', tail)
