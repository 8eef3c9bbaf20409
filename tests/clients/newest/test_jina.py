"""Jina's API has no client library: its documented requests, sent with `requests`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_house import World, library

requests = library("requests")
CLIENT = "Jina's requests"


def post(world: World, path: str, body: dict[str, Any], key: str = "", url: str = "") -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(f"{url or world.open}/v1/{path}", json=body, headers=headers, timeout=60)


def rows(answer: Any) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


@pytest.mark.row(CLIENT, "embeddings: task, dimensions, normalized, embedding_type, {text} and {image} items")
def test_jina_embeddings(world: World) -> None:
    asked = {"model": "minilm", "input": world.texts, "task": "retrieval.passage", "normalized": True}
    world.same(rows(post(world, "embeddings", asked | {"embedding_type": "float"})), "dense")
    world.same(rows(post(world, "embeddings", asked | {"dimensions": 64, "truncate": True})), "dense_64")
    items = [{"text": text} for text in world.texts]
    texts = rows(post(world, "embeddings", asked | {"input": items, "embedding_type": "base64"}))
    world.same([np.frombuffer(base64.b64decode(text), "<f4") for text in texts], "dense")
    images = [{"image": base64.b64encode(Path(path).read_bytes()).decode()} for path in world.images]
    world.same(rows(post(world, "embeddings", {"model": "clip", "input": images})), "clip_images", 1e-4)


@pytest.mark.row(CLIENT, "embeddings: late_chunking")
def test_jina_late_chunking(world: World) -> None:
    asked = {"model": "minilm", "input": world.texts, "late_chunking": True}
    world.same(rows(post(world, "embeddings", asked)), "chunks")


@pytest.mark.row(CLIENT, "multi-vector; embeddings with return_multivector")
def test_jina_multi_vector(world: World) -> None:
    asked = {"model": "m3", "input": world.texts}
    for path, more in (("multi-vector", {}), ("embeddings", {"return_multivector": True})):
        items = post(world, path, asked | more).json()["data"]
        for index, item in enumerate(items):
            world.same(item["embeddings"], f"m3_tokens_{index}")


@pytest.mark.row(CLIENT, "rerank")
def test_jina_rerank(world: World) -> None:
    asked = {
        "model": "reranker",
        "query": world.query,
        "documents": world.documents,
        "return_documents": True,
    }
    results = post(world, "rerank", asked).json()["results"]
    world.same_ranking([(hit["index"], hit["relevance_score"]) for hit in results])
    assert [hit["document"]["text"] for hit in results] == [world.documents[hit["index"]] for hit in results]


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key: `detail`")
def test_jina_errors(world: World) -> None:
    def ask(key: str = world.key, **more: Any) -> Any:
        return post(world, "embeddings", {"model": "minilm", "input": ["a"], **more}, key, world.guarded)

    answer = ask(task="retrieval.everything")
    assert answer.status_code == 400 and "retrieval.passage" in answer.json()["detail"]
    answer = ask("wrong")
    assert answer.status_code == 401 and answer.json()["detail"]
    with world.full():
        answer = ask()
    assert answer.status_code == 429 and answer.json()["detail"] and answer.headers["retry-after"]
