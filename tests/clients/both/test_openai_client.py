"""The official `openai`, in its two living majors: 3 in one environment, 2 in the other."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import numpy as np
import pytest
from clients_house import World, library

openai = library("openai")
CLIENT = "openai 3 and 2"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(what, …)`: a method of a client of either kind, by its dotted name."""

    def run(what: str, *args, base=f"{world.open}/v1", key="any", **kwargs):
        settings = {"base_url": base, "api_key": key, "max_retries": 0}
        kind = openai.OpenAI if request.param == "sync" else openai.AsyncOpenAI

        def method(client):
            for name in what.split("."):
                client = getattr(client, name)
            return client(*args, **kwargs)

        if request.param == "sync":
            with kind(**settings) as client:
                return method(client)

        async def asynchronously():
            async with kind(**settings) as client:
                return await method(client)

        return asyncio.run(asynchronously())

    return run


def rows(answer) -> list[list[float]]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


@pytest.mark.row(CLIENT, "embeddings.create")
def test_embeddings(call, world: World) -> None:
    answer = call("embeddings.create", model="minilm", input=world.texts)
    world.same(rows(answer), "dense")
    assert answer.object == "list" and answer.model == "minilm"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(world.texts)
    one = call("embeddings.create", model="minilm", input=world.texts[0], user="somebody")
    assert np.abs(np.array(rows(one)[0]) - world.expected["dense"][0]).max() < 1e-5


@pytest.mark.row(CLIENT, "embeddings.create, encoding_format float")
def test_floats(call, world: World) -> None:
    world.same(
        rows(call("embeddings.create", model="minilm", input=world.texts, encoding_format="float")), "dense"
    )


@pytest.mark.row(CLIENT, "embeddings.create, dimensions")
def test_dimensions(call, world: World) -> None:
    answer = call("embeddings.create", model="minilm", input=world.texts, dimensions=64)
    world.same(rows(answer), "dense_64")


@pytest.mark.row(CLIENT, "embeddings.create, the model's own token ids")
def test_token_ids(call, world: World) -> None:
    # [CLS] a [SEP] of the model's vocabulary; langchain sends lists of such ids.
    ids = call("embeddings.create", model="minilm", input=[[101, 1037, 102]])
    text = call("embeddings.create", model="minilm", input="a")
    assert np.abs(np.array(rows(ids)) - np.array(rows(text))).max() < 1e-5


@pytest.mark.row(CLIENT, "embeddings.create, images (extra_body modality)")
def test_images(call, world: World) -> None:
    data = [f"data:image/png;base64,{base64.b64encode(Path(p).read_bytes()).decode()}" for p in world.images]
    answer = call("embeddings.create", model="clip", input=data, extra_body={"modality": "image"})
    world.same(rows(answer), "clip_images", 1e-4)


@pytest.mark.row(CLIENT, "models.list, models.retrieve")
def test_models(call, world: World) -> None:
    listed = {model.id for model in call("models.list").data}
    assert {"minilm", "reranker", "classifier", "splade", "m3", "clip", "gliner"} <= listed
    assert call("models.retrieve", "minilm").id == "minilm"


@pytest.mark.row(CLIENT, 'post("/rerank")')
def test_rerank_through_post(call, world: World) -> None:
    body = {"model": "reranker", "query": world.query, "documents": world.documents}
    answer = call("post", "/rerank", body=body, cast_to=object)
    world.same_ranking([(hit["index"], hit["relevance_score"]) for hit in answer["results"]])


@pytest.mark.row(CLIENT, "an unknown model: NotFoundError")
def test_unknown_model(call, world: World) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        call("embeddings.create", model="gpt-9", input="a")
    error = caught.value
    assert (error.code, error.param) == ("model_not_found", "model") and "minilm" in str(error)
    assert error.request_id


@pytest.mark.row(CLIENT, "an invalid input: BadRequestError")
def test_invalid_input(call, world: World) -> None:
    for asked in ({"input": []}, {"input": "a", "dimensions": -1}, {"input": [[10**9]]}):
        with pytest.raises(openai.BadRequestError) as caught:
            call("embeddings.create", model="minilm", **asked)
        assert caught.value.type == "invalid_request_error" and caught.value.param in ("input", "dimensions")


@pytest.mark.row(CLIENT, "overload: RateLimitError with Retry-After")
def test_overload(call, world: World) -> None:
    with world.full(), pytest.raises(openai.RateLimitError) as caught:
        call("embeddings.create", model="minilm", input="a", base=f"{world.guarded}/v1", key=world.key)
    assert caught.value.code == "overloaded"
    assert float(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.row(CLIENT, "a wrong key: AuthenticationError")
def test_wrong_key(call, world: World) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        call("embeddings.create", model="minilm", input="a", base=f"{world.guarded}/v1", key="wrong")
    assert caught.value.code == "invalid_api_key"
    call("embeddings.create", model="minilm", input="a", base=f"{world.guarded}/v1", key=world.key)


@pytest.mark.row(CLIENT, "base URLs: /v1, /openai/v1 and the bare routes")
def test_bases(call, world: World) -> None:
    for path in ("/v1", "/openai/v1", ""):
        answer = call("embeddings.create", model="minilm", input=world.texts, base=world.open + path)
        world.same(rows(answer), "dense")
