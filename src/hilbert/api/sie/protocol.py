"""The bodies of SIE's `encode`, `score` and `extract`, and their translation to and from `core`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, about, short_floats
from hilbert.core import (
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EncodeResult,
    ExtractRequest,
    ExtractResult,
    Input,
    Media,
    MediaRef,
    Modality,
    OutputDtype,
    OutputType,
    RerankRequest,
    RerankResult,
    Scale,
    SparseVector,
    quantize,
)
from hilbert.core.quantize import NumberArray
from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput, UnsupportedTask

_VECTORS = (OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR)


class File(msgspec.Struct, kw_only=True):
    """An image or a sound."""

    data: Annotated[
        Any, about("The file: in msgpack its bytes; in JSON an http(s) URL, a data URI or base64.")
    ] = None
    format: Annotated[str | None, about("Ignored: files say themselves what they are.")] = None


class Item(msgspec.Struct, kw_only=True):
    """One input: a text, one image or a sound."""

    id: str | None = None
    text: str | None = None
    images: list[File] | None = None
    audio: File | None = None
    video: Any = None
    document: Any = None


class Params(msgspec.Struct, kw_only=True):
    """What to compute."""

    output_types: Annotated[
        list[str] | None, about("`dense`, `sparse`, `multivector`; default: what the model is served for.")
    ] = None
    output_dtype: Annotated[
        str | None, about("Type of the numbers of dense and token vectors; default `float32`.")
    ] = None
    instruction: Annotated[str | None, about("Text put before every item.")] = None
    options: Annotated[
        dict[str, Any] | None,
        about(
            "`is_query` picks the model's query or document prompt; `normalize`; the names above; and beyond "
            "SIE's: `input_type`, `prompt_name`, `dimensions`, `truncate` as on `/v1/embeddings`."
        ),
    ] = None


class Extras(msgspec.Struct, kw_only=True):
    """What SIE has no options for; as on `/v1/embeddings`."""

    input_type: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None


class EncodeBody(msgspec.Struct, kw_only=True):
    """Items to encode. Unknown fields are ignored."""

    model: Annotated[str | None, about("The served model's name, where the path has none; beyond SIE's.")] = (
        None
    )
    items: Annotated[list[Item] | None, about("At least one.")] = None
    params: Params | None = None


class ScoreBody(msgspec.Struct, kw_only=True):
    """A query, and the items to order. Unknown fields are ignored."""

    query: Annotated[Item | None, about("A text.")] = None
    items: Annotated[list[Item] | None, about("At least one text.")] = None
    instruction: Annotated[
        str | None, about("The instruction of a reranker that takes one, else text before the query.")
    ] = None


class ExtractOptions(msgspec.Struct, kw_only=True):
    """How spans are chosen, with gliner's names and its defaults; `truncate` as on `/v1/embeddings`."""

    threshold: Annotated[float, about("Spans that score no more are left out; 0 to 1.")] = 0.5
    flat_ner: Annotated[bool, about("Of spans that overlap only the best is kept.")] = True
    multi_label: Annotated[bool, about("The same span may have several labels.")] = False
    truncate: bool | None = None


class ExtractParams(msgspec.Struct, kw_only=True):
    """What to find."""

    labels: Annotated[
        list[str] | None,
        about("Of a classifier only these classes, by default all. A model that finds spans needs them."),
    ] = None
    options: ExtractOptions | None = None


class ExtractBody(msgspec.Struct, kw_only=True):
    """Items to put into classes, or to find spans in. Unknown fields are ignored."""

    items: Annotated[list[Item] | None, about("At least one text.")] = None
    params: ExtractParams | None = None


class Dense(msgspec.Struct):
    """One vector."""

    dims: int
    dtype: str
    values: list[float]


class Sparse(msgspec.Struct):
    """The weights that are not zero, by token id."""

    dims: int
    dtype: str
    indices: list[int]
    values: list[float]


class Multivector(msgspec.Struct):
    """A vector for each token that counts."""

    token_dims: int
    num_tokens: int
    dtype: str
    values: list[list[float]]


class EncodedItem(msgspec.Struct):
    """What became of one item."""

    id: str | None = None
    dense: Dense | None = None
    sparse: Sparse | None = None
    multivector: Multivector | None = None


class SieTiming(msgspec.Struct):
    """Milliseconds spent in each stage."""

    total_ms: float
    queue_ms: float
    tokenization_ms: float
    inference_ms: float


class Encoded(msgspec.Struct):
    """The items, in the order of the request."""

    model: str
    items: list[EncodedItem]
    timing: SieTiming


