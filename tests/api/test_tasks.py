"""Rerank, classify, sparse and token vectors over real sockets, in each dialect's shape."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import openai
import pytest

import hilbert
from hilbert.api.classify import Classification
from hilbert.api.cohere.protocol import CohereError, Ranking
from hilbert.api.infinity.protocol import FormError, InfinityRanking
from hilbert.api.openai.protocol import EmbeddingList, ErrorBody, SharedError, SparseEmbeddingList
from hilbert.api.sie.protocol import Encoded, SieError
from hilbert.core import EmbedRequest, OutputDtype, OutputType, Task, quantize
from hilbert.errors import UnsupportedTask
from hilbert.processors import TextProcessor, pair_processor
from hilbert.testing.runtime import fake_logits, fake_sparse, fake_token_vectors, fake_vector

QUERY = "hvor ligger Aarhus?"
DOCUMENTS = [
    "Aarhus er Danmarks næststørste by.",
    "Paris er hovedstaden i Frankrig.",
    "Aarhus ligger i Jylland.",
]
VECTORS = frozenset(OutputType) - {OutputType.LOGITS}
NAME = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def reranker(served: Any) -> Iterator[Any]:
    with served(OutputType.LOGITS, num_labels=1) as server:
        yield server


@pytest.fixture(scope="module")
def classifier(served: Any) -> Iterator[Any]:
    with served(OutputType.LOGITS, num_labels=3) as server:
        yield server


@pytest.fixture(scope="module")
def m3(served: Any) -> Iterator[Any]:
    with served(*VECTORS) as server:
        yield server


def ids_of(processor: TextProcessor, text: str) -> Any:
    return processor.encode(EmbedRequest((text,)), 0)[0].input_ids


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def fits(reply: Any, type_: Any, status: int = 200) -> Any:
    """The body, which is what the document says: nothing missing, nothing more."""
    assert reply.status_code == status, reply.text
    assert msgspec.to_builtins(msgspec.json.decode(reply.content, type=type_)) == reply.json()
    return reply.json()


# -- rerank -----------------------------------------------------------------------------------------


def logits_of(processor: TextProcessor, documents: list[str] = DOCUMENTS, query: str = QUERY) -> np.ndarray:
    pairs = pair_processor(processor).encode(query, documents, True, 0).sequences
    return np.array([fake_logits(s.input_ids, 1)[0] for s in pairs])


def check_results(results: list[dict[str, Any]], scores: np.ndarray) -> None:
    order = np.argsort(-scores, kind="stable")
    assert [r["index"] for r in results] == order.tolist()
    assert np.abs(np.array([r["relevance_score"] for r in results]) - scores[order]).max() < 1e-6


def test_rerank_as_infinity_answers(reranker, processor):
    logits = logits_of(processor)
    body = fits(reranker.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}), InfinityRanking)
    check_results(body["results"], 1 / (1 + np.exp(-logits)))
    assert {r["document"] for r in body["results"]} == {None}
    assert body["object"] == "rerank" and body["model"] == NAME and body["id"].startswith("infinity-")
    pairs = pair_processor(processor).encode(QUERY, DOCUMENTS, True, 0).sequences
    assert body["usage"]["total_tokens"] == sum(s.num_tokens for s in pairs)
    asked = {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True, "return_documents": True, "top_n": 2}
    body = reranker.post("/rerank", asked).json()
    assert [r["document"] for r in body["results"]] == [DOCUMENTS[r["index"]] for r in body["results"]]
    assert [r["index"] for r in body["results"]] == np.argsort(-logits, kind="stable")[:2].tolist()
    assert abs(body["results"][0]["relevance_score"] - logits.max()) < 1e-5


def test_a_prompt_stands_before_the_query(reranker):
    asked = {"query": QUERY, "documents": DOCUMENTS}
    told = reranker.post("/rerank", asked | {"prompt": "find a house: "}).json()["results"]
    spelt = reranker.post("/rerank", asked | {"query": "find a house: " + QUERY}).json()["results"]
    assert told == spelt != reranker.post("/rerank", asked).json()["results"]
    with hilbert.Client(reranker.url) as client:
        hits = client.rerank(QUERY, DOCUMENTS, prompt="find a house: ")
    assert [(hit.index, hit.score) for hit in hits] == [(r["index"], r["relevance_score"]) for r in spelt]


@pytest.mark.parametrize("route", ["/v1/rerank", "/openai/v1/rerank"])
def test_rerank_as_cohere_and_jina_answer(reranker, processor, route):
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "title": "x"}, {"text": DOCUMENTS[2]}]
    body = fits(reranker.post(route, {"model": "m", "query": QUERY, "documents": documents}), Ranking)
    check_results(body["results"], 1 / (1 + np.exp(-logits_of(processor))))
    assert all(set(r) == {"index", "relevance_score"} for r in body["results"])
    assert body["meta"]["api_version"] == {"version": "1"} and body["usage"]["total_tokens"] > 0
    asked = {"query": {"text": QUERY}, "documents": documents, "return_documents": True, "top_n": 99}
    body = fits(reranker.post(route, asked), Ranking)
    wanted = [{"text": DOCUMENTS[0]}, documents[1], documents[2]]
    assert [r["document"] for r in body["results"]] == [wanted[r["index"]] for r in body["results"]]


def test_the_reranker_of_the_first_seed(reranker):
    body = {"model": "bge-reranker-v2-m3", "query": QUERY, "documents": DOCUMENTS, "top_n": 3}
    results = reranker.post("/rerank", body).json()["results"]
    assert sorted(r["index"] for r in results) == [0, 1, 2]


def test_openais_client_reaches_rerank(reranker):
    with openai.OpenAI(base_url=reranker.url + "/v1", api_key="k", max_retries=0) as client:
        body = {"model": "m", "query": QUERY, "documents": DOCUMENTS}
        assert len(client.post("/rerank", body=body, cast_to=object)["results"]) == 3
        with pytest.raises(openai.BadRequestError, match="top_n") as refused:
            client.post("/rerank", body=body | {"top_n": 0}, cast_to=object)
        assert refused.value.param == "top_n"


def test_an_embedder_reranks_by_cosine(server, processor):
    body = server.post("/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()
    rows = unit(np.stack([fake_vector(ids_of(processor, t), 384) for t in [QUERY, *DOCUMENTS]]))
    check_results(body["results"], rows[1:] @ rows[0])


def test_a_cut_query_is_told_in_a_header(reranker):
    reply = reranker.post("/v1/rerank", {"query": "word " * 999, "documents": ["x " * 999]})
    assert reply.status_code == 200 and reply.headers["x-hilbert-warning"].startswith("query truncated: ")
    reply = reranker.post("/v1/rerank", {"query": "word", "documents": ["x " * 999]})
    assert reply.status_code == 200 and "x-hilbert-warning" not in reply.headers


GOOD = {"query": "a", "documents": ["b", "c"]}
BAD_FORMS = [
    ({"documents": ["a"]}, "query", "missing"),
    ({"query": None, "documents": ["a"]}, "query", "missing"),
    ({"query": 7, "documents": ["a"]}, "query", "int"),
    ({"query": ["a"], "documents": ["a"]}, "query", "Send a string, or an object with `text`"),
    ({"query": {}, "documents": ["a"]}, "query", "without a string `text`"),
    ({"query": "a"}, "documents", "missing"),
    ({"query": "a", "documents": []}, "documents", "empty list"),
    ({"query": "a", "documents": "text"}, "documents", "a list of strings"),
    ({"query": "a", "documents": ["b", 7]}, "documents", "documents[1]"),
    ({"query": "a", "documents": ["b", {"txt": "c"}]}, "documents", "documents[1] is an object without"),
    ({"query": "a", "documents": ["b", {"text": 7}]}, "documents", "documents[1] is an object without"),
    ({"query": "a", "documents": ["b"] * 2049}, "documents", "2049"),
    (GOOD | {"top_n": 0}, "top_n", "1 or more"),
    (GOOD | {"top_n": -1}, "top_n", "1 or more"),
    (GOOD | {"top_n": "3"}, "top_n", "str"),
    (GOOD | {"raw_scores": "yes"}, "raw_scores", "str"),
]


@pytest.mark.parametrize(("body", "param", "word"), BAD_FORMS, ids=range(len(BAD_FORMS)))
def test_a_rerank_body_of_the_wrong_form(reranker, body, param, word):
    told = fits(reranker.post("/v1/rerank", body), CohereError, 400)
    assert told["error"]["param"] == param and word in told["message"] == told["error"]["message"]
    (detail,) = fits(reranker.post("/rerank", body), FormError, 422)["detail"]
    assert detail["loc"][:2] == ["body", param] and word in detail["msg"]
    assert reranker.post("/rerank", GOOD).status_code == 200


def test_values_that_the_reranker_refuses(reranker, classifier, processor, served):
    for body, param, word in (
        (GOOD | {"documents": ["b", {"image": "data:"}]}, "documents", "documents[1] is an image"),
        (
            GOOD | {"documents": ["b", "word " * 999], "truncate": False},
            "documents",
            "documents[1] and the query",
        ),
    ):
        told = fits(reranker.post("/v1/rerank", body), CohereError, 400)
        assert told["error"]["param"] == param and word in told["message"]
        assert reranker.post("/rerank", body).status_code == 400
    told = fits(classifier.post("/v1/rerank", GOOD), CohereError, 400)
    assert "does not support `rerank`: it scores 3 labels" in told["message"]
    marker = int(ids_of(processor, "poison")[1])
    with served(OutputType.LOGITS, num_labels=1, nan_on_token=marker) as server:
        told = fits(server.post("/v1/rerank", GOOD | {"documents": ["b", "poison"]}), CohereError, 500)
        assert "documents[1]" in told["message"]
        assert server.post("/v1/rerank", GOOD).status_code == 200


# -- classify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/classify", "/v1/classify", "/openai/v1/classify"])
def test_classify(classifier, processor, route):
    texts = ["one", "two rooms"]
    for raw in (False, True):
        body = fits(classifier.post(route, {"input": texts, "raw_scores": raw}), Classification)
        assert body["object"] == "classify" and ("id" in body) == (route == "/classify")
        for text, labels in zip(texts, body["data"], strict=True):
            logits = fake_logits(ids_of(processor, text), 3).astype(np.float64)
            scores = logits if raw else np.exp(logits) / np.exp(logits).sum()
            order = np.argsort(-scores)
            assert [x["label"] for x in labels] == [f"LABEL_{i}" for i in order]
            assert np.abs(np.array([x["score"] for x in labels]) - scores[order]).max() < 1e-5
    assert classifier.post(route, {"input": "alone"}).json()["data"][0][0]["label"]
    assert body["usage"]["total_tokens"] == sum(len(ids_of(processor, t)) for t in texts)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "missing"),
        ({"input": []}, "empty list"),
        ({"input": [1]}, "input[0]"),
        ({"input": ["a"] * 2049}, "2049"),
        ({"input": "a", "labels": ["x", "y"]}, "zero-shot"),
    ],
)
def test_a_classify_body_of_the_wrong_form(classifier, body, word):
    assert word in fits(classifier.post("/v1/classify", body), ErrorBody, 400)["error"]["message"]
    assert word in fits(classifier.post("/classify", body), FormError, 422)["detail"][0]["msg"]


def test_the_wrong_task_says_what_the_model_can_do(server, classifier):
    for route, body in (("classify", {"input": "a"}), ("embeddings_sparse", {"input": "a"})):
        for base in ("", "/v1"):
            message = server.post(f"{base}/{route}", body).json()["error"]["message"]
            assert "does not support" in message and "It can: embed, rerank" in message
    for route in ("embeddings", "embeddings/colbert", "embeddings_sparse"):
        reply = classifier.post(f"/v1/{route}", {"input": "a"})
        body_type = SharedError if route == "embeddings" else ErrorBody
        assert fits(reply, body_type, 400)["error"]["code"] == "unsupported_task"


# -- vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "/v1", "/openai/v1"])
def test_the_other_vectors_of_the_first_seed(m3, processor, base):
    texts = ["hej fra Aarhus", "hello from Aarhus", ""]
    asked = {"model": "bge-m3", "input": texts}
    sparse = fits(m3.post(f"{base}/embeddings_sparse", asked), SparseEmbeddingList if base else Any)
    assert sparse["object"] == "list" and sparse["model"] == NAME
    tokens = m3.post(f"{base}/embeddings/colbert", asked).json()
    encoded = m3.post(f"{base}/embeddings/colbert", asked | {"encoding_format": "base64"}).json()
    for i, text in enumerate(texts):
        ids = ids_of(processor, text)
        item, wanted = sparse["data"][i], fake_sparse(ids)
        assert item["object"] == "sparse_embedding" and item["index"] == i
        assert list(map(int, item["embedding"])) == wanted.token_ids.tolist()
        assert np.array_equal(np.array(list(item["embedding"].values()), np.float32), wanted.weights)
        rows = unit(fake_token_vectors(ids, 4))
        item = tokens["data"][i]
        assert item["object"] == "embedding" and item["shape"] == [len(ids), 4]
        assert np.abs(np.array(item["embedding"]) - rows).max() < 1e-6
        raw = np.frombuffer(base64.b64decode(encoded["data"][i]["embedding"]), "<f4")
        assert np.abs(raw.reshape(encoded["data"][i]["shape"]) - rows).max() < 1e-6
    dense = m3.post(f"{base}/embeddings", asked).json()
    assert len(dense["data"][0]["embedding"]) == 384 and "shape" not in dense["data"][0]
    num_tokens = sum(len(ids_of(processor, t)) for t in texts)
    for body in (sparse, tokens, dense):
        assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_late_interaction_models_answer_token_vectors_on_embeddings(processor, served):
    with served(OutputType.MULTIVECTOR) as server:
        server.model.spec = msgspec.structs.replace(processor.spec, task=Task.MULTI_EMBED)
        for base in ("", "/v1"):
            reply = server.post(f"{base}/embeddings", {"input": ["one more guest"]})
            body = fits(reply, EmbeddingList) if base else reply.json()
            assert body["data"][0]["shape"] == [len(ids_of(processor, "one more guest")), 4]
        short = server.post("/v1/embeddings", {"input": "a", "dimensions": 2}).json()["data"][0]
        assert short["shape"] == [3, 2]
        for field, value in (("encoding_format", "bytes"), ("dimensions", 5)):
            told = fits(server.post("/v1/embeddings", {"input": "a", field: value}), SharedError, 400)
            assert told["error"]["param"] == field


def test_what_has_no_meaning_for_sparse_vectors_is_refused(m3):
    for field, value in (
        ("encoding_format", "base64"), ("dimensions", 3), ("output_dtype", "int8"), ("normalize", True),
    ):  # fmt: skip
        told = fits(m3.post("/v1/embeddings_sparse", {"input": "a", field: value}), ErrorBody, 400)
        assert told["error"]["param"] == field
    for body in ({"normalized": True}, {"normalized": True, "normalize": None}):
        assert m3.post("/embeddings_sparse", {"input": "a"} | body).status_code == 400
    plain = m3.post("/v1/embeddings_sparse", {"input": "a"}).json()["data"]
    assert m3.post("/v1/embeddings_sparse", {"input": "a", "normalize": False}).json()["data"] == plain
    sie = {"items": [{"text": "a"}], "params": {"output_types": ["sparse"], "options": {"normalize": True}}}
    assert m3.post("/v1/encode/m", sie).status_code == 200
    sie["params"]["options"] = {"dimensions": 3}  # type: ignore[index]
    assert "dimensions has no meaning" in m3.post("/v1/encode/m", sie).text


# -- SIE --------------------------------------------------------------------------------------------


def test_encode_returns_everything_from_one_pass(m3, processor):
    runs = m3.runtime.num_runs
    items = [{"id": "a", "text": "one more guest"}, {"text": "the hotel"}]
    asked = {"items": items, "params": {"output_types": ["dense", "sparse", "multivector"]}}
    reply = m3.post("/v1/encode/BAAI/bge-m3", asked)
    assert m3.runtime.num_runs == runs + 1
    msgspec.json.decode(reply.content, type=Encoded)
    body = reply.json()
    assert body["model"] == NAME and set(body["items"][0]) == {"id", "dense", "sparse", "multivector"}
    assert set(body["items"][1]) == {"dense", "sparse", "multivector"}
    assert set(body["timing"]) == {"total_ms", "queue_ms", "tokenization_ms", "inference_ms"}
    assert float(reply.headers["x-total-time"]) > 0
    for item, asked_item in zip(body["items"], items, strict=True):
        ids = ids_of(processor, asked_item["text"])
        dense, sparse, tokens = item["dense"], item["sparse"], item["multivector"]
        assert dense["dims"] == 384 and dense["dtype"] == "float32"
        assert np.abs(np.array(dense["values"]) - unit(fake_vector(ids, 384))).max() < 1e-6
        assert sparse["indices"] == fake_sparse(ids).token_ids.tolist()
        assert sparse["dims"] == processor.spec.vocab_size and len(sparse["values"]) == len(sparse["indices"])
        assert (tokens["num_tokens"], tokens["token_dims"]) == (len(ids), 4)
        assert np.abs(np.array(tokens["values"]) - unit(fake_token_vectors(ids, 4))).max() < 1e-6
    usual = m3.post("/v1/encode/x", {"items": items}).json()
    assert set(usual["items"][1]) == {"dense"}
    small = m3.post("/v1/encode/x", {"items": items, "params": {"output_dtype": "binary"}}).json()
    assert small["items"][0]["dense"]["dtype"] == "binary" and len(small["items"][0]["dense"]["values"]) == 48


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "at least one"),
        ({"items": []}, "at least one"),
        ({"items": [{"id": "a"}]}, "items[0] has no `text`"),
        ({"items": [{"text": "a"}, {"images": [{"data": "x"}]}]}, "items[1] is image"),
        ({"items": [{"text": 7}]}, "items[0].text"),
        ({"items": [{"text": "a"}] * 2049}, "2049"),
        ({"items": [{"text": "a"}], "params": {"output_types": ["dens"]}}, "'dens' is unknown"),
        ({"items": [{"text": "a"}], "params": {"output_dtype": "int4"}}, "'int4' is unknown"),
        (
            {"items": [{"text": "a"}, {"text": "word " * 9}], "params": {"output_types": ["logits"]}},
            "'logits'",
        ),
    ],
)
def test_encode_refuses_in_sies_words(m3, body, word):
    detail = fits(m3.post("/v1/encode/m", body), SieError, 400)["detail"]
    assert detail["code"] == "INVALID_INPUT" and word in detail["message"]


def test_sies_codes(server, serve, served, processor):
    asked = {"items": [{"text": "a"}], "params": {"output_types": ["sparse"]}}
    detail = fits(server.post("/v1/encode/m", asked), SieError, 400)["detail"]
    assert "does not support `sparse_embed`" in detail["message"]
    several = serve("one", "org/two")
    body = {"items": [{"text": "a"}]}
    assert several.post("/v1/encode/org/two", body).json()["model"] == "org/two"
    assert fits(several.post("/v1/encode/three", body), SieError, 404)["detail"]["code"] == "MODEL_NOT_FOUND"
    marker = int(ids_of(processor, "poison")[1])
    with served(OutputType.DENSE, nan_on_token=marker) as poisoned:
        detail = fits(
            poisoned.post("/v1/encode/m", {"items": [{"text": "a"}, {"text": "poison"}]}), SieError, 500
        )["detail"]
        assert detail["code"] == "INFERENCE_ERROR" and "items[1]" in detail["message"]


# -- smaller numbers --------------------------------------------------------------------------------

TEXTS = ["one more guest", "the hotel is never full", ""]


def dense_rows(server: Any, **more: Any) -> np.ndarray:
    body = server.post("/v1/embeddings", {"input": TEXTS, **more}).json()
    return np.array([item["embedding"] for item in body["data"]])


@pytest.mark.parametrize("dtype", list(OutputDtype))
def test_output_dtype_in_every_encoding(server, dtype):
    for dimensions in (None, 20):
        full = dense_rows(server, dimensions=dimensions).astype(np.float32)
        expected = quantize(full, dtype)
        asked = {"input": TEXTS, "dimensions": dimensions, "output_dtype": dtype}
        for route in ("/v1/embeddings", "/embeddings"):
            data = server.post(route, asked).json()["data"]
            assert np.array_equal(np.array([x["embedding"] for x in data]).astype(expected.dtype), expected)
            data = server.post(route, asked | {"encoding_format": "base64"}).json()["data"]
            raw = [np.frombuffer(base64.b64decode(x["embedding"]), expected.dtype) for x in data]
            assert np.array_equal(np.stack(raw), expected)
            reply = server.post(route, asked | {"encoding_format": "bytes"})
            assert f'"embed_dtype":"{expected.dtype}"' in reply.headers["metadata"]
            assert np.array_equal(
                np.frombuffer(reply.content, expected.dtype).reshape(expected.shape), expected
            )


def test_an_unknown_output_dtype_is_refused(server):
    told = fits(server.post("/v1/embeddings", {"input": "a", "output_dtype": "int4"}), SharedError, 400)
    assert told["error"]["param"] == "output_dtype" and "ubinary" in told["error"]["message"]
    assert server.post("/v1/embeddings", {"input": "a", "output_dtype": "float"}).status_code == 200


def test_the_models_default_dtype(serve):
    server = serve()
    full = dense_rows(server).astype(np.float32)
    server.model.embedding_dtype = OutputDtype.INT8
    assert np.array_equal(dense_rows(server), quantize(full, OutputDtype.INT8))
    assert np.array_equal(dense_rows(server, output_dtype="float32").astype(np.float32), full)
    # A client that names no type reads base64 as float32, and finds the same numbers.
    with openai.OpenAI(base_url=server.url + "/v1", api_key="k") as client:
        rows = np.array([x.embedding for x in client.embeddings.create(model="m", input=TEXTS).data])
    assert np.array_equal(rows, quantize(full, OutputDtype.INT8))


# -- our own client ---------------------------------------------------------------------------------


def test_the_client_reranks_and_classifies(reranker, classifier):
    with hilbert.Client(reranker.url) as client:
        hits = client.rerank(QUERY, DOCUMENTS, top_n=2, raw_scores=True)
        with pytest.raises(UnsupportedTask, match="does not support `embed`"):
            client.embed("a")
    asked = {"query": QUERY, "documents": DOCUMENTS, "top_n": 2, "raw_scores": True}
    results = reranker.post("/v1/rerank", asked).json()["results"]
    assert [(h.index, h.score) for h in hits] == [(r["index"], r["relevance_score"]) for r in results]

    async def both() -> tuple[Any, Any]:
        async with hilbert.AsyncClient(classifier.url + "/v1") as client:
            with pytest.raises(UnsupportedTask, match="3 labels"):
                await client.rerank("a", ["b"])
            return await client.classify("one"), await client.classify(["one"], raw_scores=True)

    with hilbert.Client(classifier.url) as client:
        labels = client.classify("one")
    scores, logits = asyncio.run(both())
    assert scores == labels and abs(sum(x.score for x in labels[0]) - 1) < 1e-5
    assert [x.label for x in logits[0]] == [x.label for x in labels[0]]


def test_the_client_returns_what_the_server_has_per_token_and_per_word(m3):
    with hilbert.Client(m3.url) as client:
        tokens = client.embed_multivector(["hej", "hej fra Aarhus"], dimensions=3)
        sparse = client.embed_sparse("hej fra Aarhus")
    said = m3.post("/v1/embeddings/colbert", {"input": ["hej", "hej fra Aarhus"], "dimensions": 3}).json()
    for rows, item in zip(tokens, said["data"], strict=True):
        assert list(rows.shape) == item["shape"]
        assert np.array_equal(rows, np.float32(item["embedding"]))
    weights = m3.post("/v1/embeddings_sparse", {"input": "hej fra Aarhus"}).json()["data"][0]["embedding"]
    assert dict(zip(map(str, sparse[0].token_ids), sparse[0].weights, strict=True)) == {
        word: np.float32(weight) for word, weight in weights.items()
    }
