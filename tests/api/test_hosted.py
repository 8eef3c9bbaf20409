"""Cohere, Jina and Voyage over HTTP: each answer holds the numbers of `/v1/embeddings`, in its own form."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from seeing_house import SeeingProcessor, seen

from hilbert.api import ApiSettings
from hilbert.api.cohere.protocol import CohereEmbedded, CohereError, Detokenized, Ranking, Tokens
from hilbert.api.jina.protocol import TokenEmbeddingList
from hilbert.api.openai.protocol import EmbeddingList, SharedError
from hilbert.api.voyage.protocol import ContextualizedList, MultimodalList, VoyageRanking
from hilbert.core import EmbedRequest, Modality, OutputDtype, OutputType, quantize
from hilbert.processors import TextProcessor
from hilbert.testing.runtime import fake_token_vectors

TEXTS = ["Hilbert's hotel", "one more guest"]
LONG = "one two three " * 200
PICTURE = base64.b64encode(b"a picture").decode()
DATA = f"data:image/png;base64,{PICTURE}"
NUMBERS = [t for t in OutputDtype if t not in (OutputDtype.FLOAT16, OutputDtype.FLOAT32)]


@pytest.fixture(scope="module")
def tokens(served: Any) -> Iterator[Any]:
    """A model of the kind that late chunking takes: a mean, and token vectors of four numbers."""
    with served(OutputType.DENSE, OutputType.MULTIVECTOR) as server:
        yield server


@pytest.fixture(scope="module")
def eyes(served_with: Any, spec: Any) -> Iterator[Any]:
    with served_with(SeeingProcessor(spec, Modality.IMAGE)) as server:
        yield server


@pytest.fixture(scope="module")
def prompted(served_with: Any, spec: Any) -> Iterator[Any]:
    names = {"query": "Q: ", "retrieval.passage": "P: ", "classification": "C: ", "separation": "S: "}
    texts = TextProcessor(msgspec.structs.replace(spec, prompts=names | {"text-matching": "M: "}))
    with served_with(texts) as server:
        yield server


def fits(reply: Any, type_: Any, status: int = 200) -> Any:
    """The body, which is what the document says: nothing missing, nothing more."""
    assert reply.status_code == status, reply.text
    assert msgspec.to_builtins(msgspec.json.decode(reply.content, type=type_)) == reply.json()
    return reply.json()


def rows(server: Any, texts: list[str] = TEXTS, **more: Any) -> np.ndarray:
    reply = server.post("/v1/embeddings", {"input": texts, **more})
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]], np.float32)


def unit(table: np.ndarray) -> np.ndarray:
    return table / np.linalg.norm(table, axis=-1, keepdims=True)


# -- Cohere -----------------------------------------------------------------------------------------


def test_cohere_version_1_returns_floats_unless_types_are_named(server):
    body = fits(server.post("/v1/embed", {"texts": TEXTS, "input_type": "search_query"}), CohereEmbedded)
    assert np.array_equal(np.array(body["embeddings"], np.float32), rows(server))
    assert body["response_type"] == "embeddings_floats" and body["texts"] == TEXTS
    assert (
        body["meta"]["api_version"] == {"version": "1"} and body["meta"]["billed_units"]["input_tokens"] == 11
    )
    body = server.post("/v1/embed", {"texts": TEXTS, "embedding_types": ["int8"]}).json()
    assert body["response_type"] == "embeddings_by_type" and list(body["embeddings"]) == ["int8"]


def test_cohere_returns_all_types_from_one_pass(server):
    names = ["float", "base64", *NUMBERS]
    asked = {"texts": TEXTS, "embedding_types": names, "output_dimension": 64}
    before = server.runtime.num_runs
    body = fits(server.post("/v2/embed", asked), CohereEmbedded)
    assert server.runtime.num_runs == before + 1
    floats = rows(server, dimensions=64)
    assert np.array_equal(np.array(body["embeddings"]["float"], np.float32), floats)
    for text, row in zip(body["embeddings"]["base64"], floats, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), row)
    for name in NUMBERS:
        assert np.array_equal(body["embeddings"][name], quantize(floats, name)), name
    assert list(server.post("/v2/embed", {"texts": TEXTS}).json()["embeddings"]) == ["float"]


def test_cohere_cuts_the_end_the_start_or_nothing(server, processor):
    def row(**more: Any) -> Any:
        reply = server.post("/v2/embed", {"texts": [LONG], **more})
        return reply.json().get("embeddings", reply.json())

    assert row() == row(truncate="END") == row(truncate="end")
    last = processor.encode(EmbedRequest((LONG,), truncation_side="left"), 0)[0].input_ids.tolist()
    as_ids = server.post("/v1/embeddings", {"input": [last]}).json()["data"][0]["embedding"]
    assert row(truncate="START")["float"] == [as_ids] != row()["float"]
    assert row(max_tokens=5)["float"] == row(texts=["one two three"])["float"] != row()["float"]
    assert "texts[0] has 602 tokens" in row(truncate="NONE")["message"]
    short = server.post("/v2/embed", {"texts": [LONG], "max_tokens": 5}).json()
    assert short["meta"]["billed_units"]["input_tokens"] == 5


def test_cohere_embeds_images_and_contents(eyes):
    two = np.stack([seen(b"a picture", 384)] * 2)
    body = fits(eyes.post("/v1/embed", {"images": [DATA, PICTURE], "input_type": "image"}), CohereEmbedded)
    assert np.abs(np.array(body["embeddings"]) - two).max() < 1e-6
    content = [{"type": "text", "text": DATA}], [{"type": "image_url", "image_url": {"url": DATA}}]
    body = eyes.post("/v2/embed", {"inputs": [{"content": c} for c in content]}).json()
    found = np.array(body["embeddings"]["float"])
    assert np.abs(found[1] - two[0]).max() < 1e-6 and np.abs(found[0] - two[0]).max() > 0.01


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["None of `texts`, `images` and `inputs`"]),
        ({"texts": ["a"], "images": [DATA]}, ["texts and images", "send one"]),
        ({"texts": []}, ["`texts` is an empty list"]),
        ({"texts": ["a"] * 2049}, ["2049", "2048", "--max-client-batch-size"]),
        ({"texts": [1]}, ["texts[0]", "a list of strings"]),
        ({"texts": ["a"], "embedding_types": ["int4"]}, ["int4", "ubinary"]),
        ({"texts": ["a"], "truncate": "MIDDLE"}, ["MIDDLE", "NONE, START, END"]),
        ({"texts": ["a"], "input_type": "search"}, ["input_type 'search'", "search_query"]),
        ({"texts": ["a"], "output_dimension": 385}, ["output_dimension is 385", "1 to 384"]),
        ({"texts": ["a"], "max_tokens": 2}, ["max_tokens is 2", "at least 3"]),
        ({"images": [DATA]}, ["images[0] is image", "takes text only"]),
        ({"inputs": [{"content": [{"text": "a"}, {"image": "b"}]}]}, ["inputs[0] has 2 pieces"]),
        ({"inputs": [{"content": [{"type": "text"}]}]}, ["inputs[0] is an object without"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_cohere_says_what_is_wrong(server, body, words):
    for path in ("/v1/embed", "/v2/embed"):
        told = fits(server.post(path, body), CohereError, 400)
        for word in words:
            assert word in told["message"], told["message"]
        assert told["message"] == told["detail"] == told["error"]["message"]
    told = fits(server.get("/v2/embed"), CohereError, 405)
    assert told["message"] == "/v2/embed takes POST, not GET."


def test_cohere_tokenizes_and_checks_keys(server, serve_more, processor):
    body = fits(server.post("/v1/tokenize", {"text": "one more guest", "model": "x"}), Tokens)
    assert body["tokens"] == processor.contents(["one more guest"], is_exact=True)[0][0].tolist()
    assert body["token_strings"] == ["one", "more", "guest"]
    text = fits(server.post("/v1/detokenize", {"tokens": body["tokens"]}), Detokenized)
    assert text["text"] == "one more guest"
    told = server.post("/v1/tokenize", {"text": "a" * 1_000_001}).json()
    assert told["message"].startswith("text has 1,000,001 characters")
    told = fits(server.post("/v1/detokenize", {"tokens": [5, 30522]}), CohereError, 400)
    assert "30522" in told["message"] and "30521" in told["message"]
    locked = serve_more(processor, api_key="tok_right")
    for key, status in (("tok_right", 200), ("tok_wrong", 401)):
        reply = locked.post("/v1/check-api-key", {}, headers={"authorization": f"Bearer {key}"})
        assert reply.status_code == status and reply.json().get("valid", False) is (status == 200)


# -- rerank -----------------------------------------------------------------------------------------


def test_rerank_is_answered_as_it_was_asked(served):
    with served(OutputType.LOGITS, num_labels=1) as server:
        body = {"query": "who", "documents": [*TEXTS, {"text": "room"}]}
        plain = fits(server.post("/v1/rerank", body), Ranking)["results"]
        second = fits(server.post("/v2/rerank", body | {"return_documents": True}), Ranking)
        assert second["results"] == plain and second["meta"]["api_version"] == {"version": "2"}
        for more in ({"top_k": 2}, {"top_k": None, "truncation": True}, {"truncation": True, "top_n": None}):
            voyage = fits(server.post("/v1/rerank", body | more), VoyageRanking)
            assert voyage["data"] == plain[: more.get("top_k")]
        named = server.post("/v1/rerank", body | {"top_k": 2, "return_documents": True}).json()["data"]
        assert [item["document"] for item in named] == [[*TEXTS, "room"][item["index"]] for item in named]
        assert len(fits(server.post("/v1/rerank", body | {"top_n": 1, "top_k": 2}), Ranking)["results"]) == 1
        told = fits(server.post("/v1/rerank", body | {"top_k": 0}), CohereError, 400)
        assert "`top_k` is 0" in told["message"]

        # Fields in order, a line each; documents cut to tokens.
        titled = [{"title": "Hilbert's", "text": "hotel", "year": 1924}, {"title": None, "text": "room"}]
        spelt = server.post("/v1/rerank", {"query": "who", "documents": ["1924\nHilbert's\nhotel", "room"]})
        fields = {"query": "who", "documents": titled, "rank_fields": ["year", "title", "text"]}
        assert server.post("/v1/rerank", fields).json()["results"] == spelt.json()["results"]
        told = server.post("/v1/rerank", fields | {"rank_fields": ["author"]}).json()
        assert "documents[0] has none of the fields author" in told["message"]
        cut = server.post("/v1/rerank", {"query": "who", "documents": ["one more", "room"]}).json()["results"]
        for name in ("max_tokens_per_doc", "max_doc_length"):
            asked = {"query": "who", "documents": ["one more guest in the hotel", "room"], name: 2}
            assert server.post("/v2/rerank", asked).json()["results"] == cut


def test_documents_are_cut_for_embedders_too(server):
    asked = {"query": "who", "documents": ["one more guest in the hotel", "room"], "max_tokens_per_doc": 2}
    cut = {"query": "who", "documents": ["one more", "room"]}
    assert (
        server.post("/v1/rerank", asked).json()["results"] == server.post("/v1/rerank", cut).json()["results"]
    )


# -- Jina -------------------------------------------------------------------------------------------


def test_words_for_the_purpose_pick_the_models_prompts(prompted):
    for word, prompt in (
        ("retrieval.query", "Q: "),
        ("retrieval.passage", "P: "),
        ("text-matching", "M: "),
        ("classification", "C: "),
        ("separation", "S: "),
    ):
        spelt = rows(prompted, [prompt + text for text in TEXTS])
        assert np.array_equal(rows(prompted, task=word), spelt), word
    pairs = {"search_query": "Q: ", "search_document": "P: ", "classification": "C: ", "clustering": "S: "}
    for word, prompt in pairs.items():
        body = prompted.post("/v2/embed", {"texts": TEXTS, "input_type": word}).json()
        spelt = rows(prompted, [prompt + text for text in TEXTS])
        assert np.array_equal(np.array(body["embeddings"]["float"], np.float32), spelt), word


def chunked(processor: Any, chunks: list[str]) -> np.ndarray:
    """What the fake token vectors make of a document."""
    ids = [processor.contents([chunk], is_exact=True)[0][0] for chunk in chunks]
    frame = processor.frame
    ids[0] = np.concatenate([frame.before, ids[0]])
    ids[-1] = np.concatenate([ids[-1], frame.after])
    return unit(np.stack([fake_token_vectors(i, 4).mean(axis=0) for i in ids]))


def test_late_chunking_on_the_shared_route(tokens, processor):
    body = fits(tokens.post("/v1/embeddings", {"input": TEXTS, "late_chunking": True}), EmbeddingList)
    found = np.array([item["embedding"] for item in body["data"]])
    assert np.abs(found - chunked(processor, TEXTS)).max() < 1e-6
    assert [item["index"] for item in body["data"]] == [0, 1] and body["usage"]["total_tokens"] == 9
    plain = tokens.post("/v1/embeddings", {"input": TEXTS, "late_chunking": False}).json()
    assert len(plain["data"][0]["embedding"]) == 384
    for chunk, word in (("a" * 600_000, "1,200,000 characters"), ("a " * 66_000, "tokens")):
        told = tokens.post("/v1/embeddings", {"input": [chunk, chunk], "late_chunking": True}).json()
        assert word in told["detail"] and "Send fewer at once" in told["detail"]
    told = fits(tokens.post("/v1/embeddings", {"input": ["a", ""], "late_chunking": True}), SharedError, 400)
    assert told["detail"].startswith("input[1] has no tokens of its own")


def test_jinas_words_for_numbers(server):
    for name, dtype in (("binary", "binary"), (["ubinary"], "ubinary"), ("float", "float")):
        assert np.array_equal(rows(server, embedding_type=name), rows(server, output_dtype=dtype))
    texts = server.post("/v1/embeddings", {"input": TEXTS, "embedding_type": "base64"}).json()["data"]
    assert np.array_equal(np.frombuffer(base64.b64decode(texts[0]["embedding"]), "<f4"), rows(server)[0])
    assert np.array_equal(rows(server, normalized=False), rows(server, normalize=False))
    assert not np.array_equal(rows(server, normalized=False), rows(server))
    told = server.post("/v1/embeddings", {"input": [LONG], "truncation": False}).json()
    assert "602 tokens" in told["detail"]


def test_a_vector_for_each_token_as_jina_writes_them(tokens, processor):
    asked = {"input": TEXTS, "input_type": "document"}
    for path, more in (("/v1/multi-vector", {}), ("/v1/embeddings", {"return_multivector": True})):
        body = fits(tokens.post(path, asked | more), TokenEmbeddingList)
        for item, text in zip(body["data"], TEXTS, strict=True):
            ids = processor.encode(EmbedRequest((text,)), 0)[0].input_ids
            assert item["object"] == "embeddings"
            assert np.abs(np.array(item["embeddings"]) - unit(fake_token_vectors(ids, 4))).max() < 1e-6
        coded = tokens.post(path, asked | more | {"embedding_type": "base64"}).json()["data"][0]["embeddings"]
        got = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in coded])
        assert np.allclose(got, body["data"][0]["embeddings"], atol=1e-7)


# -- Voyage -----------------------------------------------------------------------------------------


def test_voyage_embeds_one_piece_each(eyes):
    pieces = [
        {"type": "text", "text": "one more guest"},
        {"type": "image_base64", "image_base64": DATA},
        {"type": "image_url", "image_url": DATA},
    ]
    asked = {"inputs": [{"content": [piece]} for piece in pieces], "model": "x", "truncation": True}
    body = fits(eyes.post("/v1/multimodalembeddings", asked | {"input_type": None}), MultimodalList)
    found = np.array([item["embedding"] for item in body["data"]])
    assert np.abs(found[1:] - seen(b"a picture", 384)).max() < 1e-6
    assert np.abs(found[0] - rows(eyes, ["one more guest"])).max() < 1e-6
    assert body["usage"]["total_tokens"] == 5 + 2 * len(b"a picture")
    coded = eyes.post("/v1/multimodalembeddings", asked | {"encoding_format": "base64"}).json()["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(coded[1]["embedding"]), "<f4"), found[1])
    large = eyes.post("/v1/multimodalembeddings", asked | {"output_dimension": 100_000})
    assert "output_dimension is 100000" in fits(large, SharedError, 400)["detail"]
    asked["inputs"][1]["content"] += pieces[:1]
    told = fits(eyes.post("/v1/multimodalembeddings", asked), SharedError, 400)
    assert told["detail"].startswith("inputs[1] has 2 pieces; the models served here make one vector")
    assert "is missing" in fits(eyes.post("/v1/multimodalembeddings", {}), SharedError, 400)["detail"]


def test_voyage_contextualized_is_late_chunking(tokens, processor):
    inputs = [TEXTS, ["a query"], ["room", "is", "there"]]
    asked = {"inputs": inputs, "output_dimension": None, "output_dtype": None, "input_type": "document"}
    body = fits(tokens.post("/v1/contextualizedembeddings", asked), ContextualizedList)
    assert [(d["index"], [e["index"] for e in d["data"]]) for d in body["data"]] == [
        (0, [0, 1]), (1, [0]), (2, [0, 1, 2]),
    ]  # fmt: skip
    for document, chunks in zip(body["data"], inputs, strict=True):
        found = np.array([item["embedding"] for item in document["data"]])
        assert np.abs(found - chunked(processor, chunks)).max() < 1e-6
    large = tokens.post("/v1/contextualizedembeddings", asked | {"output_dimension": 100_000})
    assert "output_dimension is 100000" in fits(large, SharedError, 400)["detail"]
    small = tokens.post("/v1/contextualizedembeddings", asked | {"output_dtype": "int8"}).json()
    assert max(map(abs, small["data"][0]["data"][0]["embedding"])) == 127
    for wrong, word in (
        ([TEXTS, []], "inputs[1] is an empty list"),
        (["a", "b"], "a list of documents, each a list of its chunks"),
        ([["a"], ["b", ""]], "inputs[1][1] has no tokens of its own"),
    ):
        told = fits(tokens.post("/v1/contextualizedembeddings", {"inputs": wrong}), SharedError, 400)
        assert word in told["detail"], told["detail"]


# -- what all of them share -------------------------------------------------------------------------


def test_every_answer_carries_its_headers(serve):
    server = serve(settings=ApiSettings(limits_per_key="rate=100 burst=50 tokens=100000"))
    for path, body, status in (
        ("/v1/embeddings", {"input": "a"}, 200),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v2/embed", {"texts": ["a"]}, 200),
        ("/v1/contextualizedembeddings", {}, 400),
    ):
        reply = server.post(path, body, headers={"x-request-id": "mine"})
        assert reply.status_code == status and reply.headers["x-request-id"] == "mine"
        assert float(reply.headers["openai-processing-ms"]) > 0
        for kind in ("requests", "tokens"):
            for what in ("limit", "remaining", "reset"):
                assert reply.headers[f"x-ratelimit-{what}-{kind}"], (path, what, kind)
    for path in ("/v1/nothing", "/v2/embed"):
        assert server.get(path).headers["x-request-id"].startswith("req_")
