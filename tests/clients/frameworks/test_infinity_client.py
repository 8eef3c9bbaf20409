"""Infinity's generated client, on the bare routes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from clients_house import World, library
from PIL import Image

infinity_client = library("infinity_client")
from infinity_client.api.default import (  # noqa: E402  # there now
    classify,
    embeddings,
    health,
    models,
    rerank,
)
from infinity_client.models import (  # noqa: E402
    ClassifyInput,
    HTTPValidationError,
    OpenAIEmbeddingInputText,
    RerankInput,
)

CLIENT = "infinity_client"


def client(world: World):
    return infinity_client.Client(base_url=world.open, raise_on_unexpected_status=True)


def text_input(model: str, texts: list[str]) -> OpenAIEmbeddingInputText:
    return OpenAIEmbeddingInputText.from_dict(
        {"model": model, "input": texts, "modality": "text", "encoding_format": "float"}
    )


@pytest.mark.row(CLIENT, "embeddings, sync and async")
def test_infinity_embeddings(world: World) -> None:
    body = text_input("minilm", world.texts)
    answer = embeddings.sync(client=client(world), body=body)
    world.same([item.embedding for item in answer.data], "dense")
    assert answer.model == "minilm" and answer.usage.total_tokens > 4

    async def asynchronously():
        return await embeddings.asyncio(client=client(world), body=body)

    world.same([item.embedding for item in asyncio.run(asynchronously()).data], "dense")


@pytest.mark.row(CLIENT, "rerank")
def test_infinity_rerank(world: World) -> None:
    body = RerankInput(query=world.query, documents=world.documents, model="reranker", return_documents=True)
    answer = rerank.sync(client=client(world), body=body)
    world.same_ranking([(hit.index, hit.relevance_score) for hit in answer.results])
    assert [hit.document for hit in answer.results] == [world.documents[hit.index] for hit in answer.results]


@pytest.mark.row(CLIENT, "classify")
def test_infinity_classify(world: World) -> None:
    answer = classify.sync(client=client(world), body=ClassifyInput(input_=world.texts, model="classifier"))
    rows = [[(found.label, found.score) for found in row] for row in answer.data]
    assert [[label for label, _ in row] for row in rows] == world.expected["labels"].tolist()
    world.same([[score for _, score in row] for row in rows], "label_scores")


@pytest.mark.row(CLIENT, "models, health")
def test_infinity_models(world: World) -> None:
    listed = {model.id: model for model in models.sync(client=client(world)).data}
    assert set(listed) == {"minilm", "reranker", "classifier", "splade", "m3", "clip", "gliner"}
    assert listed["reranker"].stats is not None
    assert health.sync_detailed(client=client(world)).status_code == 200


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key")
def test_infinity_errors(world: World) -> None:
    refused = embeddings.sync(client=client(world), body=text_input("minilm", []))
    assert isinstance(refused, HTTPValidationError) and refused.detail[0].loc[:2] == ["body", "input"]
    kinds = infinity_client
    guarded = kinds.AuthenticatedClient(world.guarded, "wrong")
    assert embeddings.sync_detailed(client=guarded, body=text_input("minilm", ["a"])).status_code == 401
    guarded = kinds.AuthenticatedClient(world.guarded, world.key)
    assert embeddings.sync_detailed(client=guarded, body=text_input("minilm", ["a"])).status_code == 200
    with world.full():
        answer = embeddings.sync_detailed(client=guarded, body=text_input("minilm", ["a"]))
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1


@pytest.mark.row(CLIENT, "vision_client.InfinityVisionAPI: texts and images, base64 and float")
@pytest.mark.parametrize("form", ["base64", "float"])
def test_infinity_vision_client(world: World, form: str) -> None:
    vision = library("infinity_client.vision_client", "infinity-client")
    api = vision.InfinityVisionAPI(world.open, format=form, model="clip")
    texts, num_tokens = api.embed("clip", world.texts).result()
    world.same(np.reshape(texts, (len(world.texts), -1)), "clip_texts")
    assert num_tokens > len(world.texts)
    # It makes a JPEG of every image.
    images = [Image.open(path) for path in world.images]
    rows, _ = api.image_embed("clip", images).result()
    world.same(np.reshape(rows, (len(images), -1)), "clip_jpegs", 1e-3)
    api.tp.shutdown()
