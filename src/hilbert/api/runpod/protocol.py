"""A job's input to a call of this server's own routes, and that call's answer to the job's output.

An input says `openai_route` and `openai_input`, or `query` and `docs`, or `input`. Values pass through as
they came, as JSON: what they mean, and every refusal of them, is the route's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from hilbert.api.body import MalformedRequest
from hilbert.core import Modality

Fields = dict[str, msgspec.Raw]

_INPUT_FORMS = (
    "`input` (texts, or URLs, data URIs or base64 with `modality`), `query` and `docs`, or `openai_route` "
    "and `openai_input`"
)
_fields = msgspec.json.Decoder(Fields)


@dataclass(frozen=True, slots=True)
class Errand:
    """A call to be made for a job.

    Attributes:
        method, path, body: the call.
        to_output: the call's answer to the job's output, both as JSON.
        renames: the fields that the job calls otherwise than the route, for errors.
    """

    method: str
    path: str
    body: bytes
    to_output: Callable[[bytes], bytes]
    renames: tuple[tuple[bytes, bytes], ...] = ()


def to_errand(raw: bytes) -> Errand:
    """What a job's input asks for.

    Raises:
        MalformedRequest: it asks for nothing known.
    """
    try:
        fields = _fields.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedRequest(f"Invalid input: it is no object; send {_INPUT_FORMS}.") from None
    if "openai_route" in fields:
        return _openai(_route(fields["openai_route"]), fields.get("openai_input"))
    if "query" in fields:
        return rerank(fields)
    for modality in (Modality.TEXT, Modality.IMAGE):
        if "input" not in fields and modality in fields:
            fields["input"] = fields.pop(modality)
            fields["modality"] = msgspec.Raw(b'"%s"' % modality.encode())
    if "input" in fields:
        return Errand("POST", "/v1/embeddings", msgspec.json.encode(fields), _as_it_is)
    raise MalformedRequest(f"Invalid input: it has none of the known fields; send {_INPUT_FORMS}.")


def rerank(fields: Fields) -> Errand:
    """A query and its documents, in this dialect's words."""
    if "docs" not in fields and "documents" not in fields:
        raise MalformedRequest("`docs` is missing; send a list of texts.", param="docs")
    asked = {_RERANK_NAMES.get(name, name): value for name, value in fields.items()}
    returns_docs = bytes(asked.get("return_documents", b"")) == b"true"
    num_docs = _length(asked["documents"])

    def to_output(answer: bytes) -> bytes:
        return _ranking(orjson.loads(answer), num_docs, returns_docs)

    return Errand("POST", "/rerank", msgspec.json.encode(asked), to_output, _RENAMES)


_RERANK_NAMES = {"docs": "documents", "return_docs": "return_documents"}
_RENAMES = ((b"documents", b"docs"),)


def is_rerank(raw: bytes) -> bool:
    """Whether a body says `docs`, as only this dialect does."""
    try:
        return "docs" in _fields.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def fields_of(raw: bytes) -> Fields:
    """The fields of an object whose values stay as they came."""
    return _fields.decode(raw)


def _openai(route: str, given: msgspec.Raw | None) -> Errand:
    body = b"" if given is None else bytes(given)
    if body in (b"", b"null"):
        if route in _WITH_BODIES:
            raise MalformedRequest(
                f"`openai_input` is missing; send the body of POST {route}.", param="openai_input"
            )
        return Errand("GET", route, b"", _as_it_is)
    if route == "/v1/rerank" and is_rerank(body):
        errand = rerank(fields_of(body))
        return Errand(
            errand.method,
            errand.path,
            errand.body,
            lambda answer: _alone(errand.to_output(answer)),
            errand.renames,
        )
    return Errand("POST", route, body, _alone)


_WITH_BODIES = ("/v1/embeddings", "/v1/rerank")


def _route(raw: msgspec.Raw) -> str:
    route = msgspec.json.decode(raw)
    if not isinstance(route, str) or not route.startswith("/v1/"):
        raise invalid_route(route)
    return route


def invalid_route(route: object) -> MalformedRequest:
    """The error for an `openai_route` that nobody answers."""
    return MalformedRequest(
        f"Invalid OpenAI Route: {route!r:.100}; send /v1/models, /v1/embeddings or /v1/rerank.",
        param="openai_route",
    )


def _as_it_is(answer: bytes) -> bytes:
    return answer


def _alone(answer: bytes) -> bytes:
    """In a list of one, which the platform unwraps for callers of `/openai/v1`."""
    return b"[%s]" % answer


def _length(documents: msgspec.Raw) -> int:
    try:
        return len(msgspec.json.decode(documents, type=list[msgspec.Raw]))
    except msgspec.DecodeError:
        return 0  # the route refuses what is no list


def _ranking(answer: dict[str, Any], num_docs: int, returns_docs: bool) -> bytes:
    """The results, best first, and beside them what the worker's page promises: `docs`, or `scores`.

    `docs` are the documents, best first; `scores[i]` is the score of the i-th document of the request, null
    where `top_n` left it out.
    """
    results = answer["results"]
    output = {"object": "rerank", "model": answer["model"], "usage": answer["usage"]}
    if returns_docs:
        output |= {"results": results, "docs": [result["document"] for result in results]}
    else:
        scores: list[float | None] = [None] * num_docs
        for result in results:
            scores[result["index"]] = result["relevance_score"]
        output |= {"results": list(_without_documents(results)), "scores": scores}
    return orjson.dumps(output)


def _without_documents(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({name: value for name, value in row.items() if name != "document"} for row in results)
