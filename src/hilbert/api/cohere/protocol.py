"""The answer of `/v1/rerank`."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import orjson

from hilbert.api.body import Usage, usage
from hilbert.api.openai.protocol import ErrorObject
from hilbert.api.rerank import RerankOrder, scored
from hilbert.core import RerankResult


class Ranked(msgspec.Struct, omit_defaults=True):
    """One document: its place in the request, its score, and itself where it was asked for."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class Ranking(msgspec.Struct):
    """The documents, best first."""

    id: str
    object: str
    model: str
    results: list[Ranked]
    meta: dict[str, Any]
    usage: Usage


class CohereError(msgspec.Struct):
    """What went wrong, in Cohere's form and in OpenAI's."""

    message: str
    error: ErrorObject


def rerank_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """The answer's body."""
    results = []
    for index, score in scored(result):
        item: dict[str, Any] = {"index": index, "relevance_score": score}
        if order.returns_documents:
            document = order.documents[index]
            item["document"] = {"text": document} if isinstance(document, str) else document
        results.append(item)
    return orjson.dumps(
        {
            "id": str(uuid.uuid4()),
            "object": "rerank",
            "model": model,
            "results": results,
            "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
            "usage": usage(result.num_tokens),
        }
    )
