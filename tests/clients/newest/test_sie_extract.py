"""SIE's SDK: classes of a classifier, entities, profiles behind a name, what is served."""

from __future__ import annotations

import numpy as np
import pytest
from clients_house import World, library

sie_sdk = library("sie_sdk")
CLIENT = "sie_sdk"


@pytest.mark.row(CLIENT, "extract: classes, some of them by labels")
def test_sie_extract(world: World) -> None:
    items = [{"id": str(index), "text": text} for index, text in enumerate(world.texts)]
    with sie_sdk.SIEClient(world.open) as client:
        answer = client.extract("classifier", items)
        some = client.extract("classifier", items[0], labels=["joy"])
    assert [item["id"] for item in answer] == [item["id"] for item in items]
    found = [[c["label"] for c in item["classifications"]] for item in answer]
    assert found == world.expected["labels"].tolist()
    scores = np.array([[c["score"] for c in item["classifications"]] for item in answer])
    assert np.abs(scores - world.expected["label_scores"]).max() < 1e-5
    assert [c["label"] for c in some["classifications"]] == ["joy"] and some["entities"] == []


@pytest.mark.row(CLIENT, "extract: entities by labels, with options")
def test_sie_entities(world: World) -> None:
    items = [{"text": text} for text in world.texts]
    with sie_sdk.SIEClient(world.open) as client:
        answer = client.extract("gliner", items, labels=world.kinds)
        none = client.extract("gliner", items[0], labels=world.kinds, options={"threshold": 1.0})
        with pytest.raises(sie_sdk.RequestError) as caught:
            client.extract("gliner", items[0])
    found = [(index, e) for index, item in enumerate(answer) for e in item["entities"]]
    assert found and all(world.texts[i][e["start"] : e["end"]] == e["text"] for i, e in found)
    places = [[index, e["start"], e["end"]] for index, e in found]
    assert places == world.expected["entity_places"].tolist()
    assert [e["label"] for _, e in found] == world.expected["entity_labels"].tolist()
    world.same([e["score"] for _, e in found], "entity_scores")
    assert none["entities"] == [] and caught.value.code == "INVALID_INPUT"


@pytest.mark.row(CLIENT, "model:profile; list_models; extract of a model that does not classify")
def test_sie_names(world: World) -> None:
    with sie_sdk.SIEClient(world.open) as client:
        one = client.encode("minilm:fast", {"text": world.texts[0]})
        names = [model["name"] for model in client.list_models()]
        with pytest.raises(sie_sdk.RequestError) as caught:
            client.extract("minilm", {"text": "a"})
    assert np.abs(one["dense"] - world.expected["dense"][0]).max() < 1e-5
    assert names[:2] == ["minilm", "reranker"] and caught.value.code == "INVALID_INPUT"
