"""SIE's routes: vectors of every kind, scores and classes, in JSON or in msgpack.

A body is what its `Content-Type` says; the answer is JSON unless `Accept` names msgpack, as at SIE's
gateway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from hilbert.api.call import JSON, Call, Reply
from hilbert.api.exchange import known_name, model_for, parsed, written
from hilbert.api.rerank import warning_headers
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.sie import protocol
from hilbert.api.sie.errors import SieDialect
from hilbert.core import OutputType, Task
from hilbert.models import Registry, ServedModel
from hilbert.processors import called

_TASKS = {
    frozenset({OutputType.SPARSE}): Task.SPARSE_EMBED,
    frozenset({OutputType.MULTIVECTOR}): Task.MULTI_EMBED,
}
_USUAL = {Task.SPARSE_EMBED: OutputType.SPARSE, Task.MULTI_EMBED: OutputType.MULTIVECTOR}


class EncodeRoute:
    """Handles `POST /v1/encode/{model}`; the model's name may have slashes."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_items = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, call: Call) -> Reply:
        """Encode items, all outputs in one pass."""
        order = await parsed(call, self._max_body_bytes, partial(self._parse, _has_msgpack(call)))
        request = order.request
        task = _TASKS.get(request.outputs, Task.EMBED)
        model = await model_for(call, self._models, known_name(self._models, call.tail or order.model), task)
        if not request.outputs:
            request = replace(request, outputs=frozenset({_usual_output(model)}))
        with called("items"):
            result = await call.unless_gone(model.encode(request))
        seconds = time.perf_counter() - call.started
        is_msgpack = _wants_msgpack(call)
        dtype = order.dtype or model.embedding_dtype
        body = await written(
            result.num_numbers,
            protocol.to_answer,
            order,
            result,
            dtype,
            model.spec.sparse_dimensions,
            model.name,
            seconds,
            is_msgpack,
        )
        return Reply(body, 200, _media_type(is_msgpack), _timing_headers(protocol.timing_of(result, seconds)))

    def _parse(self, is_msgpack: bool, raw: bytes) -> protocol.Order:
        decoder = protocol.encode_decoder
        body = decoder.decode_msgpack(raw) if is_msgpack else decoder.decode(raw)
        return protocol.to_order(body, self._max_items)


class ScoreRoute:
    """Handles `POST /v1/score/{model}`."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_items = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, call: Call) -> Reply:
        """Order items by their relevance to a query."""
        order = await parsed(call, self._max_body_bytes, partial(self._parse, _has_msgpack(call)))
        model = await model_for(call, self._models, known_name(self._models, call.tail), Task.RERANK)
        with called("items", of="documents"):
            result = await call.unless_gone(model.rerank(order.request))
        is_msgpack = _wants_msgpack(call)
        write = protocol.to_score_answer
        body = await written(8 * len(result.scores), write, order, result, model.name, is_msgpack)
        return Reply(body, 200, _media_type(is_msgpack), warning_headers(result))

    def _parse(self, is_msgpack: bool, raw: bytes) -> protocol.ScoreOrder:
        decoder = protocol.score_decoder
        body = decoder.decode_msgpack(raw) if is_msgpack else decoder.decode(raw)
        return protocol.to_score_order(body, self._max_items)


class ExtractRoute:
    """Handles `POST /v1/extract/{model}`, for models that classify."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_items = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, call: Call) -> Reply:
        """Put items into classes."""
        order = await parsed(call, self._max_body_bytes, partial(self._parse, _has_msgpack(call)))
        model = await model_for(call, self._models, known_name(self._models, call.tail), Task.CLASSIFY)
        with called("items"):
            result = await call.unless_gone(model.classify(order.request))
        is_msgpack = _wants_msgpack(call)
        write = protocol.to_extract_answer
        body = await written(8 * result.scores.size, write, order, result, model.name, is_msgpack)
        return Reply(body, 200, _media_type(is_msgpack))

    def _parse(self, is_msgpack: bool, raw: bytes) -> protocol.ExtractOrder:
        decoder = protocol.extract_decoder
        body = decoder.decode_msgpack(raw) if is_msgpack else decoder.decode(raw)
        return protocol.to_extract_order(body, self._max_items)


def _has_msgpack(call: Call) -> bool:
    return b"msgpack" in call.headers.get(b"content-type", b"")


def _wants_msgpack(call: Call) -> bool:
    return b"msgpack" in call.headers.get(b"accept", b"")


def _media_type(is_msgpack: bool) -> bytes:
    return b"application/msgpack" if is_msgpack else JSON


def _usual_output(model: ServedModel) -> OutputType:
    return _USUAL.get(model.task, OutputType.DENSE)


def _timing_headers(timing: dict[str, float]) -> tuple[tuple[bytes, bytes], ...]:
    names = {
        "total_ms": b"x-total-time",
        "queue_ms": b"x-queue-time",
        "tokenization_ms": b"x-tokenization-time",
        "inference_ms": b"x-inference-time",
    }
    return tuple((name, b"%.2f" % timing[key]) for key, name in names.items())


def sie_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix."""
    encode = EncodeRoute(models, settings)
    for path in ("/v1/encode/*", "/v1/encode"):
        yield Route(
            "POST",
            base + path,
            encode,
            SieDialect(),
            summary="Dense, sparse and token vectors from one pass (SIE's answer)",
            request=protocol.EncodeBody,
            response=protocol.Encoded,
        )
    yield Route(
        "POST",
        f"{base}/v1/score/*",
        ScoreRoute(models, settings),
        SieDialect(),
        summary="Order texts by relevance (SIE's answer)",
        request=protocol.ScoreBody,
        response=protocol.Scored,
    )
    yield Route(
        "POST",
        f"{base}/v1/extract/*",
        ExtractRoute(models, settings),
        SieDialect(),
        summary="Classes of texts (SIE's answer)",
        request=protocol.ExtractBody,
        response=protocol.Extracted,
    )