class Score(msgspec.Struct):
    """One item; `rank` counts from 0."""

    item_id: str
    score: float
    rank: int


class Scored(msgspec.Struct):
    """The items, best first."""

    model: str
    query_id: str | None
    scores: list[Score]


class SieClass(msgspec.Struct):
    """One class and its score."""

    label: str
    score: float


class SieEntity(msgspec.Struct):
    """One span; `start` and `end` count characters, the one at `end` is behind it."""

    text: str
    label: str
    score: float
    start: int
    end: int


class ExtractedItem(msgspec.Struct):
    """What was found in one item: classes, best first, or entities as they stand in the text."""

    id: str
    classifications: list[SieClass]
    entities: list[SieEntity]
    relations: list[Any]
    objects: list[Any]
    data: dict[str, Any]


class Extracted(msgspec.Struct):
    """The items, in the order of the request."""

    model: str
    items: list[ExtractedItem]


class SieDetail(msgspec.Struct, omit_defaults=True):
    """What went wrong; `reason`, beyond SIE's, is what `code` is on OpenAI's routes.

    `error_class` says why a model could not be loaded.
    """

    code: str
    message: str
    reason: str | None = None
    error_class: str | None = None


class SieError(msgspec.Struct):
    """The body of every status from 400 up."""

    detail: SieDetail


encode_decoder = BodyDecoder(EncodeBody)
score_decoder = BodyDecoder(ScoreBody)
extract_decoder = BodyDecoder(ExtractBody)


class Order(msgspec.Struct, frozen=True):
    """A body, read. `request.outputs` is empty where the model's usual output is wanted."""

    ids: list[str | None]
    dtype: OutputDtype | None
    request: EmbedRequest
    model: str | None = None


class ScoreOrder(msgspec.Struct, frozen=True):
    """A body, read. Items without an id are called by their place."""

    query_id: str | None
    ids: list[str]
    request: RerankRequest


class ExtractOrder(msgspec.Struct, frozen=True):
    """A body, read. Items without an id are called by their place."""

    ids: list[str]
    texts: tuple[str, ...]
    labels: list[str] | None
    options: ExtractOptions

    @property
    def classes(self) -> ClassifyRequest:
        """What is asked of a model that classifies."""
        return ClassifyRequest(self.texts, truncate=self.options.truncate is not False)

    @property
    def spans(self) -> ExtractRequest:
        """What is asked of a model that finds spans."""
        options = self.options
        return ExtractRequest(
            self.texts,
            tuple(self.labels or ()),
            options.threshold,
            options.flat_ner,
            options.multi_label,
            truncate=options.truncate is not False,
        )


def to_order(body: EncodeBody, max_items: int) -> Order:
    """What is asked, in the words of no dialect.

    Raises:
        MalformedRequest: no items, too many, or an empty one; an unknown type.
        UnsupportedTask: an item is of a kind that nothing here reads.
    """
    items, params = _checked(body.items, max_items), body.params or Params()
    options = params.options or {}
    names = options.get("output_types", params.output_types)
    dtype = options.get("output_dtype", params.output_dtype)
    if dtype is not None and dtype not in tuple(OutputDtype):
        raise MalformedRequest(
            f"output_dtype {dtype!r} is unknown; use {', '.join(OutputDtype)}.", param="output_dtype"
        )
    is_query, normalize = options.get("is_query"), options.get("normalize")
    more = _extras(options)
    request = EmbedRequest(
        tuple([_input(item, index) for index, item in enumerate(items)]),
        prompt=params.instruction,
        prompt_name=more.prompt_name,
        input_type=more.input_type if is_query is None else "query" if is_query else "document",
        truncate=more.truncate is not False,
        dimensions=more.dimensions,
        normalize=normalize if isinstance(normalize, bool) else True,
        outputs=_outputs(names),
    )
    asked = None if dtype is None else OutputDtype(dtype)
    return Order([item.id for item in items], asked, request, body.model)


def _extras(options: dict[str, Any]) -> Extras:
    try:
        return msgspec.convert(options, Extras)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"`params.options`: {error}.", param="params") from None


def _outputs(names: Any) -> frozenset[OutputType]:
    if names is None:
        return frozenset()
    wanted = names if isinstance(names, list) else [names]
    for name in wanted:
        if name not in _VECTORS:
            raise MalformedRequest(
                f"output type {name!r} is unknown; use {', '.join(_VECTORS)}.", param="output_types"
            )
    return frozenset(map(OutputType, wanted))


