"""Reranking over HTTP: the body that all dialects share, and the route; each dialect writes its answer.

The body has the words of Cohere, Jina, Infinity and Voyage. Voyage shares `/v1/rerank` with the others and
wants another answer: a request is Voyage's that has `top_k` or `truncation` and no `top_n`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from hilbert.api.body import BodyDecoder, MalformedRequest, about, check_number, short_floats, truncates
from hilbert.api.call import Call, Reply
from hilbert.api.exchange import model_for, ordered, written
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
    top_k: Annotated[
        int | msgspec.UnsetType | None,
        about(
            "Voyage's `top_n`. A request that has it, even null, and no `top_n` is answered as Voyage does."
        ),
    ] = msgspec.UNSET
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
    truncation: Annotated[bool | msgspec.UnsetType | None, about("Voyage's `truncate`.")] = msgspec.UNSET
    max_tokens_per_doc: Annotated[
        int | None, about("Read only so many tokens of each document, 1 or more.")
    ] = None
    max_doc_length: Annotated[int | None, about("Another name for `max_tokens_per_doc` (Jina).")] = None
    rank_fields: Annotated[
        list[str] | None,
        about("Of documents that are objects: the fields to read, in this order (default `text` alone)."),
    ] = None


@dataclass(frozen=True, slots=True)
class RerankOrder:
    """A body, read.

    Attributes:
        documents: as they came.
        is_voyage: the request is in Voyage's words.
    """

    model: str | None
    request: RerankRequest
    documents: list[Text]
    returns_documents: bool
    is_voyage: bool


_QUERY_FORMS = "a string, or an object with `text`; each query is a request of its own"
_decoder = BodyDecoder(RerankBody, {"documents": _DOCUMENT_FORMS, "query": _QUERY_FORMS})


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
        order = await ordered(call, self._models, self._max_body_bytes, self._parse)
        model = await model_for(call, self._models, order.model, Task.RERANK)
        result = await call.unless_gone(model.rerank(order.request))
        body = await written(8 * len(result.scores), self._to_json, order, result, model.name)
        return Reply(body, headers=warning_headers(result))

    def _parse(self, raw: bytes) -> RerankOrder:
        body = _decoder.decode(raw)
        if body.query is None:
            raise MalformedRequest("`query` is missing; send a string.", param="query")
        documents = body.documents
        check_number(documents, "documents", _DOCUMENT_FORMS, self._max_documents)
        assert documents is not None
        max_tokens = body.max_doc_length if body.max_tokens_per_doc is None else body.max_tokens_per_doc
        top_k = None if body.top_k is msgspec.UNSET else body.top_k
        for field, value in (("top_n", body.top_n), ("top_k", top_k), ("max_tokens_per_doc", max_tokens)):
            if value is not None and value < 1:
                raise MalformedRequest(
                    f"`{field}` is {value}; it must be 1 or more, or left out for all.", param=field
                )
        is_voyage = body.top_n is None and not (body.top_k is body.truncation is msgspec.UNSET)
        request = RerankRequest(
            _text(body.query, "query", None),
            tuple([_text(item, "documents", i, body.rank_fields) for i, item in enumerate(documents)]),
            top_k if body.top_n is None else body.top_n,
            Scale.RAW if body.raw_scores else Scale.SIGMOID,
            truncates(body.truncate, body.truncation),
            prompt=body.prompt,
            max_document_tokens=max_tokens,
        )
        return RerankOrder(body.model, request, documents, body.return_documents is True, is_voyage)


def warning_headers(result: RerankResult) -> tuple[tuple[bytes, bytes], ...]:
    """What the caller should know beside the scores."""
    return ((b"x-hilbert-warning", result.warning.encode("ascii")),) if result.warning else ()


def scored(result: RerankResult) -> Iterator[tuple[int, float]]:
    """Index and score of each document, best first, as orjson writes them."""
    return zip(result.indices.tolist(), short_floats(result.scores), strict=True)


def text_of(document: Text) -> str:
    """A document as a text, to be sent back."""
    return document if isinstance(document, str) else str(document.get("text", ""))


def _text(item: Text, field: str, index: int | None, names: list[str] | None = None) -> str:
    """The text of a query or a document; of an object its `text`, or the fields named, a line each."""
    if isinstance(item, str):
        return item
    if names:
        lines = [str(item[name]) for name in names if item.get(name) is not None]
        if lines:
            return "\n".join(lines)
        raise MalformedRequest(
            f"{field}[{index}] has none of the fields {', '.join(names)} (rank_fields).",
            param=field,
            index=index,
        )
    text = item.get("text")
    if isinstance(text, str):
        return text
    place = field if index is None else f"{field}[{index}]"
    for kind in ("image", "audio", "video", "image_url"):
        if kind in item:
            article = "an" if kind[0] in "ai" else "a"
            raise UnsupportedTask(
                f"{place} is {article} {kind.removesuffix('_url')}; this model orders texts; send `text`.",
                param=field,
                index=index,
            )
    raise MalformedRequest(f"{place} is an object without a string `text`.", param=field, index=index)
