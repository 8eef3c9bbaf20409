"""Cohere's bodies, versions 1 and 2, and their translation to and from `core`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, Usage, about, check_number, usage
from hilbert.api.inputs import Contents, to_content_inputs
from hilbert.api.openai.protocol import ErrorObject
from hilbert.api.purposes import to_purpose
from hilbert.api.rerank import RerankOrder, scored
from hilbert.api.vectors import base64_rows
from hilbert.core import (
    EmbedRequest,
    EncodeResult,
    Input,
    MediaRef,
    Modality,
    OutputDtype,
    RerankResult,
    quantize,
)
from hilbert.core.request import FloatArray
from hilbert.processors import called

Version = Literal["1", "2"]

_TYPES = {
    "float": OutputDtype.FLOAT32,
    "int8": OutputDtype.INT8,
    "uint8": OutputDtype.UINT8,
    "binary": OutputDtype.BINARY,
    "ubinary": OutputDtype.UBINARY,
    "base64": OutputDtype.FLOAT32,
}
_TRUNCATIONS = ("NONE", "START", "END")


class CohereEmbedBody(msgspec.Struct, kw_only=True):
    """Texts or images to embed. Every field may be null; unknown fields are ignored."""

    texts: Annotated[list[str] | None, about("Texts to embed; instead of `images` and `inputs`.")] = None
    images: Annotated[list[str] | None, about("Images to embed: data URIs, URLs or base64.")] = None
    inputs: Annotated[
        list[Contents] | None, about("Texts and images mixed, each as a `content` of one piece.")
    ] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    input_type: Annotated[
        str | None,
        about(
            "`search_query`, `search_document`, `classification`, `clustering` or `image`: picks the model's "
            "own prompt, if it has one."
        ),
    ] = None
    embedding_types: Annotated[
        list[str] | None, about(f"Any of {', '.join(_TYPES)}; `float` by default. All come from one pass.")
    ] = None
    truncate: Annotated[
        str | None,
        about(
            "What is cut off a text that is too long: its `END` (default), its `START`, or `NONE`: refuse it."
        ),
    ] = None
    output_dimension: Annotated[
        int | None, about("Keep the first so many numbers of each vector, and normalise again.")
    ] = None
    max_tokens: Annotated[int | None, about("Cut texts to so many tokens.")] = None


class Embeddings(msgspec.Struct, rename={"floats": "float"}, omit_defaults=True):
    """The vectors in each type that was asked for."""

    floats: list[list[float]] | None = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereEmbedded(msgspec.Struct):
    """The vectors, in the order of the inputs; in version 1 without `embedding_types` a bare list."""

    response_type: str
    id: str
    embeddings: Embeddings | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]


class Ranked(msgspec.Struct, omit_defaults=True):
    """One document: its place in the request, its score, and itself where it was asked for."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class Ranking(msgspec.Struct):
    """The documents, best first."""

    id: str
    object: str
    model: str
    results: list[Ranked]
    meta: dict[str, Any]
    usage: Usage


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text to tokenize."""

    text: str
    model: str | None = None


class Tokens(msgspec.Struct):
    """The tokens of a text, special ones left out."""

    tokens: list[int]
    token_strings: list[str]
    meta: dict[str, Any]


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Tokens to turn into text."""

    tokens: list[int]
    model: str | None = None


class Detokenized(msgspec.Struct):
    """The text."""

    text: str
    meta: dict[str, Any]


class ValidKey(msgspec.Struct):
    """The key was accepted."""

    valid: bool


class CohereError(msgspec.Struct):
    """What went wrong, in the words of Cohere, of Voyage and of OpenAI."""

    message: str
    detail: str
    error: ErrorObject


@dataclass(frozen=True, slots=True)
class EmbedOrder:
    """A body, read.

    Attributes:
        field: what the inputs are called.
        types: of the numbers, in the order of the request; empty for version 1's bare list.
        texts: to be sent back.
    """

    model: str | None
    request: EmbedRequest
    field: str
    types: tuple[str, ...]
    texts: list[str]

    @property
    def has_media(self) -> bool:
        """Whether any input is an image or a sound."""
        return any(isinstance(given, MediaRef) for given in self.request.inputs)


