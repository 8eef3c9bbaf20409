"""Classification over HTTP: one body, one answer; the bare route adds Infinity's id and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import orjson

from hilbert.api.body import BodyDecoder, MalformedRequest, Usage, about, check_number, short_floats, usage
from hilbert.api.call import Call, Reply
from hilbert.api.exchange import model_for, ordered, written
from hilbert.api.settings import ApiSettings
from hilbert.core import ClassifyRequest, ClassifyResult, Task
from hilbert.models import Registry

_INPUT_FORMS = "a string or a list of strings"


class ClassifyBody(msgspec.Struct, kw_only=True):
    """Texts to classify. Every field may be null; unknown fields are ignored."""

    input: Annotated[str | list[str] | None, about(f"What to classify: {_INPUT_FORMS}.")] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    labels: Annotated[Any, about("Refused: a model has the classes that it was trained for.")] = None
    raw_scores: Annotated[bool | None, about("Logits instead of probabilities (default false).")] = None
    truncate: Annotated[
        bool | None, about("Cut inputs to the model's length (default); false refuses longer ones.")
    ] = None


class LabelScore(msgspec.Struct):
    """One class and its score."""

    score: float
    label: str


class Classification(msgspec.Struct, omit_defaults=True):
    """All classes of each input, best first. `id` and `created` are on the bare route only."""

    object: str
    data: list[list[LabelScore]]
    model: str
    usage: Usage
    id: str | None = None
    created: int | None = None


@dataclass(frozen=True, slots=True)
class _Order:
    model: str | None
    request: ClassifyRequest


_decoder = BodyDecoder(ClassifyBody, {"input": _INPUT_FORMS})


class ClassifyRoute:
    """Handles `POST …/classify`.

    Args:
        extra: further members of the answer, as JSON without braces.
    """

    def __init__(
        self, models: Registry, settings: ApiSettings, extra: Callable[[], bytes] | None = None
    ) -> None:
        self._models = models
        self._max_inputs = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._extra = extra

    async def __call__(self, call: Call) -> Reply:
        """Classify texts."""
        order = await ordered(call, self._models, self._max_body_bytes, self._parse)
        model = await model_for(call, self._models, order.model, Task.CLASSIFY)
        result = await call.unless_gone(model.classify(order.request))
        return Reply(await written(8 * result.scores.size, self._write, result, model.name))

    def _parse(self, raw: bytes) -> _Order:
        body = _decoder.decode(raw)
        if body.labels is not None:
            raise MalformedRequest(
                "`labels` asks for classes of the request's own (Jina's zero-shot classification), which is "
                "not served; leave it out for the model's own classes, or compare embeddings of texts and "
                "labels.",
                param="labels",
            )
        inputs = [body.input] if isinstance(body.input, str) else body.input
        check_number(inputs, "input", _INPUT_FORMS, self._max_inputs)
        request = ClassifyRequest(tuple(inputs or ()), body.raw_scores is True, body.truncate)
        return _Order(body.model, request)

    def _write(self, result: ClassifyResult, model: str) -> bytes:
        data = [
            [
                {"score": score, "label": result.labels[place]}
                for place, score in zip(places, short_floats(scores), strict=True)
            ]
            for places, scores in zip(result.order.tolist(), result.scores, strict=True)
        ]
        body = {"object": "classify", "data": data, "model": model, "usage": usage(result.num_tokens)}
        written = orjson.dumps(body)
        return written if self._extra is None else b"%s,%s}" % (written[:-1], self._extra())