def to_score_order(body: ScoreBody, max_items: int) -> ScoreOrder:
    """What is asked, in the words of no dialect.

    Raises:
        MalformedRequest: no query, no items, too many, or one without text.
        UnsupportedTask: one is no text.
    """
    items = _checked(body.items, max_items)
    if body.query is None:
        raise MalformedRequest("`query` is missing; send an item with `text`.", param="query")
    query = _text(body.query, "query", None)
    documents = tuple([_text(item, "items", index) for index, item in enumerate(items)])
    ids = [item.id or f"item-{index}" for index, item in enumerate(items)]
    request = RerankRequest(query, documents, scale=Scale.MODEL, prompt=body.instruction)
    return ScoreOrder(body.query.id, ids, request)


def to_extract_order(body: ExtractBody, max_items: int) -> ExtractOrder:
    """What is asked, in the words of no dialect. Raises as `to_score_order` does."""
    items = _checked(body.items, max_items)
    texts = tuple([_text(item, "items", index) for index, item in enumerate(items)])
    params = body.params or ExtractParams()
    ids = [item.id or f"item-{i}" for i, item in enumerate(items)]
    return ExtractOrder(ids, texts, params.labels, params.options or ExtractOptions())


def _checked(items: list[Item] | None, max_items: int) -> list[Item]:
    if not items:
        raise MalformedRequest("`items` needs at least one item.", param="items")
    if len(items) > max_items:
        raise MalformedRequest(
            f"`items` has {len(items)} items; one request may have {max_items} (--max-client-batch-size).",
            param="items",
        )
    return items


def _input(item: Item, index: int) -> Input:
    for kind in ("video", "document"):
        if getattr(item, kind) is not None:
            raise UnsupportedTask(
                f"items[{index}] has {kind}; send text, one image or audio.", param="items", index=index
            )
    images = item.images or []
    given: list[Input] = [] if item.text is None else [item.text]
    given += [_media(Modality.IMAGE, image, index) for image in images]
    given += [] if item.audio is None else [_media(Modality.AUDIO, item.audio, index)]
    if len(given) == 1:
        return given[0]
    if not given:
        raise MalformedRequest(
            f"items[{index}] has no `text`, `images` or `audio`.", param="items", index=index
        )
    raise UnsupportedTask(
        f"items[{index}] has {len(given)} of text, images and audio; a vector is of one: send an item for "
        "each.",
        param="items",
        index=index,
    )


def _media(modality: Modality, file: File, index: int) -> Media | MediaRef:
    if isinstance(file.data, bytes):
        return Media(modality, file.data)
    if isinstance(file.data, str):
        return MediaRef(modality, file.data)
    raise MalformedRequest(
        f"items[{index}] has {modality} without `data`; send bytes, or in JSON a URL, a data URI or base64.",
        param="items",
        index=index,
    )


def _text(item: Item, field: str, index: int | None) -> str:
    place = field if index is None else f"{field}[{index}]"
    for kind in ("images", "audio", "video", "document"):
        if getattr(item, kind):
            raise UnsupportedTask(f"{place} has {kind}; scores are of texts.", param=field, index=index)
    if item.text is None:
        raise MalformedRequest(f"{place} has no `text`.", param=field, index=index)
    return item.text


def to_answer(
    order: Order,
    result: EncodeResult,
    dtype: OutputDtype,
    sparse_dimensions: int,
    model: str,
    total_seconds: float,
    is_msgpack: bool,
) -> bytes:
    """The answer's body."""
    dense = None if result.dense is None else _values(result.dense, dtype)
    items = []
    for place, item_id in enumerate(order.ids):
        item: dict[str, Any] = {} if item_id is None else {"id": item_id}
        if dense is not None:
            size = result.dense.shape[1] if result.dense is not None else 0
            item["dense"] = {"dims": size, "dtype": _type_name(dtype), "values": dense[place]}
        if result.sparse is not None:
            item["sparse"] = _sparse(result.sparse[place], sparse_dimensions, dtype)
        if result.multivector is not None:
            rows = result.multivector[place]
            item["multivector"] = _multivector(_values(rows, dtype), rows.shape, dtype)
        items.append(item)
    return to_bytes({"model": model, "items": items, "timing": timing_of(result, total_seconds)}, is_msgpack)


def to_score_answer(order: ScoreOrder, result: RerankResult, model: str, is_msgpack: bool) -> bytes:
    """The answer's body: the best first."""
    ranked = zip(result.indices.tolist(), short_floats(result.scores), strict=True)
    scores = [
        {"item_id": order.ids[index], "score": score, "rank": rank}
        for rank, (index, score) in enumerate(ranked)
    ]
    return to_bytes({"model": model, "query_id": order.query_id, "scores": scores}, is_msgpack)


