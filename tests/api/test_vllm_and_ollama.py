"""vLLM's `/score` and Ollama's `/api/embed`, with what its clients ask before it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert import __version__
from hilbert.api import ApiSettings
from hilbert.api.ollama import protocol as ollama
from hilbert.api.openai.protocol import ErrorBody
from hilbert.api.vllm.protocol import VllmScores
from hilbert.core import OutputType

QUERY, DOCUMENTS = "Where is room?", ["In Aarhus.", "In the hotel.", "Nowhere at all."]
LONG = "word " * 300


def fits(reply: Any, type_: Any) -> Any:
    assert reply.status_code == 200, reply.text
    return msgspec.convert(reply.json(), type_)


# -- vLLM -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reranker(served: Any) -> Any:
    with served(OutputType.LOGITS, num_labels=1) as server:
        yield server


def scores(server: Any, first: Any, second: Any, path: str = "/score", **more: Any) -> list[float]:
    body = fits(server.post(path, {"model": "m", "text_1": first, "text_2": second, **more}), VllmScores)
    assert [one.index for one in body.data] == list(range(len(body.data)))
    assert body.object == "list" and body.data[0].object == "score" and body.usage.total_tokens > 0
    return [one.score for one in body.data]


def reranked(server: Any, query: str, documents: list[str]) -> list[float]:
    results = server.post("/rerank", {"query": query, "documents": documents}).json()["results"]
    return [r["relevance_score"] for r in sorted(results, key=lambda r: r["index"])]


def test_scores_of_one_against_many_and_of_many_pairs(reranker, server):
    for it in (reranker, server):  # a cross-encoder, and one whose vectors are compared
        wanted = reranked(it, QUERY, DOCUMENTS)
        assert scores(it, QUERY, DOCUMENTS) == scores(it, [QUERY], DOCUMENTS, "/v1/score") == wanted
        np.testing.assert_allclose(scores(it, QUERY, DOCUMENTS[0]), wanted[:1], atol=1e-6)
        queries = [QUERY, "Who?", QUERY]
        pairs = [reranked(it, q, [d])[0] for q, d in zip(queries, DOCUMENTS, strict=True)]
        np.testing.assert_allclose(scores(it, queries, DOCUMENTS), pairs, atol=1e-6)
        many = [f"query {i}" for i in range(40)]
        found = scores(it, many, [DOCUMENTS[0]] * 40)
        np.testing.assert_allclose(
            found[::13], [reranked(it, q, DOCUMENTS[:1])[0] for q in many[::13]], atol=1e-6
        )
    for names in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        asked = dict(zip(names, (QUERY, DOCUMENTS), strict=True))
        data = reranker.post("/score", asked).json()["data"]
        assert [one["score"] for one in data] == reranked(reranker, QUERY, DOCUMENTS)
    raw = scores(reranker, QUERY, DOCUMENTS, use_activation=False)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-np.array(raw))), reranked(reranker, QUERY, DOCUMENTS), atol=1e-6
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text_1": "a"}, "`text_2` is missing"),
        ({"text_2": "a"}, "`text_1` is missing"),
        ({"text_1": "a", "text_2": []}, "`text_2` is an empty list"),
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "2 texts cannot be paired with 1"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "2 texts cannot be paired with 3"),
        ({"text_1": 1, "text_2": "a"}, "Send a string or a list of strings"),
        ({"text_1": "a", "text_2": LONG, "truncate": False}, "at most 256"),
    ],
)
def test_scores_that_cannot_be_had(reranker, body, words):
    reply = reranker.post("/score", body)
    assert reply.status_code == 400 and words in msgspec.convert(reply.json(), ErrorBody).error.message


# -- Ollama -----------------------------------------------------------------------------------------


def test_ollama_embeds(server):
    wanted = server.post("/embed", {"inputs": DOCUMENTS}).json()
    asked = {"model": "all-minilm", "input": DOCUMENTS, "keep_alive": "5m", "options": {"num_ctx": 1}}
    body = fits(server.post("/api/embed", asked), ollama.OllamaEmbeddings)
    assert body.embeddings == wanted and body.model == "all-minilm" and body.prompt_eval_count > 9
    assert body.total_duration >= body.load_duration >= 0 and body.total_duration > 0
    assert server.post("/api/embed", {"input": DOCUMENTS[0]}).json()["embeddings"] == wanted[:1]
    small = server.post("/api/embed", {"input": "a", "dimensions": 8}).json()["embeddings"]
    assert len(small[0]) == 8 and np.linalg.norm(small[0]) == pytest.approx(1, abs=1e-6)
    assert fits(server.post("/api/embed", {"input": []}), ollama.OllamaEmbeddings).embeddings == []
    old = fits(server.post("/api/embeddings", {"model": "m", "prompt": DOCUMENTS[0]}), ollama.OllamaEmbedding)
    assert [old.embedding] == server.post("/embed", {"inputs": DOCUMENTS[0], "normalize": False}).json()


def test_what_ollamas_clients_ask_first(serve):
    server = serve("minilm", "other")
    assert fits(server.get("/api/version"), ollama.OllamaVersion).version == __version__
    for path in ("/api/tags", "/api/ps"):
        models = fits(server.get(path), ollama.OllamaModels).models
        assert [model.name for model in models] == ["minilm", "other"]
    shown = fits(server.post("/api/show", {"model": "minilm:latest"}), ollama.OllamaShow)
    family = shown.details.family
    assert shown.capabilities == ["embedding"] and shown.model_info[f"{family}.embedding_length"] == 384
    assert server.post("/api/embed", {"model": "other:v1", "input": "a"}).status_code == 200
    for path, more in (
        ("/api/embed", {"input": "a"}),
        ("/api/show", {}),
        ("/api/embeddings", {"prompt": "a"}),
    ):
        reply = server.post(path, {"model": "nope:latest", **more})
        assert reply.status_code == 404 and "nope" in msgspec.convert(reply.json(), ollama.OllamaError).error


def test_ollama_refuses(serve):
    server = serve(max_concurrent_requests=1)
    for body in ({}, {"input": LONG, "truncate": False}, {"input": 1}, {"input": "a", "dimensions": 999}):
        reply = server.post("/api/embed", body)
        assert reply.status_code == 400 and list(reply.json()) == ["error"]
    assert server.post("/api/embed", {"input": LONG}).status_code == 200
    assert server.post("/api/embeddings", {}).status_code == 400
    server.model.admission.admit(1, 0.0)
    reply = server.post("/api/embed", {"input": "a"})
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
    locked = serve(settings=ApiSettings(api_key="k"))
    assert locked.post("/api/embed", {"input": "a"}).json().keys() == {"error"}
    assert locked.get("/api/tags").status_code == 401
