"""haystack's OpenAI embedders."""

from __future__ import annotations

import pytest
from clients_house import World, library

haystack = library("haystack", "haystack-ai")
CLIENT = "haystack"


def settings(base: str, key: str) -> dict[str, object]:
    secret = haystack.utils.Secret.from_token(key)
    return {"model": "minilm", "api_base_url": f"{base}/v1", "api_key": secret, "max_retries": 0}


@pytest.mark.row(CLIENT, "OpenAITextEmbedder, OpenAIDocumentEmbedder")
def test_haystack_embedders(world: World) -> None:
    embedders = library("haystack.components.embedders", "haystack-ai")
    text = embedders.OpenAITextEmbedder(**settings(world.open, "any"))
    world.same(text.run(text=world.query)["embedding"], "query")
    document = embedders.OpenAIDocumentEmbedder(**settings(world.open, "any"), progress_bar=False)
    given = [haystack.Document(content=content) for content in world.texts]
    world.same([found.embedding for found in document.run(documents=given)["documents"]], "dense")


@pytest.mark.row(CLIENT, "OpenAITextEmbedder: an invalid input, overload, a wrong key")
def test_haystack_errors(world: World) -> None:
    openai, embedders = library("openai"), library("haystack.components.embedders", "haystack-ai")
    with pytest.raises(openai.BadRequestError, match="100000"):
        embedders.OpenAITextEmbedder(**settings(world.open, "any"), dimensions=100_000).run(text="a")
    with pytest.raises(openai.AuthenticationError):
        embedders.OpenAITextEmbedder(**settings(world.guarded, "wrong")).run(text="a")
    with world.full(), pytest.raises(openai.RateLimitError):
        embedders.OpenAITextEmbedder(**settings(world.guarded, world.key)).run(text="a")
