"""SIE's routes: vectors of every kind, scores, classes and entities, in JSON or in msgpack.

A body is what its `Content-Type` says; the answer is JSON unless `Accept` names msgpack, as at SIE's
gateway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

import msgspec

from hilbert.api.body import BodyDecoder
from hilbert.api.call import JSON, Call, Reply
from hilbert.api.exchange import known_name, model_for, ordered, written
from hilbert.api.rerank import warning_headers
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.sie import protocol
from hilbert.api.sie.errors import SieDialect
from hilbert.core import OutputType, Task
from hilbert.models import Registry, ServedModel
from hilbert.processors import called

Body = TypeVar("Body")
Order = TypeVar("Order")

_TASKS = {
    frozenset({OutputType.SPARSE}): Task.SPARSE_EMBED,
    frozenset({OutputType.MULTIVECTOR}): Task.MULTI_EMBED,
}
_USUAL = {Task.SPARSE_EMBED: OutputType.SPARSE, Task.MULTI_EMBED: OutputType.MULTIVECTOR}


class _ItemsRoute(Generic[Body, Order]):
    """What all three have in common: items in JSON or msgpack, for a model whose name ends the path.

    Args:
        decoder: reads the body.
        to_order: makes an order of it, given how many items it may have.
    """

    def __init__(
        self,
        models: Registry,
        settings: ApiSettings,
        decoder: BodyDecoder[Body],
        to_order: Callable[[Body, int], Order],
    ) -> None:
        self._models = models
        self._max_items = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._decoder = decoder
        self._to_order = to_order

    async def _read(self, call: Call) -> Order:
        has_msgpack = b"msgpack" in call.headers.get(b"content-type", b"")
        return await ordered(call, self._models, self._max_body_bytes, partial(self._parse, has_msgpack))

    def _parse(self, is_msgpack: bool, raw: bytes) -> Order:
        body = self._decoder.decode_msgpack(raw) if is_msgpack else self._decoder.decode(raw)
        return self._to_order(body, self._max_items)

    async def _model(self, call: Call, task: Task, name: str | None = None) -> ServedModel:
        name = call.tail or name
        if name is not None and self._models.find(name) is None:
            name = name.rpartition(":/")[2]  # SIE's gateway takes the bundle that is to serve it, too
        return await model_for(call, self._models, known_name(self._models, name), task)


class EncodeRoute(_ItemsRoute[protocol.EncodeBody, protocol.Order]):
    """Handles `POST /v1/encode/{model}`; the model's name may have slashes."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        super().__init__(models, settings, protocol.encode_decoder, protocol.to_order)

    async def __call__(self, call: Call) -> Reply:
        """Encode items, all outputs in one pass."""
        order = await self._read(call)
        request = order.request
        model = await self._model(call, _TASKS.get(request.outputs, Task.EMBED), order.model)
        if not request.outputs:
            request = msgspec.structs.replace(request, outputs=frozenset({_usual_output(model)}))
        if request.outputs == {OutputType.SPARSE}:
            # As SIE, which scales the other kinds only.
            request = msgspec.structs.replace(request, normalize=None)
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


class ScoreRoute(_ItemsRoute[protocol.ScoreBody, protocol.ScoreOrder]):
    """Handles `POST /v1/score/{model}`."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        super().__init__(models, settings, protocol.score_decoder, protocol.to_score_order)

    async def __call__(self, call: Call) -> Reply:
        """Order items by their relevance to a query."""
        order = await self._read(call)
        model = await self._model(call, Task.RERANK)
        with called("items", of="documents"):
            result = await call.unless_gone(model.rerank(order.request))
        is_msgpack = _wants_msgpack(call)
        write = protocol.to_score_answer
        body = await written(8 * len(result.scores), write, order, result, model.name, is_msgpack)
        return Reply(body, 200, _media_type(is_msgpack), warning_headers(result))


class ExtractRoute(_ItemsRoute[protocol.ExtractBody, protocol.ExtractOrder]):
    """Handles `POST /v1/extract/{model}`, for models that classify and models that find spans."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        super().__init__(models, settings, protocol.extract_decoder, protocol.to_extract_order)

    async def __call__(self, call: Call) -> Reply:
        """Put items into classes, or find spans in them."""
        order = await self._read(call)
        model = await self._model(call, Task.CLASSIFY)
        is_msgpack = _wants_msgpack(call)
        with called("items"):
            if OutputType.LOGITS in model.facts.outputs:
                classes = await call.unless_gone(model.classify(order.classes))
                write_classes = protocol.to_classes_answer
                size = 8 * classes.scores.size
                body = await written(size, write_classes, order, classes, model.name, is_msgpack)
            else:
                if call.asked is not None:
                    call.asked.task = Task.EXTRACT
                spans = await call.unless_gone(model.extract(order.spans))
                write_spans = protocol.to_spans_answer
                body = await written(8 * spans.num_numbers, write_spans, order, spans, model.name, is_msgpack)
        return Reply(body, 200, _media_type(is_msgpack))


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
        summary="Classes of texts, or entities in them (SIE's answer)",
        request=protocol.ExtractBody,
        response=protocol.Extracted,
    )
