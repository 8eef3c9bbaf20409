"""Infinity's routes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.classify import Classification, ClassifyBody, ClassifyRoute
from hilbert.api.infinity import protocol
from hilbert.api.infinity.errors import InfinityDialect
from hilbert.api.openai.protocol import SparseEmbeddingList
from hilbert.api.openai.routes import EmbeddingsRoute
from hilbert.api.rerank import RerankBody, RerankRoute
from hilbert.api.routing import ByField, Claim, Route
from hilbert.api.settings import ApiSettings
from hilbert.core import Modality, OutputType, Task
from hilbert.models import Entry, Registry

# Infinity's names of what a model can do.
_CAPABILITIES = {
    Task.EMBED: "embed",
    Task.MULTI_EMBED: "embed",
    Task.RERANK: "rerank",
    Task.CLASSIFY: "classify",
    Task.IMAGE_EMBED: "image_embed",
    Task.AUDIO_EMBED: "audio_embed",
}


def infinity_routes(
    models: Registry, settings: ApiSettings, base: str, claims: Sequence[Claim] = ()
) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix.

    Args:
        claims: bodies at `/rerank` that are other dialects'.
    """
    dialect = InfinityDialect()

    async def list_models(call: Call) -> Reply:
        return Reply(
            orjson.dumps({"data": [describe(m) for m in models.list(call.prefix)], "object": "list"})
        )

    yield Route(
        "POST",
        f"{base}/embeddings",
        EmbeddingsRoute(models, settings, protocol.to_json, protocol.decode),
        dialect,
        summary="Embed texts, token ids, images or sounds (Infinity's answer)",
        request=protocol.InfinityEmbeddingsBody,
        response=protocol.InfinityEmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/embeddings_sparse",
        EmbeddingsRoute(models, settings, protocol.to_json, protocol.decode, output=OutputType.SPARSE),
        dialect,
        summary="Weights of texts over the vocabulary",
        request=protocol.InfinityEmbeddingsBody,
        response=SparseEmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/embeddings/colbert",
        EmbeddingsRoute(models, settings, protocol.to_json, protocol.decode, output=OutputType.MULTIVECTOR),
        dialect,
        summary="A vector for each token",
        request=protocol.InfinityEmbeddingsBody,
        response=protocol.InfinityEmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/rerank",
        ByField(RerankRoute(models, settings, protocol.rerank_json), settings.max_body_bytes, *claims),
        dialect,
        summary="Order documents by relevance (Infinity's answer)",
        request=RerankBody,
        response=protocol.InfinityRanking,
    )
    yield Route(
        "POST",
        f"{base}/classify",
        ClassifyRoute(models, settings, protocol.new_id),
        dialect,
        summary="Scores of all classes",
        request=ClassifyBody,
        response=Classification,
    )
    for modality in (Modality.IMAGE, Modality.AUDIO):
        yield Route(
            "POST",
            f"{base}/embeddings_{modality}",
            EmbeddingsRoute(models, settings, protocol.to_json, protocol.decode, modality=modality),
            dialect,
            summary=f"As embeddings with modality {modality} (Infinity's answer)",
            request=protocol.InfinityEmbeddingsBody,
            response=protocol.InfinityEmbeddingList,
            is_deprecated=True,
        )
    yield Route(
        "GET",
        f"{base}/models",
        list_models,
        dialect,
        summary="List the served models (Infinity's answer)",
        response=protocol.InfinityModelList,
    )


def describe(model: Entry) -> dict[str, object]:
    """A model as an entry of Infinity's `/models`."""
    admission, info = model.admission, model.runtime_info
    return {
        "id": model.name,
        "stats": {
            "queue_fraction": admission.num_queued_tokens / admission.max_queued_tokens,
            "queue_absolute": model.metrics.queue_sequences,
            "results_pending": admission.num_requests,
            "batch_size": admission.max_concurrent_requests,
        },
        "object": "model",
        "owned_by": "infinity",
        "created": int(time.time()),
        "backend": info.engine if info is not None else "",
        "capabilities": list(
            dict.fromkeys(_CAPABILITIES[task] for task in model.tasks if task in _CAPABILITIES)
        ),
    }