embed_decoder = BodyDecoder(CohereEmbedBody, {"texts": "a list of strings", "images": "a list of strings"})
tokenize_decoder = BodyDecoder(TokenizeBody)
detokenize_decoder = BodyDecoder(DetokenizeBody)


def to_order(body: CohereEmbedBody, version: Version, max_inputs: int) -> EmbedOrder:
    """What a body asks for.

    Raises:
        InvalidInput: it has no inputs, or two kinds of them, or a value that Cohere does not have.
    """
    field, inputs = _inputs(body, max_inputs)
    types = tuple(dict.fromkeys(body.embedding_types or (("float",) if version == "2" else ())))
    for name in types:
        if name not in _TYPES:
            raise MalformedRequest(
                f"embedding_types has {name!r}, which is unknown; use {', '.join(_TYPES)}.",
                param="embedding_types",
            )
    truncate = (body.truncate or "END").upper()
    if truncate not in _TRUNCATIONS:
        raise MalformedRequest(
            f"truncate {body.truncate!r} is unknown; use {', '.join(_TRUNCATIONS)}.", param="truncate"
        )
    request = EmbedRequest(
        inputs,
        input_type=to_purpose(body.input_type, "input_type"),
        truncate=truncate != "NONE",
        truncation_side="left" if truncate == "START" else None,
        max_tokens=body.max_tokens,
        dimensions=body.output_dimension,
        normalize=True,
    )
    return EmbedOrder(body.model, request, field, types, body.texts or [])


def _inputs(body: CohereEmbedBody, max_inputs: int) -> tuple[str, tuple[Input, ...]]:
    given = [name for name in ("texts", "images", "inputs") if getattr(body, name) is not None]
    if len(given) != 1:
        what = (
            "None of `texts`, `images` and `inputs` is there"
            if not given
            else f"There are {' and '.join(given)}"
        )
        raise MalformedRequest(f"{what}; send one of them.", param=given[0] if given else "texts")
    (field,) = given
    if body.inputs is not None:
        with called(field):
            return field, to_content_inputs(body.inputs, field, max_inputs)
    strings = body.texts if body.texts is not None else body.images
    check_number(strings, field, "at least one", max_inputs)
    assert strings is not None
    if field == "texts":
        return field, tuple(strings)
    return field, tuple([MediaRef(Modality.IMAGE, image) for image in strings])


def to_json(order: EmbedOrder, version: Version, result: EncodeResult) -> bytes:
    """The answer's body."""
    assert result.dense is not None
    rows = result.dense
    embeddings = {name: _typed(rows, name) for name in order.types} if order.types else rows
    kind = "embeddings_by_type" if order.types else "embeddings_floats"
    body = {
        "response_type": kind,
        "id": str(uuid.uuid4()),
        "embeddings": embeddings,
        "texts": order.texts,
        "meta": meta(version, {"input_tokens": result.num_tokens}),
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _typed(rows: FloatArray, name: str) -> Any:
    return base64_rows(rows) if name == "base64" else quantize(rows, _TYPES[name])


def meta(version: Version, units: dict[str, int] | None = None) -> dict[str, Any]:
    """What Cohere says beside an answer."""
    said: dict[str, Any] = {"api_version": {"version": version}}
    return said if units is None else said | {"billed_units": units}


def rerank_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """The answer of `/v1/rerank`, with the documents where they were asked for."""
    return _rerank_json(order, result, model, "1", order.returns_documents)


def rerank_v2_json(order: RerankOrder, result: RerankResult, model: str) -> bytes:
    """The answer of `/v2/rerank`, which never has documents."""
    return _rerank_json(order, result, model, "2", False)


def _rerank_json(
    order: RerankOrder, result: RerankResult, model: str, version: Version, has_documents: bool
) -> bytes:
    results = []
    for index, score in scored(result):
        item: dict[str, Any] = {"index": index, "relevance_score": score}
        if has_documents:
            document = order.documents[index]
            item["document"] = {"text": document} if isinstance(document, str) else document
        results.append(item)
    return orjson.dumps(
        {
            "id": str(uuid.uuid4()),
            "object": "rerank",
            "model": model,
            "results": results,
            "meta": meta(version, {"search_units": 1}),
            "usage": usage(result.num_tokens),
        }
    )
