"""What each dialect's translation costs a request, in microseconds of one CPU.

    python bench/dialects.py [--texts 1 32] [--requests 160] [--rounds 25]

Calls the real application in this process, without sockets, on an engine that answers at once, and the same
served model directly, in turns. The difference is what the dialect does: routing, the gate, reading the body,
choosing the model, writing the answer. Tokenizing and finishing the rows are in both, so they are not in it.
Time is the processor's, not the clock's. Prints JSON: medians over rounds, by dialect and number of texts. A
new dialect is a line in `CASES`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilbert import hub
from hilbert.api import create_app
from hilbert.core import EmbedRequest, Output, OutputType, Request, RerankRequest
from hilbert.engine import Health
from hilbert.models import Registry, ServedModel
from hilbert.processors import TextProcessor
from hilbert.runtimes.base import RuntimeInfo
from hilbert.scheduler import Admission

TEXT = "packed rows of hidden states are attended within their own borders and no token is wasted"
NAME = "bench"
Texts = list[str]


@dataclass(frozen=True)
class Case:
    """One kind of request.

    Attributes:
        name: the dialect, and what is asked.
        path: where it goes.
        body: what is sent for these texts.
        model: the same of the model itself; None for plain vectors.
    """

    name: str
    path: str
    body: Callable[[Texts], dict[str, Any]]
    model: Callable[[Texts], EmbedRequest | RerankRequest] | None = None


def _rerank(texts: Texts) -> RerankRequest:
    return RerankRequest("who has a room", tuple(texts))


def _chunks(texts: Texts) -> EmbedRequest:
    return EmbedRequest(tuple(texts), chunks=(len(texts),), normalize=True)


def _ranked(texts: Texts) -> dict[str, Any]:
    return {"model": NAME, "query": "who has a room", "documents": texts}


CASES = [
    Case("OpenAI, float", "/v1/embeddings", lambda t: {"model": NAME, "input": t}),
    Case(
        "OpenAI, base64",
        "/v1/embeddings",
        lambda t: {"model": NAME, "input": t, "encoding_format": "base64"},
    ),
    Case("Infinity, float", "/embeddings", lambda t: {"model": NAME, "input": t}),
    Case("TEI", "/embed", lambda t: {"inputs": t}),
    Case("SIE, JSON", f"/v1/encode/{NAME}", lambda t: {"items": [{"text": x} for x in t]}),
    Case("Cohere 1, floats", "/v1/embed", lambda t: {"model": NAME, "texts": t}),
    Case(
        "Cohere 2, float and int8",
        "/v2/embed",
        lambda t: {"model": NAME, "texts": t, "embedding_types": ["float", "int8"]},
    ),
    Case(
        "Jina, base64",
        "/v1/embeddings",
        lambda t: {"model": NAME, "input": t, "task": "retrieval.passage", "embedding_type": "base64"},
    ),
    Case(
        "Jina, late chunking",
        "/v1/embeddings",
        lambda t: {"model": NAME, "input": t, "late_chunking": True},
        _chunks,
    ),
    Case(
        "Voyage, base64",
        "/v1/embeddings",
        lambda t: {"model": NAME, "input": t, "input_type": "document", "encoding_format": "base64"},
    ),
    Case(
        "Voyage, multimodal",
        "/v1/multimodalembeddings",
        lambda t: {"model": NAME, "inputs": [{"content": [{"type": "text", "text": x}]} for x in t]},
    ),
    Case(
        "Voyage, contextualized",
        "/v1/contextualizedembeddings",
        lambda t: {"model": NAME, "inputs": [t]},
        _chunks,
    ),
    Case("Infinity, rerank", "/rerank", _ranked, _rerank),
    Case("TEI, rerank", "/rerank", lambda t: {"query": "who has a room", "texts": t}, _rerank),
    Case("Cohere 1, rerank", "/v1/rerank", _ranked, _rerank),
    Case("Cohere 2, rerank", "/v2/rerank", _ranked, _rerank),
    Case("Voyage, rerank", "/v1/rerank", lambda t: _ranked(t) | {"top_k": None}, _rerank),
]


class Instant:
    """An engine that needs no time."""

    health = Health.READY
    info = RuntimeInfo(
        "none",
        "cpu",
        "float32",
        "none",
        "",
        384,
        frozenset({OutputType.DENSE, OutputType.MULTIVECTOR}),
        2048,
        token_dimensions=384,
    )

    def __init__(self) -> None:
        self._rows = np.random.default_rng(0).standard_normal((16_384, 384), dtype=np.float32)

    async def run(self, request: Request) -> Output:
        if request.outputs == {OutputType.MULTIVECTOR}:
            tables = tuple(self._rows[: s.num_tokens] for s in request.sequences)
            return Output(request.id, multivector=tables)
        return Output(request.id, dense=self._rows[: len(request.sequences)])


async def ask(app: Any, path: str, body: bytes) -> None:
    """One request through the application."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent[1]["body"][:500]


async def seconds(call: Callable[[], Awaitable[object]], num_requests: int) -> float:
    start = time.process_time()
    for _ in range(num_requests):
        await call()
    return (time.process_time() - start) / num_requests


async def measure(num_texts: list[int], num_requests: int, rounds: int) -> dict[str, Any]:
    spec = hub.resolve("bundled")
    model = ServedModel(NAME, spec, TextProcessor(spec), Instant(), Admission(10_000_000, 1024))
    app = create_app(Registry([model]))
    results: dict[str, Any] = {}
    for case in CASES:
        row: dict[str, Any] = {}
        for count in num_texts:
            texts = [f"{TEXT} {i}" for i in range(count)]
            body = json.dumps(case.body(texts)).encode()
            asked = case.model(texts) if case.model else EmbedRequest(tuple(texts), normalize=True)
            work = model.rerank if isinstance(asked, RerankRequest) else model.encode

            async def through_app(path: str = case.path, body: bytes = body) -> None:
                await ask(app, path, body)

            async def directly(work: Any = work, asked: Any = asked) -> None:
                await work(asked)

            here = max(8, num_requests // count)
            await seconds(through_app, 20)
            pairs = [(await seconds(through_app, here), await seconds(directly, here)) for _ in range(rounds)]
            row[f"{count} texts"] = {
                "translation_us": round(statistics.median(a - b for a, b in pairs) * 1e6, 1),
                "model_us": round(statistics.median(b for _, b in pairs) * 1e6, 1),
            }
        results[case.name] = row
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.texts, arguments.requests, arguments.rounds))
    about = {"requests": arguments.requests, "rounds": arguments.rounds, "python": platform.python_version()}
    print(json.dumps({"dialects": found, **about}, indent=2))


if __name__ == "__main__":
    main()
