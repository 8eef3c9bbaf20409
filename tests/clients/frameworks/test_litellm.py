"""litellm's routes to servers such as ours."""

from __future__ import annotations

import asyncio

import pytest
from clients_house import World, library

litellm = library("litellm")
CLIENT = "litellm"


def vectors(answer) -> list[list[float]]:
    return [item["embedding"] for item in answer.data]


@pytest.mark.row(CLIENT, "embedding: openai/, hosted_vllm/, infinity/")
@pytest.mark.parametrize(
    ("route", "path"), [("openai", "/v1"), ("hosted_vllm", "/v1"), ("infinity", ""), ("infinity", "/v1")]
)
def test_litellm_embedding(world: World, route: str, path: str) -> None:
    given = {"model": f"{route}/minilm", "input": world.texts, "api_base": world.open + path, "api_key": "x"}
    answer = litellm.embedding(**given)
    world.same(vectors(answer), "dense")
    assert answer.usage.total_tokens > 4
    world.same(vectors(asyncio.run(litellm.aembedding(**given))), "dense")


@pytest.mark.row(CLIENT, "embedding with dimensions: openai/, hosted_vllm/, infinity/")
@pytest.mark.parametrize("route", ["openai", "hosted_vllm", "infinity"])
def test_litellm_dimensions(world: World, route: str) -> None:
    answer = litellm.embedding(
        model=f"{route}/minilm",
        input=world.texts,
        dimensions=64,
        api_base=f"{world.open}/v1",
        api_key="x",
        allowed_openai_params=["dimensions"],
    )
    world.same(vectors(answer), "dense_64")


@pytest.mark.row(CLIENT, "rerank: infinity/, hosted_vllm/, jina_ai/, cohere/")
@pytest.mark.parametrize(
    ("route", "path"),
    [("infinity", ""), ("hosted_vllm", "/v1"), ("jina_ai", ""), ("cohere", "")],
)
def test_litellm_rerank(world: World, route: str, path: str) -> None:
    answer = litellm.rerank(
        model=f"{route}/reranker",
        query=world.query,
        documents=world.documents,
        api_base=world.open + path,
        api_key="x",
    )
    world.same_ranking([(hit["index"], hit["relevance_score"]) for hit in answer.results])


@pytest.mark.row(CLIENT, "huggingface/: embedding and rerank")
def test_litellm_huggingface(world: World) -> None:
    # Without the task it asks huggingface.co what kind of model that is.
    asked = {"api_base": world.at("minilm"), "api_key": "x", "input_type": "feature-extraction"}
    answer = litellm.embedding(model="huggingface/minilm", input=world.texts, **asked)
    world.same(vectors(answer), "dense")
    answer = litellm.rerank(
        model="huggingface/reranker",
        query=world.query,
        documents=world.documents,
        api_base=world.at("reranker"),
        api_key="x",
    )
    world.same_ranking([(hit["index"], hit["relevance_score"]) for hit in answer.results])


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key: its exceptions")
def test_litellm_errors(world: World, monkeypatch) -> None:
    v1 = {"api_base": f"{world.guarded}/v1", "model": "openai/minilm", "max_retries": 0}
    with pytest.raises(litellm.BadRequestError):
        litellm.embedding(input=[], api_key=world.key, **v1)
    with pytest.raises(litellm.AuthenticationError):
        litellm.embedding(input=["a"], api_key="wrong", **v1)
    # Its own default; to litellm a `max_retries` of 0 means that.
    monkeypatch.setattr(litellm, "DEFAULT_MAX_RETRIES", 0)
    with world.full(), pytest.raises(litellm.RateLimitError):
        litellm.embedding(input=["a"], api_key=world.key, **v1)
