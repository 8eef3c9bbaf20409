"""Infinity's routes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.infinity import protocol
from hilbert.api.infinity.errors import InfinityDialect
from hilbert.api.openai.protocol import EmbeddingsBody
from hilbert.api.openai.routes import EmbeddingsRoute
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.models import Registry, ServedModel


def infinity_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix."""
    dialect = InfinityDialect()

    async def list_models(call: Call) -> Reply:
        return Reply(orjson.dumps({"data": [describe(m) for m in models.list()], "object": "list"}))

    yield Route(
        "POST",
        f"{base}/embeddings",
        EmbeddingsRoute(models, settings, protocol.to_json, protocol.follow_infinity),
        dialect,
        summary="Embed texts or token ids (Infinity's answer)",
        request=EmbeddingsBody,
        response=protocol.InfinityEmbeddingList,
    )
    yield Route(
        "GET",
        f"{base}/models",
        list_models,
        dialect,
        summary="List the served models (Infinity's answer)",
        response=protocol.InfinityModelList,
    )


def describe(model: ServedModel) -> dict[str, object]:
    """A model as an entry of Infinity's `/models`."""
    admission = model.admission
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
        "backend": model.engine.info.engine if model.is_ready else "",
        "capabilities": [model.spec.task.value],
    }
