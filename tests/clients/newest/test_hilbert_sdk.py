"""Our own SDK, bare: an environment without the server's packages."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from clients_house import World, library

hilbert = library("hilbert")
errors = library("hilbert.errors")
CLIENT = "hilbert"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(method, …)` of a client of either kind."""

    def run(method: str, *args, base=world.open, key=None, settings=None, **kwargs):
        given = {"base_url": base, "api_key": key, **(settings or {})}
        if request.param == "sync":
            with hilbert.Client(**given) as client:
                return getattr(client, method)(*args, **kwargs)

        async def asynchronously():
            async with hilbert.AsyncClient(**given) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(asynchronously())

    return run


@pytest.mark.row(CLIENT, "embed: texts, dimensions, images by path, bytes and Pillow; a list in parts")
def test_sdk_embed(call, world: World) -> None:
    for missing in ("starlette", "openvino", "torch"):
        assert importlib.util.find_spec(missing) is None, "the bare package needs none of these"
    world.same(call("embed", world.texts, "minilm"), "dense")
    world.same(call("embed", world.texts, "minilm", dimensions=64), "dense_64")
    many = call("embed", world.texts * 50, "minilm", settings={"batch_size": 16})
    assert np.abs(many.reshape(50, *world.expected["dense"].shape) - world.expected["dense"]).max() < 1e-5
    images = [[Path(path) for path in world.images], [Path(path).read_bytes() for path in world.images]]
    images.append([library("PIL.Image", "pillow").open(path) for path in world.images])
    for given in images:
        world.same(call("embed", given, "clip"), "clip_images", 1e-4)


@pytest.mark.row(CLIENT, "encode, embed_sparse, embed_multivector")
def test_sdk_encode(call, world: World) -> None:
    found = call("encode", world.texts, "m3", ["dense", "sparse", "multivector"], settings={"batch_size": 3})
    world.same(found.dense, "m3_dense")
    for name, vectors in (
        ("m3_sparse", found.sparse),
        ("sparse", call("embed_sparse", world.texts, "splade")),
    ):
        table = np.zeros(world.expected[name].shape)
        for row, vector in zip(table, vectors, strict=True):
            row[vector.token_ids] = vector.weights
        world.same(table, name)
    for index, rows in enumerate(found.multivector):
        world.same(rows, f"m3_tokens_{index}")
    for rows, same in zip(call("embed_multivector", world.texts, "m3"), found.multivector, strict=True):
        assert np.abs(rows - same).max() < 1e-5
    # A server with several models finds one that can do it.
    assert len(call("embed_sparse", world.texts)) == len(world.texts)


@pytest.mark.row(CLIENT, "rerank, classify")
def test_sdk_scores(call, world: World) -> None:
    for settings in ({}, {"batch_size": 2}):
        hits = call("rerank", world.query, world.documents, "reranker", settings=settings)
        world.same_ranking([(hit.index, hit.score) for hit in hits])
    hits = call("rerank", world.query, world.documents, "reranker", raw_scores=True)
    world.same_ranking([(hit.index, hit.score) for hit in hits], "logits")
    rows = call("classify", world.texts, "classifier")
    assert [[found.label for found in row] for row in rows] == world.expected["labels"].tolist()
    world.same([[found.score for found in row] for row in rows], "label_scores")


@pytest.mark.row(CLIENT, "an invalid input among many, a full server, a wrong key, no server")
def test_sdk_errors(call, world: World) -> None:
    given = ["short"] * 20
    given[13] = "long " * 1000
    for method, name in (("embed", "input"), ("encode", "items")):
        with pytest.raises(errors.InputTooLong, match=rf"{name}\[13\]") as caught:
            call(method, given, "minilm", truncate=False, settings={"batch_size": 5})
        assert caught.value.index == 13
    with pytest.raises(errors.ModelNotFound, match="minilm"):
        call("embed", "a", "gpt-9")
    at = {"base": world.guarded, "key": world.key}
    with world.full():
        with pytest.raises(errors.Overloaded):
            call("embed", "a", "minilm", settings={"retry_seconds": 0}, **at)
        with pytest.raises(errors.CapacityError):
            call("encode", "a", "minilm", settings={"retry_seconds": 0}, **at)
    # One request at a time fits there: the others wait for their turn.
    found = call("embed", world.texts * 8, "minilm", settings={"batch_size": 4, "max_in_flight": 4}, **at)
    assert found.shape == (8 * len(world.texts), 384)
    with pytest.raises(errors.Unauthorized):
        call("embed", "a", "minilm", base=world.guarded, key="wrong")
    with pytest.raises(errors.ServerUnreachable, match="hilbert serve"):
        call("embed", "a", base="http://127.0.0.1:9")
