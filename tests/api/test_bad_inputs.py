"""The same mistakes in every dialect: told by place, value, limit and remedy, in the shape of the dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from hilbert.api.cohere.protocol import CohereError
from hilbert.api.infinity.protocol import FormError
from hilbert.api.openai.protocol import ErrorBody
from hilbert.api.sie.protocol import SieError
from hilbert.core import OutputType

Body = dict[str, Any]


@pytest.fixture(scope="module")
def reranker(served: Any) -> Iterator[Any]:
    with served(OutputType.LOGITS, num_labels=1) as server:
        yield server


def _of(name: str) -> Callable[..., Body]:
    def body(documents: list[Any], **more: Any) -> Body:
        return {"query": "q", name: documents, **more}

    return body


def _voyage(documents: list[Any], top_n: int | None = None) -> Body:
    return {"query": "q", "documents": documents, "truncation": True, "top_k": top_n}


def _sie(documents: list[Any], top_n: int | None = None) -> Body:
    items = [{"text": d} if isinstance(d, str) else d for d in documents]
    return {"query": {"text": "q"}, "items": items, "top_k": top_n}


def _vllm(documents: list[Any]) -> Body:
    return {"text_1": "q", "text_2": documents}


def _tei_shape(reply: Any) -> str:
    body = reply.json()
    assert set(body) == {"error", "error_type"}
    return str(body["error"])


def _runpod_shape(reply: Any) -> str:
    return str(reply.json()["message"])


def _shape(type_: Any, find: Callable[[Any], str]) -> Callable[[Any], str]:
    def message(reply: Any) -> str:
        return find(msgspec.json.decode(reply.content, type=type_))

    return message


_COHERE = _shape(CohereError, lambda body: body.message)
# Route, how documents are sent, how the message is found, whether there is a `top_n`.
RERANKS: dict[str, tuple[str, Callable[..., Body], Callable[[Any], str], bool]] = {
    "infinity": ("/rerank", _of("documents"), _shape(FormError, lambda body: body.detail[0].msg), True),
    "cohere 1": ("/v1/rerank", _of("documents"), _COHERE, True),
    "cohere 2": ("/v2/rerank", _of("documents"), _COHERE, True),
    "voyage": ("/v1/rerank", _voyage, _COHERE, True),
    "tei": ("/rerank", _of("texts"), _tei_shape, True),
    "runpod": ("/rerank", _of("docs"), _runpod_shape, False),
    "sie": ("/v1/score/m", _sie, _shape(SieError, lambda body: body.detail.message), False),
    "vllm": ("/score", _vllm, _shape(ErrorBody, lambda body: body.error.message), False),
}
GOOD = ["a", "b"]


def told(server: Any, name: str, documents: list[Any], **more: Any) -> str:
    route, body, message, _ = RERANKS[name]
    reply = server.post(route, body(documents, **more))
    assert reply.status_code in (400, 422), reply.text
    assert server.post(route, body(GOOD)).status_code == 200, name
    return message(reply)


@pytest.mark.parametrize("name", RERANKS)
def test_documents(reranker: Any, name: str) -> None:
    message = told(reranker, name, [])
    assert "empty" in message or "at least one" in message, message
    message = told(reranker, name, ["a"] * 2049)
    assert all(word in message for word in ("2049", "2048", "--max-client-batch-size")), message
    message = told(reranker, name, ["a", 7])
    assert "[1]" in message or "list of strings" in message, message


@pytest.mark.parametrize("name", [name for name, how in RERANKS.items() if how[3]])
@pytest.mark.parametrize("value", [0, -1])
def test_top_n(reranker: Any, name: str, value: int) -> None:
    message = told(reranker, name, GOOD, top_n=value)
    assert f"is {value}; it must be 1 or more, or left out for all" in message
