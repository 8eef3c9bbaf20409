"""OpenAI's routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai import protocol
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.vectors import OFFLOAD_BYTES, Encoding
from hilbert.core import EmbedRequest, EmbedResult
from hilbert.errors import ModelNotFound
from hilbert.models import Registry, ServedModel
from hilbert.models.offload import offload

# Parsing a body of this size takes about half a millisecond.
_INLINE_BODY_BYTES = 256 * 1024


class EmbeddingsRoute:
    """Handles `POST …/embeddings`, for OpenAI's dialect and those that differ from it in a word or two.

    Args:
        to_json: writes the answer's body, given the vectors, their encoding and the model's name as JSON.
        adapt: reads a body as the dialect means it.
    """

    def __init__(
        self,
        models: Registry,
        settings: ApiSettings,
        to_json: Callable[[EmbedResult, Encoding, bytes], bytes],
        adapt: Callable[[protocol.EmbeddingsBody], protocol.EmbeddingsBody] | None = None,
    ) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._to_json = to_json
        self._adapt = adapt

    async def __call__(self, call: Call) -> Reply:
        """Embed texts or token ids."""
        raw = await call.body(self._max_body_bytes)
        if len(raw) < _INLINE_BODY_BYTES:
            model_name, encoding, request = self._parse(raw)
        else:
            model_name, encoding, request = await offload(self._parse, raw)
        model = self._models.get(model_name)
        result = await call.unless_gone(model.embed(request))
        if encoding == "bytes":
            content, metadata = protocol.to_raw(result, model.name)
            return Reply(content, 200, b"application/octet-stream", ((b"metadata", metadata),))
        name = orjson.dumps(model.name)
        if result.vectors.nbytes <= OFFLOAD_BYTES:
            return Reply(self._to_json(result, encoding, name))
        return Reply(await offload(self._to_json, result, encoding, name))

    def _parse(self, raw: bytes) -> tuple[str | None, Encoding, EmbedRequest]:
        body = protocol.decode(raw)
        if self._adapt is not None:
            body = self._adapt(body)
        encoding = protocol.to_encoding(body.encoding_format)
        return body.model, encoding, protocol.to_request(body, self._max_inputs)


def describe(model: ServedModel) -> dict[str, object]:
    """A model as an entry of `/v1/models`: OpenAI's four fields, and what users of embeddings ask next."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "hilbert",
        "root": model.spec.model_id,
        "aliases": list(model.aliases),
        "task": model.spec.task.value,
        "dimensions": model.spec.dimensions,
        "max_model_len": model.spec.max_model_len,
        "ready": model.is_ready,
    }


def openai_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base, such as ``/v1``."""
    dialect = OpenAIDialect()

    async def list_models(call: Call) -> Reply:
        return Reply(orjson.dumps({"object": "list", "data": [describe(m) for m in models.list()]}))

    async def one_model(call: Call) -> Reply:
        model = models.find(call.tail)
        if model is not None:
            return Reply(orjson.dumps(describe(model)))
        known = ", ".join(m.name for m in models.list())
        raise ModelNotFound(f"The model {call.tail!r} is not served here. Available: {known}.", param="model")

    yield Route(
        "POST",
        f"{base}/embeddings",
        EmbeddingsRoute(models, settings, protocol.to_json),
        dialect,
        summary="Embed texts or token ids",
        request=protocol.EmbeddingsBody,
        response=protocol.EmbeddingList,
    )
    yield Route(
        "GET",
        f"{base}/models",
        list_models,
        dialect,
        summary="List the served models",
        response=protocol.ModelList,
    )
    yield Route(
        "GET",
        f"{base}/models/*",
        one_model,
        dialect,
        summary="Describe one served model",
        response=protocol.Model,
    )
