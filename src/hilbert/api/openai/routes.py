"""OpenAI's routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.cards import Model, ModelList, card, cards
from hilbert.api.classify import Classification, ClassifyBody, ClassifyRoute
from hilbert.api.exchange import model_for, ordered, written
from hilbert.api.inputs import for_model, named_places, to_modality
from hilbert.api.openai import protocol
from hilbert.api.openai.errors import OpenAIDialect, SharedDialect
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.vectors import Encoding, dense_items, numbers, sparse_items, token_items, vector_lists
from hilbert.core import EmbedRequest, EncodeResult, Modality, OutputDtype, OutputType, Task
from hilbert.core.quantize import NumberArray
from hilbert.errors import InvalidInput, ModelNotFound
from hilbert.models import Registry, ServedModel

_MEDIA_TASKS = {Modality.IMAGE: Task.IMAGE_EMBED, Modality.AUDIO: Task.AUDIO_EMBED}
_TASKS = {OutputType.SPARSE: Task.SPARSE_EMBED, OutputType.MULTIVECTOR: Task.MULTI_EMBED}


@dataclass(frozen=True, slots=True)
class _Order:
    """A body, read.

    Attributes:
        is_multivector: it wants token vectors, as Jina writes them.
        modality: what it says of all inputs.
        named: places of the inputs that say it themselves.
        is_normalized: it asks for vectors of length 1 in so many words.
    """

    model: str | None
    encoding: Encoding
    dtype: OutputDtype | None
    request: EmbedRequest
    is_multivector: bool
    modality: Modality | None
    named: frozenset[int]
    is_normalized: bool


class EmbeddingsRoute:
    """Handles the routes that return vectors, in OpenAI's dialect and those that differ in a word or two.

    Args:
        to_json: writes the answer's body, given its items as JSON, the tokens and the model's name as JSON.
        write_tokens: writes the items of token vectors.
        decode: reads a body.
        output: the kind of vector; by default what the model is served for, dense or token vectors.
        modality: what inputs are where the body does not say; by default what they look like.
    """

    def __init__(
        self,
        models: Registry,
        settings: ApiSettings,
        to_json: Callable[[bytes, int, bytes], bytes],
        decode: Callable[[bytes], protocol.EmbeddingsBody] = protocol.decode,
        output: OutputType | None = None,
        modality: Modality | None = None,
        write_tokens: Callable[[Sequence[NumberArray], Encoding], bytes] = token_items,
    ) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._to_json = to_json
        self._decode = decode
        self._output = output
        self._modality = modality
        self._write_tokens = write_tokens
        self._task = Task.EMBED if output is None else _TASKS[output]

    async def __call__(self, call: Call) -> Reply:
        """Embed inputs."""
        order = await ordered(call, self._models, self._max_body_bytes, self._parse)
        task = self._task if order.modality is None else _MEDIA_TASKS.get(order.modality, self._task)
        model = await model_for(call, self._models, order.model, task)
        if call.asked is not None:
            call.asked.encoding = order.encoding
        output = self._output or _output_of(order, model)
        request = order.request
        inputs = for_model(request.inputs, order.named, order.modality, model.name, model.spec.modalities)
        if inputs is not request.inputs:
            request = msgspec.structs.replace(request, inputs=inputs)
        if output is not OutputType.DENSE:
            _check_form(order, output)
            request = msgspec.structs.replace(request, outputs=frozenset({output}))
        if output is OutputType.SPARSE and not order.is_normalized:
            # The default is for vectors of a length.
            request = msgspec.structs.replace(request, normalize=None)
        result = await call.unless_gone(model.encode(request))
        if result.dense is not None and order.encoding == "bytes":
            rows = numbers(result.dense, order.dtype, model.embedding_dtype, order.encoding)
            content, metadata = protocol.to_raw(rows, result.num_tokens, model.name)
            return Reply(content, 200, b"application/octet-stream", ((b"metadata", metadata),))
        return Reply(await written(result.num_numbers, self._write, order, model, result))

    def _parse(self, raw: bytes) -> _Order:
        body = self._decode(raw)
        encoding, dtype = protocol.to_form(body)
        modality = to_modality(body.modality) or self._modality
        request = protocol.to_request(body, self._max_inputs, modality)
        return _Order(
            body.model,
            encoding,
            dtype,
            request,
            body.return_multivector is True,
            modality,
            named_places(body.input),
            body.normalize is True or body.normalized is True,
        )

    def _write(self, order: _Order, model: ServedModel, result: EncodeResult) -> bytes:
        encoding, dtypes = order.encoding, (order.dtype, model.embedding_dtype)
        if result.dense is not None:
            data = dense_items(numbers(result.dense, *dtypes, encoding), encoding)
        elif result.multivector is not None:
            write = vector_lists if order.is_multivector else self._write_tokens
            data = write([numbers(rows, *dtypes, encoding) for rows in result.multivector], encoding)
        else:
            data = sparse_items(result.sparse or ())
        return self._to_json(data, result.num_tokens, orjson.dumps(model.name))


def _output_of(order: _Order, model: ServedModel) -> OutputType:
    """Late-interaction models answer with their token vectors, as Infinity does."""
    is_multivector = order.is_multivector or model.task is Task.MULTI_EMBED
    return OutputType.MULTIVECTOR if is_multivector else OutputType.DENSE


def _check_form(order: _Order, output: OutputType) -> None:
    """Refuse encodings that cannot carry this kind of vector."""
    if order.encoding == "bytes":
        raise InvalidInput(
            "encoding_format 'bytes' is for dense vectors; use 'float' or, for token vectors, 'base64'.",
            param="encoding_format",
        )
    if output is OutputType.SPARSE:
        for name, has in (
            ("encoding_format", order.encoding != "float"),
            ("output_dtype", order.dtype not in (None, OutputDtype.FLOAT32)),
        ):
            if has:
                raise InvalidInput(f"{name} has no meaning for sparse vectors; leave it out.", param=name)


def openai_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base, such as ``/v1``."""
    dialect = OpenAIDialect()

    async def list_models(call: Call) -> Reply:
        return Reply(msgspec.json.encode(cards(models.list(call.prefix))))

    async def one_model(call: Call) -> Reply:
        model = models.find(call.tail)
        if model is not None:
            return Reply(msgspec.json.encode(card(model)))
        known = ", ".join(m.name for m in models.list())
        raise ModelNotFound(f"The model {call.tail!r} is not served here. Available: {known}.", param="model")

    yield Route(
        "POST",
        f"{base}/embeddings",
        EmbeddingsRoute(models, settings, protocol.to_json),
        SharedDialect(),
        summary="Embed texts, token ids, images or sounds (OpenAI, Jina, Voyage)",
        request=protocol.EmbeddingsBody,
        response=protocol.EmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/embeddings_sparse",
        EmbeddingsRoute(models, settings, protocol.to_json, output=OutputType.SPARSE),
        dialect,
        summary="Weights of texts over the vocabulary",
        request=protocol.EmbeddingsBody,
        response=protocol.SparseEmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/embeddings/colbert",
        EmbeddingsRoute(models, settings, protocol.to_json, output=OutputType.MULTIVECTOR),
        dialect,
        summary="A vector for each token",
        request=protocol.EmbeddingsBody,
        response=protocol.EmbeddingList,
    )
    yield Route(
        "POST",
        f"{base}/classify",
        ClassifyRoute(models, settings),
        dialect,
        summary="Scores of all classes",
        request=ClassifyBody,
        response=Classification,
    )
    for modality in (Modality.IMAGE, Modality.AUDIO):
        yield Route(
            "POST",
            f"{base}/embeddings_{modality}",
            EmbeddingsRoute(models, settings, protocol.to_json, modality=modality),
            dialect,
            summary=f"As embeddings with modality {modality}",
            request=protocol.EmbeddingsBody,
            response=protocol.EmbeddingList,
            is_deprecated=True,
        )
    yield Route(
        "GET",
        f"{base}/models",
        list_models,
        dialect,
        summary="List the served models",
        response=ModelList,
    )
    yield Route(
        "GET",
        f"{base}/models/*",
        one_model,
        dialect,
        summary="Describe one served model",
        response=Model,
    )
