"""vLLM's `/score`, which its users call through the openai client."""

from __future__ import annotations

import pytest
from clients_house import World, library

openai = library("openai")
CLIENT = "openai 3, for vLLM"


@pytest.mark.row(CLIENT, 'post("/score"): one text against many, pair by pair')
def test_vllm_score(world: World) -> None:
    client = openai.OpenAI(api_key="any", base_url=f"{world.open}/v1", max_retries=0)

    def scores(first, second) -> list[float]:
        asked = {"model": "reranker", "text_1": first, "text_2": second}
        return [one["score"] for one in client.post("/score", body=asked, cast_to=object)["data"]]

    for first in (world.query, [world.query] * len(world.documents)):
        found = scores(first, world.documents)
        order = sorted(range(len(found)), key=lambda index: -found[index])
        world.same_ranking([(index, found[index]) for index in order])


@pytest.mark.row(CLIENT, 'post("/score"): an invalid input, overload, a wrong key, no such model')
def test_vllm_score_errors(world: World) -> None:
    asked = {"model": "reranker", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]}
    client = openai.OpenAI(api_key="any", base_url=f"{world.open}/v1", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="cannot be paired"):
        client.post("/score", body=asked, cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.post("/score", body={**asked, "model": "x", "text_1": "a"}, cast_to=object)
    guarded = openai.OpenAI(api_key="wrong", base_url=f"{world.guarded}/v1", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        guarded.post("/score", body=asked, cast_to=object)
    guarded = openai.OpenAI(api_key=world.key, base_url=f"{world.guarded}/v1", max_retries=0)
    full = {"model": "minilm", "text_1": "a", "text_2": "b"}
    with world.full(), pytest.raises(openai.RateLimitError):
        guarded.post("/score", body=full, cast_to=object)
