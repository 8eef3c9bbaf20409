"""What clients of TEI and Ollama may ask for beside vectors of texts."""

from __future__ import annotations

import numpy as np
import pytest
from clients_house import World, library

hub = library("huggingface_hub")
ollama = library("ollama")


@pytest.mark.row("huggingface_hub InferenceClient", "feature_extraction: normalize, truncation_direction")
def test_hub_options(world: World) -> None:
    client = hub.InferenceClient(model=world.open, token="any")
    raw = client.feature_extraction(world.texts, normalize=False)
    world.same(raw / np.linalg.norm(raw, axis=1, keepdims=True), "dense")
    long = "unknown " * 300 + world.texts[0]
    for side, is_same in (("left", True), ("right", False)):
        asked = {"truncate": True, "truncation_direction": side}
        cut = [client.feature_extraction(text, **asked) for text in (long, "another beginning " * 300 + long)]
        assert bool(np.abs(cut[0] - cut[1]).max() < 1e-6) is is_same
    with pytest.raises(hub.errors.HfHubHTTPError) as caught:
        client.feature_extraction(long, truncate=False)
    assert caught.value.response.status_code == 422


@pytest.mark.row("ollama", "list, show, ps, a tag behind the name; embeddings, the old call")
def test_ollama_models(world: World) -> None:
    client = ollama.Client(host=world.open)
    assert next(model.model for model in client.list().models) == "minilm"
    assert "minilm" in [model.model for model in client.ps().models]
    shown = client.show("minilm:latest")
    assert shown.capabilities == ["embedding"] and 384 in shown.modelinfo.values()
    world.same(client.embed(model="minilm:latest", input=world.texts).embeddings, "dense")
    assert client.embed(model="minilm", input=[]).embeddings == []
    old = np.array(client.embeddings(model="minilm", prompt=world.texts[0]).embedding)
    assert np.abs(old / np.linalg.norm(old) - world.expected["dense"][0]).max() < 1e-5
