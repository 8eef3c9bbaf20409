"""Voyage's client, sync and async. Its base URL ends in `/v1`."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from clients_house import World, library
from PIL import Image

voyageai = library("voyageai")
CLIENT = "voyageai"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(method, …)` of a client of either kind."""

    def run(method: str, *, base=world.open, key="any", **kwargs):
        kind = voyageai.Client if request.param == "sync" else voyageai.AsyncClient
        client = kind(api_key=key, base_url=f"{base}/v1")
        if request.param == "sync":
            return getattr(client, method)(**kwargs)
        return asyncio.run(getattr(client, method)(**kwargs))

    return run


@pytest.mark.row(CLIENT, "embed: input_type, output_dimension, output_dtype")
def test_voyage_embed(call, world: World) -> None:
    asked = {"texts": world.texts, "model": "minilm"}
    answer = call("embed", **asked, input_type="document")
    world.same(answer.embeddings, "dense")
    assert answer.total_tokens > len(world.texts)
    world.same(call("embed", **asked, output_dimension=64).embeddings, "dense_64")
    signs = world.expected["dense"] > 0
    for dtype, offset in (("ubinary", 0), ("binary", 128)):
        packed = np.array(call("embed", **asked, output_dtype=dtype).embeddings) + offset
        assert np.array_equal(np.unpackbits(packed.astype(np.uint8), axis=1), signs)
    assert np.abs(call("embed", **asked, output_dtype="int8").embeddings).max() == 127


@pytest.mark.row(CLIENT, "rerank, with and without top_k")
def test_voyage_rerank(call, world: World) -> None:
    asked = {"query": world.query, "documents": world.documents, "model": "reranker"}
    answer = call("rerank", **asked)
    world.same_ranking([(hit.index, hit.relevance_score) for hit in answer.results])
    assert answer.total_tokens > 0
    best = call("rerank", **asked, top_k=1).results
    assert [(hit.index, hit.document) for hit in best] == [
        (answer.results[0].index, world.documents[answer.results[0].index])
    ]


@pytest.mark.row(CLIENT, "multimodal_embed: a text or an image each")
def test_voyage_multimodal(call, world: World) -> None:
    images = [Image.open(path) for path in world.images]
    answer = call("multimodal_embed", inputs=[[image] for image in images], model="clip")
    world.same(answer.embeddings, "clip_images", 1e-4)
    answer = call("multimodal_embed", inputs=[[text] for text in world.texts], model="clip")
    world.same(answer.embeddings, "clip_texts", 1e-4)
    assert answer.text_tokens == answer.total_tokens > 0
    with pytest.raises(voyageai.error.InvalidRequestError, match="has 2 pieces"):
        call("multimodal_embed", inputs=[[images[0], "and a text"]], model="clip")


@pytest.mark.row(CLIENT, "contextualized_embed (late chunking)")
def test_voyage_contextualized(call, world: World) -> None:
    answer = call("contextualized_embed", inputs=[world.texts, [world.query]], model="minilm")
    world.same(answer.results[0].embeddings, "chunks")
    world.same(answer.results[1].embeddings[0], "query")
    assert answer.total_tokens > 0


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key, a text that is too long: its exceptions")
def test_voyage_errors(call, world: World) -> None:
    asked = {"base": world.guarded, "key": world.key, "texts": ["a"], "model": "minilm"}
    with pytest.raises(voyageai.error.InvalidRequestError, match="output_dtype 'int4' is unknown"):
        call("embed", **asked, output_dtype="int4")
    with pytest.raises(voyageai.error.AuthenticationError):
        call("embed", **asked | {"key": "wrong"})
    with pytest.raises(voyageai.error.InvalidRequestError, match="the model takes at most 256"):
        call("embed", **asked | {"texts": ["guest " * 400]}, truncation=False)
    with pytest.raises(voyageai.error.InvalidRequestError, match="each a list of its chunks"):
        call("contextualized_embed", base=world.guarded, key=world.key, inputs=[[1]], model="minilm")
    with world.full(), pytest.raises(voyageai.error.RateLimitError):
        call("embed", **asked)
