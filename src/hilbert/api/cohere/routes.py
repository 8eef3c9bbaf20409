"""Cohere's routes: `/v1` and `/v2`. `/v1/rerank` is Jina's, vLLM's and Voyage's as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.cohere import protocol
from hilbert.api.cohere.errors import CohereDialect
from hilbert.api.exchange import embedded, model_for, ordered, parsed, written
from hilbert.api.rerank import RerankBody, RerankOrder, RerankRoute
from hilbert.api.routing import ByField, Claim, Route
from hilbert.api.settings import ApiSettings
from hilbert.api.voyage.protocol import rerank_json as voyage_rerank_json
from hilbert.core import RerankResult, Task
from hilbert.errors import InputTooLong, InvalidInput
from hilbert.models import Registry
from hilbert.models.offload import offload
from hilbert.processors import called, spelled
from hilbert.processors.text import MAX_TEXT_CHARS, check_chars


class EmbedRoute:
    """Handles `POST /v1/embed` and `POST /v2/embed`."""

    def __init__(self, models: Registry, settings: ApiSettings, version: protocol.Version) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._version = version

    async def __call__(self, call: Call) -> Reply:
        """Embed texts or images, in all types that are asked for."""
        order = await ordered(call, self._models, self._max_body_bytes, self._parse)
        task = Task.IMAGE_EMBED if order.has_media else Task.EMBED
        with called(order.field), spelled("output_dimension", of="dimensions"):
            _, result = await embedded(call, self._models, order.model, order.request, task)
        size = result.num_numbers * max(1, len(order.types))
        return Reply(await written(size, protocol.to_json, order, self._version, result))

    def _parse(self, raw: bytes) -> protocol.EmbedOrder:
        return protocol.to_order(protocol.embed_decoder.decode(raw), self._version, self._max_inputs)


class TokenizeRoutes:
    """Handles `POST /v1/tokenize` and `POST /v1/detokenize`: the model's own tokenizer."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_body_bytes = settings.max_body_bytes

    async def tokenize(self, call: Call) -> Reply:
        """The tokens of a text, without special ones."""
        body = await parsed(call, self._max_body_bytes, protocol.tokenize_decoder.decode)
        model = await model_for(call, self._models, body.model, Task.EMBED)
        with called("text", is_list=False):
            check_chars((body.text,))
            ids, _ = await offload(model.processor.spans, body.text)
        strings = [model.processor.tokenizer.id_to_token(i) for i in ids.tolist()]
        found = {"tokens": ids.tolist(), "token_strings": strings, "meta": protocol.meta("1")}
        return Reply(orjson.dumps(found))

    async def detokenize(self, call: Call) -> Reply:
        """The text of tokens, special ones included."""
        body = await parsed(call, self._max_body_bytes, protocol.detokenize_decoder.decode)
        model = await model_for(call, self._models, body.model, Task.EMBED)
        if len(body.tokens) > MAX_TEXT_CHARS:
            raise InputTooLong(
                f"tokens has {len(body.tokens):,}; at most {MAX_TEXT_CHARS:,} are taken.", param="tokens"
            )
        bad = next((i for i in body.tokens if not 0 <= i < model.processor.vocab_size), None)
        if bad is not None:
            raise InvalidInput(
                f"tokens holds {bad}, which the model does not have; ids go from 0 to "
                f"{model.processor.vocab_size - 1}.",
                param="tokens",
            )
        text = await offload(
            partial(model.processor.tokenizer.decode, skip_special_tokens=False), body.tokens
        )
        return Reply(orjson.dumps({"text": text, "meta": protocol.meta("1")}))


def rerank_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """The answer of `/v1/rerank`, in the form of whoever asks."""
    write = voyage_rerank_json if order.is_voyage else protocol.rerank_json
    return write(order, result, model)


def cohere_routes(
    models: Registry, settings: ApiSettings, base: str, claims: Sequence[Claim] = ()
) -> Iterator[Route]:
    """The routes of version 1, under ``/v1``.

    Args:
        models: what is served.
        settings: limits of requests.
        base: where.
        claims: bodies at `/rerank` that are other dialects'.
    """
    dialect = CohereDialect()
    yield Route(
        "POST",
        f"{base}/rerank",
        ByField(RerankRoute(models, settings, rerank_json), settings.max_body_bytes, *claims),
        dialect,
        summary="Order documents by relevance (Cohere, Jina, vLLM; Voyage's answer where `top_k` is there)",
        request=RerankBody,
        response=protocol.Ranking,
    )
    yield _embed(models, settings, base, "1")
    tokens = TokenizeRoutes(models, settings)
    yield Route(
        "POST",
        f"{base}/tokenize",
        tokens.tokenize,
        dialect,
        summary="The tokens of a text (Cohere's answer)",
        request=protocol.TokenizeBody,
        response=protocol.Tokens,
    )
    yield Route(
        "POST",
        f"{base}/detokenize",
        tokens.detokenize,
        dialect,
        summary="The text of tokens (Cohere's answer)",
        request=protocol.DetokenizeBody,
        response=protocol.Detokenized,
    )

    async def check_key(call: Call) -> Reply:
        return Reply(orjson.dumps({"valid": True}))  # the gate has refused every other key

    yield Route(
        "POST",
        f"{base}/check-api-key",
        check_key,
        dialect,
        summary="Whether the key is accepted (Cohere's answer)",
        response=protocol.ValidKey,
    )


def cohere_v2_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes of version 2 under one base: ``/v2``."""
    yield Route(
        "POST",
        f"{base}/rerank",
        RerankRoute(models, settings, protocol.rerank_v2_json),
        CohereDialect(),
        summary="Order documents by relevance (Cohere's answer, version 2)",
        request=RerankBody,
        response=protocol.Ranking,
    )
    yield _embed(models, settings, base, "2")


def _embed(models: Registry, settings: ApiSettings, base: str, version: protocol.Version) -> Route:
    return Route(
        "POST",
        f"{base}/embed",
        EmbedRoute(models, settings, version),
        CohereDialect(),
        summary=f"Embed texts or images (Cohere's answer, version {version})",
        request=protocol.CohereEmbedBody,
        response=protocol.CohereEmbedded,
    )
