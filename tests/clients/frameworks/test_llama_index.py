"""llama-index over OpenAI's routes."""

from __future__ import annotations

import asyncio

import pytest
from clients_house import World, library

CLIENT = "llama-index"


def embedding(world: World, base: str, key: str, **more):
    module = library("llama_index.embeddings.openai_like", "llama-index-embeddings-openai-like")
    return module.OpenAILikeEmbedding(
        model_name="minilm", api_base=f"{base}/v1", api_key=key, embed_batch_size=3, max_retries=0, **more
    )


@pytest.mark.row(CLIENT, "OpenAILikeEmbedding: batch, query, async")
def test_llama_openai_like(world: World) -> None:
    model = embedding(world, world.open, "any")
    world.same(model.get_text_embedding_batch(world.texts), "dense")
    world.same(model.get_query_embedding(world.query), "query")
    world.same(asyncio.run(model.aget_text_embedding_batch(world.texts)), "dense")


@pytest.mark.row(CLIENT, "OpenAILikeEmbedding: an invalid input, overload, a wrong key")
def test_llama_openai_like_errors(world: World) -> None:
    openai = library("openai")
    with pytest.raises(openai.BadRequestError, match="100000"):
        embedding(world, world.open, "any", dimensions=100_000).get_text_embedding("a")
    with pytest.raises(openai.AuthenticationError):
        embedding(world, world.guarded, "wrong").get_text_embedding("a")
    with world.full(), pytest.raises(openai.RateLimitError):
        embedding(world, world.guarded, world.key).get_text_embedding("a")


@pytest.mark.row(CLIENT, "TextEmbeddingsInference: batch, query, async")
def test_llama_tei(world: World) -> None:
    package = "llama-index-embeddings-text-embeddings-inference"
    module = library("llama_index.embeddings.text_embeddings_inference", package)
    model = module.TextEmbeddingsInference(
        model_name="minilm", base_url=world.at("minilm"), embed_batch_size=3
    )
    world.same(model.get_text_embedding_batch(world.texts), "dense")
    world.same(asyncio.run(model.aget_text_embedding_batch(world.texts)), "dense")
    assert len(model.get_query_embedding(world.query)) == 384


@pytest.mark.row(CLIENT, "TextEmbeddingInference rerank (a bare token)")
def test_llama_tei_rerank(world: World) -> None:
    module = library("llama_index.postprocessor.tei_rerank", "llama-index-postprocessor-tei-rerank")
    schema = library("llama_index.core.schema", "llama-index-postprocessor-tei-rerank")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text), score=0.0) for text in world.documents]
    for base in (world.open, world.guarded):
        reranker = module.TextEmbeddingInference(
            base_url=world.at("reranker", base), auth_token=world.key, top_n=len(nodes)
        )
        found = reranker.postprocess_nodes(nodes, query_str=world.query)
        world.same_ranking([(world.documents.index(node.node.text), node.score) for node in found])