def to_classes_answer(order: ExtractOrder, result: ClassifyResult, model: str, is_msgpack: bool) -> bytes:
    """The answer's body of a model that classifies.

    Raises:
        InvalidInput: a class is asked for that the model does not have.
    """
    for label in order.labels or ():
        if label not in result.labels:
            raise InvalidInput(
                f"{model} has no class {label!r}; it has {', '.join(result.labels)}.", param="labels"
            )
    items = []
    for item_id, places, scores in zip(order.ids, result.order.tolist(), result.scores, strict=True):
        found = [
            {"label": result.labels[place], "score": score}
            for place, score in zip(places, short_floats(scores), strict=True)
            if not order.labels or result.labels[place] in order.labels
        ]
        items.append(_extracted(item_id, classifications=found))
    return to_bytes({"model": model, "items": items}, is_msgpack)


def to_spans_answer(order: ExtractOrder, result: ExtractResult, model: str, is_msgpack: bool) -> bytes:
    """The answer's body of a model that finds spans."""
    items = []
    for item_id, text, spans in zip(order.ids, order.texts, result.spans, strict=True):
        places = spans[:, :3].astype(np.int64).tolist()
        entities = [
            {
                "text": text[start:end],
                "label": result.labels[label],
                "score": score,
                "start": start,
                "end": end,
            }
            for (start, end, label), score in zip(places, short_floats(spans[:, 3]), strict=True)
        ]
        items.append(_extracted(item_id, entities=entities))
    return to_bytes({"model": model, "items": items}, is_msgpack)


def _extracted(item_id: str, **found: list[dict[str, Any]]) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "classifications": [],
        "entities": [],
        "relations": [],
        "objects": [],
        "data": {},
    }
    return {"id": item_id, **nothing, **found}


def to_bytes(body: dict[str, Any], is_msgpack: bool) -> bytes:
    """JSON, or msgpack with arrays as the package msgpack-numpy writes them."""
    if is_msgpack:
        return msgspec.msgpack.encode(body, enc_hook=_packed)
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _packed(value: Any) -> dict[bytes, Any]:
    # Source: the format of msgpack-numpy 0.4.8; its keys are bytes.
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(type(value))
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    return {
        b"nd": True,
        b"type": little.dtype.str,
        b"kind": b"",
        b"shape": value.shape,
        b"data": little.tobytes(),
    }


def timing_of(result: EncodeResult, total_seconds: float) -> dict[str, float]:
    """The stages in milliseconds."""
    timing = result.timing
    return {
        "total_ms": round(1000 * total_seconds, 3),
        "queue_ms": round(1000 * timing.queue_seconds, 3),
        "tokenization_ms": round(1000 * timing.tokenize_seconds, 3),
        "inference_ms": round(1000 * timing.inference_seconds, 3),
    }


def _values(rows: FloatArray, dtype: OutputDtype) -> NumberArray:
    """``[N, E]`` float32 in another type, as SIE's servers write it.

    Bits are packed without a sign, whichever of both is asked for; uint8 spans each row from its own least
    number to its own largest.
    Source: SIE 0.3.1, its postprocessor `QuantizePostprocessor`.
    """
    if dtype.is_packed:
        return quantize(rows, OutputDtype.UBINARY)
    if dtype is not OutputDtype.UINT8:
        return quantize(rows, dtype)
    least = rows.min(axis=-1, keepdims=True)
    span = rows.max(axis=-1, keepdims=True) - least
    levels: NumberArray = np.rint((rows - least) / np.where(span > 0, span, 1) * np.float32(255)).astype(
        np.uint8
    )
    return levels


def _type_name(dtype: OutputDtype) -> str:
    """What SIE calls it in answers."""
    return "binary" if dtype.is_packed else dtype.value


def _sparse(vector: SparseVector, sparse_dimensions: int, dtype: OutputDtype) -> dict[str, Any]:
    kind = np.float16 if dtype is OutputDtype.FLOAT16 else np.float32
    return {
        "dims": sparse_dimensions,
        "dtype": np.dtype(kind).name,
        "indices": np.ascontiguousarray(vector.token_ids),
        "values": np.ascontiguousarray(vector.weights, dtype=kind),
    }


def _multivector(values: NumberArray, shape: tuple[int, ...], dtype: OutputDtype) -> dict[str, Any]:
    return {
        "token_dims": shape[1],
        "num_tokens": shape[0],
        "dtype": _type_name(dtype),
        "values": values,
    }
