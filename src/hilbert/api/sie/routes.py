"""SIE's route for vectors of every kind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from hilbert.api.call import Call, Reply
from hilbert.api.exchange import model_for, parsed, written
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.sie import protocol
from hilbert.api.sie.errors import SieDialect
from hilbert.core import OutputType, Task
from hilbert.errors import InvalidInput
from hilbert.models import Registry, ServedModel
from hilbert.processors import called

_USUAL = {Task.SPARSE_EMBED: OutputType.SPARSE, Task.MULTI_EMBED: OutputType.MULTIVECTOR}


class EncodeRoute:
    """Handles `POST /v1/encode/{model}`; the model's name may have slashes."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_items = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, call: Call) -> Reply:
        """Encode items, all outputs in one pass."""
        if b"msgpack" in call.headers.get(b"content-type", b""):
            raise InvalidInput("msgpack bodies are not read here; send JSON.")
        order = await parsed(call, self._max_body_bytes, self._parse)
        model = await model_for(call, self._models, call.tail, Task.EMBED)
        request = order.request
        if not request.outputs:
            request = replace(request, outputs=frozenset({_usual_output(model)}))
        with called("items"):
            result = await call.unless_gone(model.encode(request))
        seconds = time.perf_counter() - call.started
        dtype = order.dtype or model.embedding_dtype
        body = await written(
            result.num_numbers,
            protocol.to_json,
            order,
            result,
            dtype,
            model.spec.vocab_size,
            model.name,
            seconds,
        )
        return Reply(body, headers=_timing_headers(protocol.timing_of(result, seconds)))

    def _parse(self, raw: bytes) -> protocol.Order:
        return protocol.to_order(protocol.decode(raw), self._max_items)


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
    yield Route(
        "POST",
        f"{base}/v1/encode/*",
        EncodeRoute(models, settings),
        SieDialect(),
        summary="Dense, sparse and token vectors from one pass (SIE's answer)",
        request=protocol.EncodeBody,
        response=protocol.Encoded,
    )
