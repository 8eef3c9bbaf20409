"""huggingface_hub's InferenceClient, which speaks TEI's dialect at the server's root."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from clients_house import World, library

hub = library("huggingface_hub")
errors = library("huggingface_hub.errors")
CLIENT = "huggingface_hub InferenceClient"


@pytest.fixture(params=["sync", "async"])
def call(request, world: World):
    """`call(method, …, base=…)` of a client of either kind; `base` is the URL of a model."""

    def run(method: str, *args, base: str, key: str = "any", **kwargs):
        if request.param == "sync":
            return getattr(hub.InferenceClient(model=base, token=key), method)(*args, **kwargs)

        async def asynchronously():
            async with hub.AsyncInferenceClient(model=base, token=key) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(asynchronously())

    return run


@pytest.mark.row(CLIENT, "feature_extraction: one text, several, dimensions, /embed")
def test_hub_feature_extraction(call, world: World) -> None:
    for path in ("", "/embed"):
        found = call("feature_extraction", world.texts, base=world.at("minilm") + path)
        world.same(found, "dense")
    one = call("feature_extraction", world.query, base=world.at("minilm"))
    assert np.abs(np.reshape(one, -1) - world.expected["query"]).max() < 1e-5
    found = call("feature_extraction", world.texts, base=world.at("minilm"), dimensions=64, truncate=True)
    world.same(found, "dense_64")


@pytest.mark.row(CLIENT, "sentence_similarity")
def test_hub_sentence_similarity(call, world: World) -> None:
    found = call("sentence_similarity", world.query, world.documents, base=world.at("minilm"))
    wanted = world.expected["documents"] @ world.expected["query"]
    assert np.abs(np.array(found) - wanted).max() < 1e-5


@pytest.mark.row(CLIENT, "text_classification")
def test_hub_text_classification(call, world: World) -> None:
    found = call("text_classification", world.texts[0], base=world.at("classifier"))
    assert [row.label for row in found] == world.expected["labels"][0].tolist()
    assert np.abs([row.score for row in found] - world.expected["label_scores"][0]).max() < 1e-5
    (best,) = call("text_classification", world.texts[0], base=world.at("classifier"), top_k=1)
    assert best.label == found[0].label


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key: HfHubHTTPError")
def test_hub_errors(call, world: World) -> None:
    def status(key: str, **more) -> int:
        with pytest.raises(errors.HfHubHTTPError) as caught:
            call("feature_extraction", "a", base=world.at("minilm", world.guarded), key=key, **more)
        return caught.value.response.status_code

    assert status("wrong") == 401
    assert status(world.key, dimensions=100_000) == 422
    with world.full():
        assert status(world.key) == 429
