"""llama-index over OpenAI's routes."""

from __future__ import annotations

import asyncio

import pytest
from clients_house import World, library

CLIENT = "llama-index"


def embedding(world: World, base: str, key: str):
    module = library("llama_index.embeddings.openai_like", "llama-index-embeddings-openai-like")
    return module.OpenAILikeEmbedding(
        model_name="minilm", api_base=f"{base}/v1", api_key=key, embed_batch_size=3, max_retries=0
    )


@pytest.mark.row(CLIENT, "OpenAILikeEmbedding: batch, query, async")
def test_llama_openai_like(world: World) -> None:
    model = embedding(world, world.open, "any")
    world.same(model.get_text_embedding_batch(world.texts), "dense")
    world.same(model.get_query_embedding(world.query), "query")
    world.same(asyncio.run(model.aget_text_embedding_batch(world.texts)), "dense")


@pytest.mark.row(CLIENT, "OpenAILikeEmbedding: overload, a wrong key")
def test_llama_openai_like_errors(world: World) -> None:
    openai = library("openai")
    with pytest.raises(openai.AuthenticationError):
        embedding(world, world.guarded, "wrong").get_text_embedding("a")
    with world.full(), pytest.raises(openai.RateLimitError):
        embedding(world, world.guarded, world.key).get_text_embedding("a")
