"""Ollama's routes, as far as they concern embeddings."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import numpy as np

from hilbert import __version__
from hilbert.api.body import MalformedRequest
from hilbert.api.call import Call, Reply
from hilbert.api.exchange import known_name, model_for, ordered, parsed, written
from hilbert.api.ollama import protocol
from hilbert.api.ollama.errors import OllamaDialect
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.core import EmbedRequest, EncodeResult, Task, Timing
from hilbert.models import Registry, ServedModel


def ollama_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix."""
    dialect = OllamaDialect()

    async def find(call: Call, name: str | None) -> ServedModel:
        return await model_for(call, models, known_name(models, name), Task.EMBED)

    async def embed(call: Call) -> Reply:
        body = await ordered(call, models, settings.max_body_bytes, protocol.EMBED.decode)
        request = protocol.to_request(body, settings.max_client_batch_size)
        arrived = time.perf_counter()
        model = await find(call, body.model)
        load_seconds = time.perf_counter() - arrived
        if request.inputs:
            result = await call.unless_gone(model.encode(request))
        else:
            result = EncodeResult(np.empty((0, 0), np.float32), None, None, 0, Timing())
        seconds = time.perf_counter() - call.started
        write = protocol.vectors_json
        name = body.model or model.name
        dtype = model.embedding_dtype
        return Reply(await written(result.num_numbers, write, result, dtype, name, seconds, load_seconds))

    async def embeddings(call: Call) -> Reply:
        body = await ordered(call, models, settings.max_body_bytes, protocol.EMBEDDINGS.decode)
        if body.prompt is None:
            raise MalformedRequest("`prompt` is missing; send a string.", param="prompt")
        model = await find(call, body.model)
        request = EmbedRequest((body.prompt,), truncate=None, normalize=False)
        return Reply(protocol.vector_json(await call.unless_gone(model.encode(request))))

    async def tags(call: Call) -> Reply:
        found = [protocol.to_model(entry) for entry in models.list(call.prefix)]
        return Reply(msgspec.json.encode(protocol.OllamaModels(found)))

    async def running(call: Call) -> Reply:
        loaded = (entry for entry in models.list(call.prefix) if entry.served is not None)
        return Reply(msgspec.json.encode(protocol.OllamaModels([protocol.to_model(e) for e in loaded])))

    async def show(call: Call) -> Reply:
        body = await parsed(call, settings.max_body_bytes, protocol.SHOW.decode)
        entry = models.choose(known_name(models, body.model or body.name), Task.EMBED, call.prefix)
        return Reply(msgspec.json.encode(protocol.to_show(entry)))

    async def version(call: Call) -> Reply:
        return Reply(msgspec.json.encode(protocol.OllamaVersion(__version__)))

    yield Route(
        "POST",
        f"{base}/api/embed",
        embed,
        dialect,
        summary="Embed texts (Ollama's answer)",
        request=protocol.OllamaEmbedBody,
        response=protocol.OllamaEmbeddings,
    )
    yield Route(
        "POST",
        f"{base}/api/embeddings",
        embeddings,
        dialect,
        summary="Embed one text (Ollama's old answer)",
        request=protocol.OllamaEmbeddingsBody,
        response=protocol.OllamaEmbedding,
        is_deprecated=True,
    )
    yield Route(
        "POST",
        f"{base}/api/show",
        show,
        dialect,
        summary="Describe a model (Ollama's answer)",
        request=protocol.OllamaShowBody,
        response=protocol.OllamaShow,
    )
    for path, handler, said, response in (
        ("tags", tags, "List the models", protocol.OllamaModels),
        ("ps", running, "List the models in memory", protocol.OllamaModels),
        ("version", version, "The server's version", protocol.OllamaVersion),
    ):
        yield Route(
            "GET",
            f"{base}/api/{path}",
            handler,
            dialect,
            summary=f"{said} (Ollama's answer)",
            response=response,
        )
