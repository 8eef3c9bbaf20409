"""chroma's embedding functions."""

from __future__ import annotations

import pytest
from clients_house import World, library

functions = library("chromadb.utils.embedding_functions", "chromadb")
CLIENT = "chromadb"


@pytest.mark.row(CLIENT, "OpenAIEmbeddingFunction, in a collection")
def test_chroma_openai(world: World) -> None:
    function = functions.OpenAIEmbeddingFunction(
        model_name="minilm", api_base=f"{world.open}/v1", api_key="any"
    )
    world.same(function(world.texts), "dense")
    collection = library("chromadb").EphemeralClient().create_collection("hotel", embedding_function=function)
    collection.add(ids=[str(i) for i in range(len(world.documents))], documents=world.documents)
    distances = ((world.expected["documents"] - world.expected["query"]) ** 2).sum(1)
    found = collection.query(query_texts=[world.query], n_results=1)
    assert found["documents"] == [[world.documents[int(distances.argmin())]]]


@pytest.mark.row(CLIENT, "OpenAIEmbeddingFunction: an invalid input, overload, a wrong key")
def test_chroma_errors(world: World) -> None:
    openai = library("openai")

    def ask(key: str, num_texts: int = 1) -> None:
        function = functions.OpenAIEmbeddingFunction(
            model_name="minilm", api_base=f"{world.guarded}/v1", api_key=key
        )
        function.client.max_retries = 0
        function(["a"] * num_texts)

    with pytest.raises(openai.BadRequestError, match="2048"):
        ask(world.key, 2049)
    with pytest.raises(openai.AuthenticationError):
        ask("wrong")
    with world.full(), pytest.raises(openai.RateLimitError):
        ask(world.key)


@pytest.mark.row(CLIENT, "HuggingFaceEmbeddingServer")
def test_chroma_hugging_face_server(world: World) -> None:
    for path in ("", "/embed"):
        function = functions.HuggingFaceEmbeddingServer(url=world.at("minilm") + path)
        world.same(function(world.texts), "dense")
