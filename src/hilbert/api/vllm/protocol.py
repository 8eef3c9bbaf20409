"""The bodies of vLLM's `/score`, under each of the names that its versions have for the two sides."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, Usage, about, short_floats, usage
from hilbert.core import RerankRequest, RerankResult, Scale

_FORMS = "a string or a list of strings"
Texts = Annotated[str | list[str] | None, about(f"{_FORMS.capitalize()}.")]


class VllmScoreBody(msgspec.Struct, kw_only=True):
    """One text against others, or as many against as many, pair by pair. Unknown fields are ignored."""

    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    text_1: Texts = None
    text_2: Texts = None
    queries: Annotated[str | list[str] | None, about("Another name for `text_1`, as `data_1`.")] = None
    data_1: Texts = None
    documents: Annotated[
        str | list[str] | None, about("Another name for `text_2`, as `items` and `data_2`.")
    ] = None
    items: Texts = None
    data_2: Texts = None
    use_activation: Annotated[
        bool | None, about("False for the logits of a cross-encoder; by default what its own config says.")
    ] = None
    truncate: Annotated[bool | None, about("Cut pairs to the model's length.")] = None


class VllmScore(msgspec.Struct):
    """One pair."""

    index: int
    object: str
    score: float


class VllmScores(msgspec.Struct):
    """The scores, in the order of the pairs."""

    id: str
    object: str
    created: int
    model: str
    data: list[VllmScore]
    usage: Usage


_SIDES = (("text_1", "queries", "data_1"), ("text_2", "documents", "items", "data_2"))
_decoder = BodyDecoder(VllmScoreBody, {name: _FORMS for names in _SIDES for name in names})


@dataclass(frozen=True, slots=True)
class ScoreOrder:
    """A body, read.

    Attributes:
        requests: one for each text of the first side, with all that it is compared with.
        places: for each request, which pairs its documents are.
    """

    model: str | None
    requests: tuple[RerankRequest, ...]
    places: tuple[tuple[int, ...], ...]
    num_pairs: int


def read_order(raw: bytes, max_inputs: int) -> ScoreOrder:
    """What is asked.

    Raises:
        MalformedRequest: a side is missing or empty, the two do not fit, or there are too many pairs.
    """
    body = _decoder.decode(raw)
    first, second = (_side(body, names) for names in _SIDES)
    if len(first) not in (1, len(second)):
        raise MalformedRequest(
            f"{len(first)} texts cannot be paired with {len(second)}; send one, or as many on both sides.",
            param="text_1",
        )
    if len(second) > max_inputs:
        raise MalformedRequest(
            f"{len(second)} pairs are sent; one request may have {max_inputs} (--max-client-batch-size).",
            param="text_2",
        )
    places: dict[str, list[int]] = {}
    for place in range(len(second)):
        places.setdefault(first[place if len(first) > 1 else 0], []).append(place)
    scale = Scale.RAW if body.use_activation is False else Scale.MODEL
    requests = tuple(
        RerankRequest(query, tuple(second[i] for i in found), scale=scale, truncate=body.truncate)
        for query, found in places.items()
    )
    return ScoreOrder(body.model, requests, tuple(map(tuple, places.values())), len(second))


def _side(body: VllmScoreBody, names: tuple[str, ...]) -> list[str]:
    for name in names:
        given = getattr(body, name)
        if given is not None:
            texts: list[str] = [given] if isinstance(given, str) else given
            if not texts:
                raise MalformedRequest(f"`{name}` is an empty list; send {_FORMS}.", param=name)
            return texts
    raise MalformedRequest(f"`{names[0]}` is missing; send {_FORMS}.", param=names[0])


def to_json(order: ScoreOrder, results: Iterable[RerankResult], model: str) -> bytes:
    """The answer's body."""
    scores, num_tokens = np.empty(order.num_pairs, np.float32), 0
    for places, result in zip(order.places, results, strict=True):
        scores[np.array(places)[result.indices]] = result.scores
        num_tokens += result.num_tokens
    data: list[dict[str, Any]] = [
        {"index": index, "object": "score", "score": score}
        for index, score in enumerate(short_floats(scores))
    ]
    return orjson.dumps(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": data,
            "usage": usage(num_tokens),
        }
    )
