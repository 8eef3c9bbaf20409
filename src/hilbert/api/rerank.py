"""Reranking over HTTP: the body that all dialects share, and the route; each dialect writes its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hilbert.api.body import BodyDecoder, MalformedRequest, about, short_floats
from hilbert.api.call import Call, Reply
from hilbert.api.exchange import model_for, parsed, written
from hilbert.api.settings import ApiSettings
from hilbert.core import RerankRequest, RerankResult, Scale, Task
from hilbert.errors import UnsupportedTask
from hilbert.models import Registry

_DOCUMENT_FORMS = "a list of strings, or of objects with `text`"
Text = str | dict[str, Any]


class RerankBody(msgspec.Struct, kw_only=True):
    """A query and the documents to order. Every field may be null; unknown fields are ignored."""

    query: Annotated[Text | None, about("The query: a string, or an object with `text`.")] = None
    documents: Annotated[list[Text] | None, about(f"What to order: {_DOCUMENT_FORMS}.")] = None
    model: Annotated[str | None, about("The served model's name; with one model any name is accepted.")] = (
        None
    )
    top_n: Annotated[int | None, about("Return only so many of the best, 1 or more.")] = None
    return_documents: Annotated[bool | None, about("Send the documents back, too (default false).")] = None
    raw_scores: Annotated[
        bool | None,
        about(
            "Logits of a cross-encoder as they are; otherwise through a sigmoid. Similarities never change."
        ),
    ] = None
    prompt: Annotated[
        str | None,
        about(
            "The instruction of a reranker that takes one, else text before the query; "
            "by default the model's own."
        ),
    ] = None
    truncate: Annotated[
        bool | None, about("Cut texts to the model's length (default); false refuses longer ones.")
    ] = None


@dataclass(frozen=True, slots=True)
class RerankOrder:
    """A body, read.

    Attributes:
        documents: as they came.
    """

    model: str | None
    request: RerankRequest
    documents: list[Text]
    returns_documents: bool


_decoder = BodyDecoder(RerankBody, {"documents": _DOCUMENT_FORMS})


class RerankRoute:
    """Handles `POST …/rerank`.

    Args:
        to_json: writes the answer's body, given the order, the result and the model's name.
    """

    def __init__(
        self,
        models: Registry,
        settings: ApiSettings,
        to_json: Callable[[RerankOrder, RerankResult, str], bytes],
    ) -> None:
        self._models = models
        self._max_documents = settings.max_client_batch_size
        self._max_body_bytes = settings.max_body_bytes
        self._to_json = to_json

    async def __call__(self, call: Call) -> Reply:
        """Order documents."""
        order = await parsed(call, self._max_body_bytes, self._parse)
        model = await model_for(call, self._models, order.model, Task.RERANK)
        result = await call.unless_gone(model.rerank(order.request))
        body = await written(8 * len(result.scores), self._to_json, order, result, model.name)
        return Reply(body, headers=warning_headers(result))

    def _parse(self, raw: bytes) -> RerankOrder:
        body = _decoder.decode(raw)
        if body.query is None:
            raise MalformedRequest("`query` is missing; send a string.", param="query")
        documents = body.documents
        if not documents:
            what = "is missing" if documents is None else "is an empty list"
            raise MalformedRequest(f"`documents` {what}; send {_DOCUMENT_FORMS}.", param="documents")
        if len(documents) > self._max_documents:
            raise MalformedRequest(
                f"`documents` has {len(documents)} items; one request may have {self._max_documents} "
                "(--max-client-batch-size).",
                param="documents",
            )
        if body.top_n is not None and body.top_n < 1:
            raise MalformedRequest(
                f"`top_n` is {body.top_n}; it must be 1 or more, or left out for all.", param="top_n"
            )
        request = RerankRequest(
            _text(body.query, "query", None),
            tuple([_text(item, "documents", index) for index, item in enumerate(documents)]),
            body.top_n,
            Scale.RAW if body.raw_scores else Scale.SIGMOID,
            body.truncate,
            prompt=body.prompt,
        )
        return RerankOrder(body.model, request, documents, body.return_documents is True)


def warning_headers(result: RerankResult) -> tuple[tuple[bytes, bytes], ...]:
    """What the caller should know beside the scores."""
    return ((b"x-hilbert-warning", result.warning.encode("ascii")),) if result.warning else ()


def scored(result: RerankResult) -> Iterator[tuple[int, float]]:
    """Index and score of each document, best first, as orjson writes them."""
    return zip(result.indices.tolist(), short_floats(result.scores), strict=True)


def _text(item: Text, field: str, index: int | None) -> str:
    """The text of a query or a document."""
    if isinstance(item, str):
        return item
    text = item.get("text")
    if isinstance(text, str):
        return text
    place = field if index is None else f"{field}[{index}]"
    for kind in ("image", "audio", "video", "image_url"):
        if kind in item:
            article = "an" if kind[0] in "ai" else "a"
            raise UnsupportedTask(
                f"{place} is {article} {kind.removesuffix('_url')}; this model orders texts.",
                param=field,
                index=index,
            )
    raise MalformedRequest(f"{place} is an object without a string `text`.", param=field, index=index)
