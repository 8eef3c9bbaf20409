"""Cohere's client: versions 1 and 2, sync and async."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import numpy as np
import pytest
from clients_house import World, library

cohere = library("cohere")
CLIENT = "cohere"
KINDS = {
    "v1": (cohere.Client, cohere.AsyncClient),
    "v2": (cohere.ClientV2, cohere.AsyncClientV2),
}


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(version, what, …)`: a method of a client of either kind, by its dotted name."""

    def run(version: str, what: str, *, base=world.open, key="any", **kwargs):
        kind = KINDS[version][request.param == "async"]
        client = kind(key, base_url=base, max_retries=0)
        method = client
        for name in what.split("."):
            method = getattr(method, name)
        if request.param == "sync":
            return method(**kwargs)
        return asyncio.run(method(**kwargs))

    return run


@pytest.mark.row(CLIENT, "v1 embed: floats, embedding_types, more texts than one batch")
def test_cohere_v1_embed(call, world: World) -> None:
    asked = {"texts": world.texts, "model": "minilm", "input_type": "search_document"}
    answer = call("v1", "embed", **asked)
    assert answer.response_type == "embeddings_floats" and answer.texts == world.texts
    world.same(answer.embeddings, "dense")
    assert answer.meta.billed_units.input_tokens > len(world.texts)
    answer = call("v1", "embed", **asked, embedding_types=["float", "int8"])
    world.same(answer.embeddings.float_, "dense")
    assert np.abs(answer.embeddings.int8).max() == 127
    many = call("v1", "embed", **asked | {"texts": world.texts * 30})  # batches of 96
    assert np.abs(np.array(many.embeddings) - np.tile(world.expected["dense"], (30, 1))).max() < 1e-5


@pytest.mark.row(CLIENT, "v2 embed: every embedding type, output_dimension, truncate")
def test_cohere_v2_embed(call, world: World) -> None:
    names = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    asked = {"texts": world.texts, "model": "minilm", "input_type": "search_query"}
    found = call("v2", "embed", **asked, embedding_types=names).embeddings
    world.same(found.float_, "dense")
    world.same([np.frombuffer(base64.b64decode(text), "<f4") for text in found.base64], "dense")
    assert np.array_equal(
        np.unpackbits(np.array(found.ubinary, np.uint8), axis=1), world.expected["dense"] > 0
    )
    assert np.array_equal(np.array(found.binary) + 128, found.ubinary)
    assert np.array_equal(np.array(found.int8) + 128, found.uint8)
    scale = np.abs(world.expected["dense"]).max(axis=1, keepdims=True)
    assert np.abs(np.array(found.int8) - 127 * world.expected["dense"] / scale).max() < 0.51
    short = call("v2", "embed", **asked, output_dimension=64, truncate="START")
    world.same(short.embeddings.float_, "dense_64")


@pytest.mark.row(CLIENT, "embed: images (v1, v2), inputs of texts and images (v2)")
def test_cohere_images(call, world: World) -> None:
    files = [base64.b64encode(Path(path).read_bytes()).decode() for path in world.images]
    images = [f"data:image/png;base64,{file}" for file in files]
    for version in KINDS:
        rows = [
            call(
                version, "embed", images=[image], model="clip", input_type="image", embedding_types=["float"]
            )
            for image in images
        ]
        world.same([row.embeddings.float_[0] for row in rows], "clip_images", 1e-4)
    contents = [[{"type": "image_url", "image_url": {"url": image}}] for image in images]
    contents += [[{"type": "text", "text": text}] for text in world.texts]
    inputs = [{"content": content} for content in contents]
    asked = {"inputs": inputs, "model": "clip", "input_type": "search_document"}
    rows = call("v2", "embed", **asked, embedding_types=["float"]).embeddings.float_
    world.same(rows[: len(images)], "clip_images", 1e-4)
    world.same(rows[len(images) :], "clip_texts", 1e-4)


@pytest.mark.row(
    CLIENT, "rerank: documents sent back (v1), objects with rank_fields (v1), max_tokens_per_doc (v2)"
)
def test_cohere_rerank(call, world: World) -> None:
    asked = {"model": "reranker", "query": world.query, "documents": world.documents}
    answer = call("v1", "rerank", **asked, return_documents=True)
    world.same_ranking([(hit.index, hit.relevance_score) for hit in answer.results])
    assert [hit.document.text for hit in answer.results] == [world.documents[h.index] for h in answer.results]
    objects = [{"body": text, "text": "other"} for text in world.documents]
    answer = call("v1", "rerank", **asked | {"documents": objects}, rank_fields=["body"])
    world.same_ranking([(hit.index, hit.relevance_score) for hit in answer.results])
    answer = call("v2", "rerank", **asked, max_tokens_per_doc=4096)
    world.same_ranking([(hit.index, hit.relevance_score) for hit in answer.results])
    answer = call("v2", "rerank", **asked, top_n=2, max_tokens_per_doc=1)
    assert len(answer.results) == 2


@pytest.mark.row(CLIENT, "tokenize, detokenize (v1); models.list")
def test_cohere_tokens_and_models(call, world: World) -> None:
    told = call("v1", "tokenize", text="one more guest", model="minilm", offline=False)
    assert told.token_strings == ["one", "more", "guest"] and len(told.tokens) == 3
    text = call("v1", "detokenize", tokens=told.tokens, model="minilm", offline=False)
    assert text.text == "one more guest"
    assert {"minilm", "clip"} <= {model.name for model in call("v1", "models.list").models}


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key, an unknown model: its exceptions")
def test_cohere_errors(call, world: World) -> None:
    guarded = {"base": world.guarded, "key": world.key, "texts": ["a"], "input_type": "search_query"}
    for version in KINDS:
        with pytest.raises(cohere.BadRequestError) as told:
            call(version, "embed", **guarded | {"texts": [""], "truncate": "MIDDLE"}, model="minilm")
        assert told.value.body["message"].startswith("truncate 'MIDDLE' is unknown")
        with pytest.raises(cohere.UnauthorizedError):
            call(version, "embed", **guarded | {"key": "wrong"}, model="minilm")
        with pytest.raises(cohere.NotFoundError) as told:
            call(version, "embed", **guarded, model="nobody")
        assert "nobody" in told.value.body["message"]
        with world.full(), pytest.raises(cohere.TooManyRequestsError) as told:
            call(version, "embed", **guarded, model="minilm")
        assert told.value.body["message"]
