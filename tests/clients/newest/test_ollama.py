"""Ollama's own client."""

from __future__ import annotations

import asyncio

import pytest
from clients_house import World, library

ollama = library("ollama")
CLIENT = "ollama"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(method, …)` of a client of either kind."""

    def run(method: str, *args, base=world.open, key="any", **kwargs):
        headers = {"authorization": f"Bearer {key}"}
        if request.param == "sync":
            return getattr(ollama.Client(base, headers=headers), method)(*args, **kwargs)

        async def asynchronously():
            return await getattr(ollama.AsyncClient(base, headers=headers), method)(*args, **kwargs)

        return asyncio.run(asynchronously())

    return run


@pytest.mark.row(CLIENT, "embed: one text, several, dimensions")
def test_ollama_embed(call, world: World) -> None:
    answer = call("embed", "minilm", world.texts)
    world.same(answer.embeddings, "dense")
    assert answer.model == "minilm" and answer.prompt_eval_count > len(world.texts)
    world.same(call("embed", "minilm", world.query).embeddings[0], "query")
    world.same(call("embed", "minilm", world.texts, dimensions=64).embeddings, "dense_64")


@pytest.mark.row(CLIENT, "an invalid input, an unknown model, overload, a wrong key: ResponseError")
def test_ollama_errors(call, world: World) -> None:
    def status(model: str = "minilm", key: str = world.key, **more) -> int:
        with pytest.raises(ollama.ResponseError) as caught:
            call("embed", model, "a", base=world.guarded, key=key, **more)
        assert caught.value.error
        return caught.value.status_code

    assert status("gpt-9") == 404
    assert status(dimensions=100_000) == 400
    assert status(key="wrong") == 401
    with world.full():
        assert status() in (429, 503)
