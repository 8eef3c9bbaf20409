"""Voyage's bodies and answers, and their translation to and from `core`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, about, check_number
from hilbert.api.inputs import Contents, to_content_inputs
from hilbert.api.openai.protocol import Embedding, to_dtype, to_encoding
from hilbert.api.purposes import to_purpose
from hilbert.api.rerank import RerankOrder, scored, text_of
from hilbert.api.vectors import Encoding, dense_items, numbers
from hilbert.core import EmbedRequest, EncodeResult, MediaRef, ModelSpec, OutputDtype, RerankResult
from hilbert.processors import called

_CHUNKS = "a list of documents, each a list of its chunks"


class MultimodalBody(msgspec.Struct, kw_only=True):
    """Texts and images to embed. Every field may be null; unknown fields are ignored."""

    inputs: Annotated[
        list[Contents] | None,
        about("Each has a `content` of one piece: `text`, `image_url` or `image_base64`."),
    ] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    input_type: Annotated[str | None, about("`query` or `document`.")] = None
    truncation: Annotated[
        bool | None, about("Cut texts to the model's length (default); false refuses longer ones.")
    ] = None
    output_dimension: Annotated[int | None, about("Keep the first so many numbers of each vector.")] = None
    output_dtype: Annotated[str | None, about("Type of the numbers, as of `/v1/embeddings`.")] = None
    output_encoding: Annotated[str | None, about("`base64`, or null for numbers.")] = None
    encoding_format: Annotated[str | None, about("Another name for `output_encoding`.")] = None


class ContextualizedBody(msgspec.Struct, kw_only=True):
    """Documents in chunks to embed. Every field may be null; unknown fields are ignored."""

    inputs: Annotated[list[list[str]] | None, about(f"Send {_CHUNKS}; a query is a list of one.")] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    input_type: Annotated[str | None, about("`query` or `document`.")] = None
    output_dimension: Annotated[int | None, about("Keep the first so many numbers of each vector.")] = None
    output_dtype: Annotated[str | None, about("Type of the numbers, as of `/v1/embeddings`.")] = None
    encoding_format: Annotated[str | None, about("`base64`, or null for numbers.")] = None


class MultimodalUsage(msgspec.Struct):
    """Tokens of the texts and of everything; pixels are not counted here."""

    text_tokens: int
    image_pixels: int
    video_pixels: int
    total_tokens: int


class MultimodalList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
    model: str
    usage: MultimodalUsage


class TotalUsage(msgspec.Struct):
    """Real tokens, special tokens included."""

    total_tokens: int


class ChunkList(msgspec.Struct):
    """The vectors of one document's chunks."""

    object: str
    data: list[Embedding]
    index: int


class ContextualizedList(msgspec.Struct):
    """The documents, in the order of the inputs."""

    object: str
    data: list[ChunkList]
    model: str
    usage: TotalUsage


class VoyageRanked(msgspec.Struct, omit_defaults=True):
    """One document and its score."""

    relevance_score: float
    index: int
    document: str | None = None


class VoyageRanking(msgspec.Struct):
    """The documents, best first."""

    object: str
    data: list[VoyageRanked]
    model: str
    usage: TotalUsage


@dataclass(frozen=True, slots=True)
class VoyageOrder:
    """A body, read."""

    model: str | None
    request: EmbedRequest
    encoding: Encoding
    dtype: OutputDtype | None

    @property
    def num_media(self) -> int:
        """Images and sounds among the inputs."""
        return sum(isinstance(given, MediaRef) for given in self.request.inputs)

    def items(self, result: EncodeResult, default: OutputDtype, first: int, end: int) -> bytes:
        """Vectors `first` to `end` as a JSON list."""
        assert result.dense is not None
        rows = numbers(result.dense[first:end], self.dtype, default, self.encoding)
        return dense_items(rows, self.encoding)


multimodal_decoder = BodyDecoder(MultimodalBody)
contextualized_decoder = BodyDecoder(ContextualizedBody, {"inputs": _CHUNKS})


