"""TEI's routes: each an operation from a body to an answer, so that other routes can pass bodies on.

`POST /` and `/vertex` read as much of a body as tells which operation it is for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import msgspec
import orjson

from hilbert import __version__
from hilbert.api.body import MalformedRequest
from hilbert.api.call import Call, Reply
from hilbert.api.exchange import check_room, model_for, read, written
from hilbert.api.rerank import warning_headers
from hilbert.api.routing import Claim, Handler, Route
from hilbert.api.settings import ApiSettings
from hilbert.api.tei import protocol
from hilbert.api.tei.errors import EnvelopeDialect, TeiDialect
from hilbert.core import EncodeResult, OutputType, PoolingMode, Task, Timing
from hilbert.errors import InvalidInput
from hilbert.models import Entry, Registry
from hilbert.models.offload import NUM_THREADS
from hilbert.processors import called


@dataclass(frozen=True, slots=True)
class Answer:
    """A body, and what the headers say of how it came about; without `timing` they say nothing."""

    body: bytes
    timing: Timing | None = None
    num_characters: int = 0
    num_tokens: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()


# TEI's names, where they are not ours.
_POOLING = {PoolingMode.LAST: "last_token"}

Order = TypeVar("Order")
Operation = Callable[[Call, bytes, str | None], Awaitable[Answer]]


class Operations:
    """What TEI can be asked for. Each takes a call, a body, and a name that wins over the body's `model`."""

    def __init__(self, models: Registry, settings: ApiSettings) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size

    async def _order(self, call: Call, raw: bytes, parse: Callable[[bytes], Order]) -> Order:
        check_room(call, self._models)
        return await read(raw, parse)

    async def embed(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """A vector for each input."""
        order = await self._order(call, raw, partial(protocol.embed_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or order.model, Task.EMBED)
        with called("inputs"):
            result = await call.unless_gone(model.encode(order.asked))
        write = partial(protocol.vectors_json, result, model.embedding_dtype)
        return await self._encoded(result, write, order.num_characters)

    async def embed_all(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """A vector for each token."""
        return await self._vectors(call, raw, name, OutputType.MULTIVECTOR)

    async def embed_sparse(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """Weights over the vocabulary."""
        return await self._vectors(call, raw, name, OutputType.SPARSE)

    async def similarity(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """The cosine of sentences with another."""
        order = await self._order(call, raw, partial(protocol.similarity_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or order.model, Task.EMBED)
        with called("inputs"):
            result = await call.unless_gone(model.encode(order.asked))
        return await self._encoded(result, partial(protocol.similarity_json, result), order.num_characters)

    async def predict(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """Scores of classes."""
        order = await self._order(call, raw, partial(protocol.predict_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or order.model, Task.CLASSIFY)
        with called("inputs"):
            result = await call.unless_gone(model.classify(order.asked))
        body = await written(8 * result.scores.size, protocol.predictions_json, order, result)
        return Answer(body, result.timing, order.num_characters, result.num_tokens)

    async def rerank(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """Texts, best first."""
        order = await self._order(call, raw, partial(protocol.rerank_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or order.model, Task.RERANK)
        with called("texts", of="documents"):
            result = await call.unless_gone(model.rerank(order.asked))
        body = await written(8 * len(result.scores), protocol.ranks_json, order, result)
        headers = warning_headers(result)
        return Answer(body, result.timing, order.num_characters, result.num_tokens, headers)

    async def tokenize(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """The tokens of texts."""
        body, texts = await read(raw, partial(protocol.tokenize_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or body.model, Task.EMBED)
        with called("inputs"):
            tokens = await model.spell(
                texts, body.prompt_name, is_framed=body.add_special_tokens is not False
            )
        num_tokens = sum(map(len, tokens))
        call.num_tokens += num_tokens  # no model has seen them, and yet they are work
        return Answer(await written(10 * num_tokens, protocol.tokens_json, tokens))

    async def decode(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """The texts of token ids."""
        body, ids = await read(raw, partial(protocol.decode_order, max_inputs=self._max_inputs))
        model = await model_for(call, self._models, name or body.model, Task.EMBED)
        with called("ids"):
            texts = await model.unspell(ids, skips_special=body.skip_special_tokens is not False)
        call.num_tokens += sum(map(len, ids))
        return Answer(orjson.dumps(texts))

    async def whatever(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """What the model is there for, unless the body can only be meant for something else."""
        body = await read(raw, protocol.ANY.decode)
        if isinstance(body.inputs, dict):
            return await self.similarity(call, raw, name)
        if body.query is not None:
            return await self.rerank(call, raw, name)
        model = await model_for(call, self._models, name or body.model, Task.EMBED)
        if model.task is Task.CLASSIFY:
            return await self.predict(call, raw, model.name)
        if model.task is Task.RERANK:
            return await self.rerank(call, raw, model.name)
        if model.task is Task.SPARSE_EMBED:
            return await self.embed_sparse(call, raw, model.name)
        return await self.embed(call, raw, model.name)

    async def vertex(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """Several bodies, one after the other."""
        body = await read(raw, protocol.VERTEX.decode)
        if not body.instances:
            raise MalformedRequest(
                "`instances` is missing or empty; send a list of objects.", param="instances"
            )
        name = name or body.model
        answers = [await self.whatever(call, bytes(instance), name) for instance in body.instances]
        return Answer(b'{"predictions":[%s]}' % b",".join(answer.body for answer in answers))

    async def enveloped(self, call: Call, raw: bytes, name: str | None = None) -> Answer:
        """As `embed`, in ``{"body": …}``."""
        answer = await self.embed(call, raw, name)
        return replace(answer, body=b'{"body":%s}' % answer.body)

    async def _vectors(self, call: Call, raw: bytes, name: str | None, output: OutputType) -> Answer:
        parse = partial(protocol.vectors_order, output, max_inputs=self._max_inputs)
        order = await self._order(call, raw, parse)
        task = Task.SPARSE_EMBED if output is OutputType.SPARSE else Task.MULTI_EMBED
        model = await model_for(call, self._models, name or order.model, task)
        with called("inputs"):
            result = await call.unless_gone(model.encode(order.asked))
        write = protocol.sparse_json if output is OutputType.SPARSE else protocol.token_vectors_json
        return await self._encoded(result, partial(write, result), order.num_characters)

    async def _encoded(self, result: EncodeResult, write: Callable[[], bytes], num_characters: int) -> Answer:
        body = await written(result.num_numbers, write)
        return Answer(body, result.timing, num_characters, result.num_tokens)


def handler(operation: Operation, settings: ApiSettings) -> Handler:
    """A route's handler, which adds TEI's headers."""

    async def handle(call: Call) -> Reply:
        answer = await operation(call, await call.body(settings.max_body_bytes), None)
        return Reply(answer.body, headers=(*answer.headers, *_headers(call, answer)))

    return handle


def _headers(call: Call, answer: Answer) -> Iterator[tuple[bytes, bytes]]:
    """Milliseconds and counts, as whole numbers; the stages are those of the slowest input."""
    timing = answer.timing
    if timing is None:
        return
    total = time.perf_counter() - call.started
    # TEI says so on every device, and nobody is known to read it.
    yield b"x-compute-type", b"gpu+optimized"
    for name, seconds in (
        (b"x-compute-time", total),
        (b"x-total-time", total),
        (b"x-tokenization-time", timing.tokenize_seconds),
        (b"x-queue-time", timing.queue_seconds),
        (b"x-inference-time", timing.inference_seconds),
    ):
        yield name, b"%d" % round(1000 * seconds)
    yield b"x-compute-characters", b"%d" % answer.num_characters
    yield b"x-compute-tokens", b"%d" % answer.num_tokens


def info_of(entry: Entry, settings: ApiSettings) -> protocol.TeiInfo:
    """What `/info` says of a model that has been looked at."""
    spec, info, admission = entry.spec, entry.runtime_info, entry.admission
    assert spec is not None
    return protocol.TeiInfo(
        model_id=spec.model_id,
        model_sha=spec.commit or None,
        model_dtype="float32" if info is None else info.dtype,
        served_model_name=entry.name,
        model_type=_model_type(entry),
        max_concurrent_requests=admission.max_concurrent_requests,
        max_input_length=spec.max_model_len,
        max_batch_tokens=None if info is None else info.max_batch_tokens,
        max_batch_requests=None,
        max_client_batch_size=settings.max_client_batch_size,
        auto_truncate=True if entry.served is None else entry.served.truncates,
        tokenization_workers=NUM_THREADS,
        version=__version__,
        sha=None,
        docker_label=None,
    )


def _model_type(entry: Entry) -> dict[str, Any]:
    spec = entry.spec
    assert spec is not None
    if spec.task in (Task.CLASSIFY, Task.RERANK):
        by_id = {str(i): label for i, label in enumerate(spec.labels)}
        ids = {label: i for i, label in enumerate(spec.labels)}
        kind = "classifier" if spec.task is Task.CLASSIFY else "reranker"
        return {kind: {"id2label": by_id, "label2id": ids}}
    pooling = "splade" if spec.task is Task.SPARSE_EMBED else None
    if pooling is None:
        modes = () if spec.pooling is None else spec.pooling.modes
        pooling = "+".join(_POOLING.get(mode, mode.value) for mode in modes) or "mean"
    return {"embedding": {"pooling": pooling}}


def tei_rerank(models: Registry, settings: ApiSettings) -> Claim:
    """TEI's claim on `/rerank`, which Infinity has, too."""
    return Claim("texts", handler(Operations(models, settings).rerank, settings), TeiDialect())


def tei_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base: ``""``, or the URL prefix."""
    dialect, do = TeiDialect(), Operations(models, settings)

    async def info(call: Call) -> Reply:
        try:
            entry = models.choose(None, Task.EMBED, call.prefix)
        except InvalidInput:  # none embeds
            entry = models.list(call.prefix)[0]
        if entry.spec is None or entry.runtime_info is None:
            await model_for(call, models, entry.name, Task.EMBED)
        return Reply(msgspec.json.encode(info_of(entry, settings)))

    async def health(call: Call) -> Reply:
        if models.readiness_of(call.prefix).is_ready:
            return Reply(b"", 200, b"text/plain")
        return dialect.reply(503, "unhealthy", "Unhealthy", ((b"retry-after", b"1"),))

    def post(path: str, operation: Operation, summary: str, request: Any, response: Any) -> Route:
        return Route(
            "POST",
            (base + path).rstrip("/") or "/",
            handler(operation, settings),
            EnvelopeDialect() if path == "/api/v1/embed" else dialect,
            summary=f"{summary} (TEI's answer)",
            request=request,
            response=response,
        )

    rows = list[list[float]]
    predictions = list[protocol.TeiPrediction | list[protocol.TeiPrediction]]
    yield post("/embed", do.embed, "Embed texts or token ids", protocol.TeiEmbedBody, rows)
    yield post(
        "/embed_all", do.embed_all, "A vector for each token", protocol.TeiTokenVectorsBody, list[rows]
    )
    yield post(
        "/embed_sparse",
        do.embed_sparse,
        "Weights of texts over the vocabulary",
        protocol.TeiTokenVectorsBody,
        list[list[protocol.TeiSparseValue]],
    )
    yield post("/predict", do.predict, "Classify texts or pairs", protocol.TeiPredictBody, predictions)
    yield post("/similarity", do.similarity, "Cosines of sentences", protocol.TeiSimilarityBody, list[float])
    yield post(
        "/tokenize", do.tokenize, "Tokens of texts", protocol.TeiTokenizeBody, list[list[protocol.TeiToken]]
    )
    yield post("/decode", do.decode, "Texts of token ids", protocol.TeiDecodeBody, list[str])
    yield post("/vertex", do.vertex, "Several bodies", protocol.TeiVertexBody, protocol.TeiPredictions)
    yield post(
        "/api/v1/embed", do.enveloped, "Embed, in an envelope", protocol.TeiEmbedBody, protocol.TeiEnvelope
    )
    for path in ("/", "/invocations"):
        yield post(path, do.whatever, "What the model is for", protocol.TeiAnyBody, None)
    yield Route(
        "GET", f"{base}/info", info, dialect, summary="The model and the limits", response=protocol.TeiInfo
    )
    yield Route("GET", f"{base}/ping", health, dialect, True)
    if not settings.redirect_slash:
        yield Route("GET", base or "/", health, dialect, True)
