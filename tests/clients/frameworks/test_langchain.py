"""langchain: its OpenAI embeddings, and the community's Infinity embeddings and reranker."""

from __future__ import annotations

import asyncio

import pytest
from clients_house import World, library

CLIENT = "langchain"


def openai_embeddings(world: World, **more):
    settings = {"model": "minilm", "base_url": f"{world.open}/v1", "api_key": "any", "max_retries": 0}
    # True would send ids of OpenAI's own vocabulary, which mean nothing to another model.
    return library("langchain_openai").OpenAIEmbeddings(
        **{**settings, "check_embedding_ctx_length": False, **more}
    )


@pytest.mark.row(CLIENT, "langchain_openai.OpenAIEmbeddings: documents, query, async, dimensions")
def test_langchain_openai(world: World) -> None:
    embeddings = openai_embeddings(world)
    world.same(embeddings.embed_documents(world.texts), "dense")
    world.same(embeddings.embed_query(world.query), "query")
    world.same(asyncio.run(embeddings.aembed_documents(world.texts)), "dense")
    world.same(openai_embeddings(world, dimensions=64).embed_documents(world.texts), "dense_64")


@pytest.mark.row(CLIENT, "langchain_openai.OpenAIEmbeddings: an invalid input, overload, a wrong key")
def test_langchain_openai_errors(world: World) -> None:
    openai, v1 = library("openai"), {"base_url": f"{world.guarded}/v1"}
    with pytest.raises(openai.BadRequestError):
        openai_embeddings(world, dimensions=100_000).embed_query("a")
    with pytest.raises(openai.AuthenticationError):
        openai_embeddings(world, **v1, api_key="wrong").embed_query("a")
    with world.full(), pytest.raises(openai.RateLimitError):
        openai_embeddings(world, **v1, api_key=world.key).embed_query("a")


@pytest.mark.row(CLIENT, "langchain_community InfinityEmbeddings")
def test_langchain_infinity(world: World) -> None:
    community = library("langchain_community.embeddings")
    for path in ("", "/v1"):
        embeddings = community.InfinityEmbeddings(model="minilm", infinity_api_url=world.open + path)
        world.same(embeddings.embed_documents(world.texts), "dense")
        world.same(embeddings.embed_query(world.query), "query")
    world.same(asyncio.run(embeddings.aembed_documents(world.texts)), "dense")


@pytest.mark.row(CLIENT, "langchain_community InfinityRerank")
def test_langchain_infinity_rerank(world: World) -> None:
    compressors = library("langchain_community.document_compressors.infinity_rerank", "langchain-community")
    documents = library("langchain_core.documents", "langchain-community")
    client = library("infinity_client").Client(base_url=world.open)
    reranker = compressors.InfinityRerank(client=client, model="reranker", top_n=len(world.documents))
    given = [documents.Document(text) for text in world.documents]
    found = reranker.compress_documents(given, world.query)
    world.same_ranking(
        [(world.documents.index(d.page_content), d.metadata["relevance_score"]) for d in found]
    )


@pytest.mark.row(CLIENT, "langchain_cohere: CohereEmbeddings, CohereRerank")
def test_langchain_cohere(world: World) -> None:
    module = library("langchain_cohere", "langchain-cohere")
    embeddings = module.CohereEmbeddings(model="minilm", cohere_api_key="any", base_url=world.open)
    world.same(embeddings.embed_documents(world.texts), "dense")
    world.same(embeddings.embed_query(world.query), "query")
    reranker = module.CohereRerank(model="reranker", cohere_api_key="any", base_url=world.open, top_n=4)
    found = reranker.rerank(world.documents, world.query)
    world.same_ranking([(hit["index"], hit["relevance_score"]) for hit in found])