def to_multimodal(body: MultimodalBody, max_inputs: int) -> VoyageOrder:
    """What a body asks for.

    Raises:
        InvalidInput: it has no inputs, an input has several pieces, or a name is unknown.
    """
    if body.inputs is None:
        check_number(None, "inputs", "at least one", max_inputs)
    with called("inputs"):
        inputs = to_content_inputs(body.inputs or (), "inputs", max_inputs)
    request = EmbedRequest(
        inputs,
        input_type=to_purpose(body.input_type, "input_type"),
        truncate=body.truncation is not False,
        dimensions=body.output_dimension,
        normalize=True,
    )
    encoding = _encoding(body.output_encoding or body.encoding_format)
    return VoyageOrder(body.model, request, encoding, to_dtype(body.output_dtype))


def to_contextualized(body: ContextualizedBody, max_inputs: int) -> VoyageOrder:
    """What a body asks for.

    Raises:
        InvalidInput: it has no inputs, a document has no chunks, or a name is unknown.
    """
    documents = body.inputs
    check_number(documents, "inputs", _CHUNKS, max_inputs)
    assert documents is not None
    empty = next((index for index, document in enumerate(documents) if not document), None)
    if empty is not None:
        raise MalformedRequest(
            f"inputs[{empty}] is an empty list; send {_CHUNKS}.", param="inputs", index=empty
        )
    chunks = tuple([chunk for document in documents for chunk in document])
    check_number(chunks, "inputs", _CHUNKS, max_inputs)
    request = EmbedRequest(
        chunks,
        input_type=to_purpose(body.input_type, "input_type"),
        dimensions=body.output_dimension,
        normalize=True,
        chunks=tuple(map(len, documents)),
    )
    return VoyageOrder(body.model, request, _encoding(body.encoding_format), to_dtype(body.output_dtype))


def _encoding(name: str | None) -> Encoding:
    encoding = to_encoding(name)
    if encoding == "bytes":
        raise MalformedRequest("encoding_format 'bytes' is unknown here; use base64 or leave it out.")
    return encoding


def multimodal_json(
    order: VoyageOrder, result: EncodeResult, default: OutputDtype, model: str, spec: ModelSpec
) -> bytes:
    """The answer of `/v1/multimodalembeddings`."""
    # Towers make a fixed number of tokens of each input, so what is left are those of the texts.
    media = [given.modality for given in order.request.inputs if isinstance(given, MediaRef)]
    costs = {tower.modality: tower.num_tokens for tower in spec.towers}
    num_text_tokens = result.num_tokens - sum(costs.get(modality, 0) for modality in media)
    return b'{"object":"list","data":%s,"model":%s,"usage":%s}' % (
        order.items(result, default, 0, len(order.request.inputs)),
        orjson.dumps(model),
        orjson.dumps(
            {
                "text_tokens": num_text_tokens,
                "image_pixels": 0,
                "video_pixels": 0,
                "total_tokens": result.num_tokens,
            }
        ),
    )


def contextualized_json(order: VoyageOrder, result: EncodeResult, default: OutputDtype, model: str) -> bytes:
    """The answer of `/v1/contextualizedembeddings`: a list for each document."""
    data = b",".join(
        b'{"object":"list","data":%s,"index":%d}' % (order.items(result, default, first, end), index)
        for index, (first, end) in enumerate(_borders(order.request.chunks))
    )
    return b'{"object":"list","data":[%s],"model":%s,"usage":{"total_tokens":%d}}' % (
        data,
        orjson.dumps(model),
        result.num_tokens,
    )


def chunk_named(index: int, chunks: tuple[int, ...]) -> tuple[int, str]:
    """The document of chunk `index` of all, and what the caller calls it: ``inputs[document][chunk]``."""
    for document, (first, end) in enumerate(_borders(chunks)):
        if index < end:
            return document, f"inputs[{document}][{index - first}]"
    raise AssertionError(f"there is no chunk {index}")


def _borders(chunks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    first = 0
    for count in chunks:
        yield first, first + count
        first += count


def rerank_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """Voyage's answer of `/v1/rerank`."""
    data = []
    for index, score in scored(result):
        item: dict[str, Any] = {"relevance_score": score, "index": index}
        if order.returns_documents:
            item["document"] = text_of(order.documents[index])
        data.append(item)
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": {"total_tokens": result.num_tokens}}
    )
