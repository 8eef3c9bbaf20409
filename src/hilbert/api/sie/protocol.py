"""The bodies of SIE's `encode`, and their translation to and from `core`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, about
from hilbert.core import EmbedRequest, EncodeResult, OutputDtype, OutputType, SparseVector, quantize
from hilbert.core.quantize import NumberArray
from hilbert.errors import UnsupportedTask

_VECTORS = (OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR)


class Item(msgspec.Struct, kw_only=True):
    """One input; `text` is needed."""

    id: str | None = None
    text: str | None = None
    images: list[Any] | None = None
    audio: Any = None
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
        about("`is_query` picks the model's query or document prompt; `normalize`; and the names above."),
    ] = None


class EncodeBody(msgspec.Struct, kw_only=True):
    """Items to encode. Unknown fields are ignored."""

    items: Annotated[list[Item] | None, about("At least one.")] = None
    params: Params | None = None


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


class SieDetail(msgspec.Struct):
    """What went wrong."""

    code: str
    message: str


class SieError(msgspec.Struct):
    """The body of every status from 400 up."""

    detail: SieDetail


decode = BodyDecoder(EncodeBody).decode


class Order(msgspec.Struct, frozen=True):
    """A body, read. `request.outputs` is empty where the model's usual output is wanted."""

    ids: list[str | None]
    dtype: OutputDtype | None
    request: EmbedRequest


def to_order(body: EncodeBody, max_items: int) -> Order:
    """What is asked, in the words of no dialect.

    Raises:
        MalformedRequest: no items, too many, or one without text; an unknown type.
        UnsupportedTask: an item is no text.
    """
    items, params = body.items, body.params or Params()
    if not items:
        raise MalformedRequest("`items` needs at least one item with `text`.", param="items")
    if len(items) > max_items:
        raise MalformedRequest(
            f"`items` has {len(items)} items; one request may have {max_items} (--max-client-batch-size).",
            param="items",
        )
    options = params.options or {}
    names = options.get("output_types", params.output_types)
    dtype = options.get("output_dtype", params.output_dtype)
    if dtype is not None and dtype not in tuple(OutputDtype):
        raise MalformedRequest(
            f"output_dtype {dtype!r} is unknown; use {', '.join(OutputDtype)}.", param="output_dtype"
        )
    is_query, normalize = options.get("is_query"), options.get("normalize")
    request = EmbedRequest(
        tuple([_text(item, index) for index, item in enumerate(items)]),
        prompt=params.instruction,
        input_type=None if is_query is None else "query" if is_query else "document",
        normalize=normalize if isinstance(normalize, bool) else True,
        outputs=_outputs(names),
    )
    return Order([item.id for item in items], None if dtype is None else OutputDtype(dtype), request)


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


def _text(item: Item, index: int) -> str:
    for kind in ("images", "audio", "video", "document"):
        if getattr(item, kind):
            raise UnsupportedTask(
                f"items[{index}] has {kind}; this model encodes text.", param="items", index=index
            )
    if item.text is None:
        raise MalformedRequest(f"items[{index}] has no `text`.", param="items", index=index)
    return item.text


def to_json(
    order: Order, result: EncodeResult, dtype: OutputDtype, vocab_size: int, model: str, total_seconds: float
) -> bytes:
    """The answer's body."""
    dense = None if result.dense is None else quantize(result.dense, dtype)
    items = []
    for place, item_id in enumerate(order.ids):
        item: dict[str, Any] = {} if item_id is None else {"id": item_id}
        if dense is not None:
            size = result.dense.shape[1] if result.dense is not None else 0
            item["dense"] = {"dims": size, "dtype": dtype.value, "values": dense[place]}
        if result.sparse is not None:
            item["sparse"] = _sparse(result.sparse[place], vocab_size)
        if result.multivector is not None:
            rows = result.multivector[place]
            item["multivector"] = _multivector(quantize(rows, dtype), rows.shape, dtype)
        items.append(item)
    body = {"model": model, "items": items, "timing": timing_of(result, total_seconds)}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def timing_of(result: EncodeResult, total_seconds: float) -> dict[str, float]:
    """The stages in milliseconds."""
    timing = result.timing
    return {
        "total_ms": round(1000 * total_seconds, 3),
        "queue_ms": round(1000 * timing.queue_seconds, 3),
        "tokenization_ms": round(1000 * timing.tokenize_seconds, 3),
        "inference_ms": round(1000 * timing.inference_seconds, 3),
    }


def _sparse(vector: SparseVector, vocab_size: int) -> dict[str, Any]:
    return {
        "dims": vocab_size,
        "dtype": "float32",
        "indices": np.ascontiguousarray(vector.token_ids),
        "values": np.ascontiguousarray(vector.weights),
    }


def _multivector(values: NumberArray, shape: tuple[int, ...], dtype: OutputDtype) -> dict[str, Any]:
    return {"token_dims": shape[1], "num_tokens": shape[0], "dtype": dtype.value, "values": values}
