"""SIE's SDK, sync and async: msgpack both ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from clients_house import World, library

sie_sdk = library("sie_sdk")
CLIENT = "sie_sdk"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(method, …)` of a client of either kind."""

    def run(method: str, *args, base=world.open, key=None, **kwargs):
        if request.param == "sync":
            with sie_sdk.SIEClient(base, api_key=key) as client:
                return getattr(client, method)(*args, **kwargs)

        async def asynchronously():
            async with sie_sdk.SIEAsyncClient(base, api_key=key) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(asynchronously())

    return run


def items(world: World) -> list[dict[str, str]]:
    return [{"id": f"t{index}", "text": text} for index, text in enumerate(world.texts)]


def filled(sparse, size: int) -> np.ndarray:
    row = np.zeros(size)
    row[sparse["indices"]] = sparse["values"]
    return row


@pytest.mark.row(CLIENT, "encode, dense")
def test_sie_dense(call, world: World) -> None:
    answer = call("encode", "minilm", items(world))
    assert [item["id"] for item in answer] == [f"t{index}" for index in range(len(world.texts))]
    world.same([item["dense"] for item in answer], "dense")
    one = call("encode", "minilm", {"text": world.texts[0]})
    assert np.abs(one["dense"] - world.expected["dense"][0]).max() < 1e-5


@pytest.mark.row(CLIENT, "encode, dense and sparse and multivector from one pass")
def test_sie_every_output(call, world: World) -> None:
    answer = call("encode", "m3", items(world), output_types=["dense", "sparse", "multivector"])
    world.same([item["dense"] for item in answer], "m3_dense")
    size = world.expected["m3_sparse"].shape[1]
    world.same([filled(item["sparse"], size) for item in answer], "m3_sparse")
    for index, item in enumerate(answer):
        world.same(item["multivector"], f"m3_tokens_{index}")


@pytest.mark.row(CLIENT, "encode, sparse (SPLADE)")
def test_sie_sparse(call, world: World) -> None:
    answer = call("encode", "splade", items(world), output_types=["sparse"])
    size = world.expected["sparse"].shape[1]
    world.same([filled(item["sparse"], size) for item in answer], "sparse")


@pytest.mark.row(CLIENT, "encode, images")
def test_sie_images(call, world: World) -> None:
    # Bytes pass as they are; the SDK makes a JPEG of everything else.
    images = [{"images": [{"data": Path(path).read_bytes(), "format": "png"}]} for path in world.images]
    answer = call("encode", "clip", images)
    world.same([item["dense"] for item in answer], "clip_images", 1e-4)


@pytest.mark.row(CLIENT, "score")
def test_sie_score(call, world: World) -> None:
    documents = [{"id": str(index), "text": text} for index, text in enumerate(world.documents)]
    answer = call("score", "reranker", {"text": world.query}, documents)
    assert [score["rank"] for score in answer["scores"]] == list(range(len(documents)))
    world.same_ranking([(int(score["item_id"]), score["score"]) for score in answer["scores"]])


@pytest.mark.row(CLIENT, "an invalid input: RequestError")
def test_sie_invalid_input(call, world: World) -> None:
    for method, arguments in (
        ("encode", ("minilm", [{"id": "nothing"}])),
        ("score", ("classifier", {"text": "q"}, [{"text": "d"}])),
        ("encode", ("gpt-9", {"text": "a"})),
    ):
        with pytest.raises(sie_sdk.RequestError) as caught:
            call(method, *arguments)
        assert caught.value.code in ("INVALID_INPUT", "MODEL_NOT_FOUND") and str(caught.value)


@pytest.mark.row(CLIENT, "a wrong key: RequestError")
def test_sie_wrong_key(call, world: World) -> None:
    with pytest.raises(sie_sdk.RequestError) as caught:
        call("encode", "minilm", {"text": "a"}, base=world.guarded, key="wrong")
    assert caught.value.status_code == 401
    assert call("encode", "minilm", {"text": "a"}, base=world.guarded, key=world.key)["dense"].shape == (384,)


@pytest.mark.row(CLIENT, "overload: it waits for room; without patience ServerError")
def test_sie_overload(call, world: World) -> None:
    at = {"base": world.guarded, "key": world.key}
    with world.full(), pytest.raises(sie_sdk.ServerError) as caught:
        call("encode", "minilm", {"text": "a"}, **at, provision_timeout_s=1.5)
    assert caught.value.code == "QUEUE_FULL"
    assert call("encode", "minilm", {"text": "a"}, **at)["dense"].shape == (384,)
