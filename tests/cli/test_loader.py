"""What the loader leaves behind when a model cannot be served after all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hilbert import hub
from hilbert.cli.loader import ModelLoader
from hilbert.config import ModelSettings, ServerSettings
from hilbert.errors import WeightMismatch
from hilbert.models import Entry, Resident
from hilbert.scheduler import Admission
from hilbert.testing.models import tiny_model


class Fleet:
    """Loads whatever it is told to, at once."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()

    async def open(self, key: str, model: Any, spec: Any) -> object:
        assert key not in self.loaded
        self.loaded.add(key)
        return object()

    async def wait_loaded(self, key: str) -> None:
        assert key in self.loaded

    async def unload(self, key: str) -> None:
        self.loaded.remove(key)


def test_an_engine_whose_model_cannot_be_served_is_given_back(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model", head="routed")
    table = folder / "query_0_SparseStaticEmbedding" / "model.safetensors"
    whole = table.read_bytes()
    save_file({"weight": np.zeros((3, 3), np.float32)}, table)
    model, fleet = ModelSettings(model_id=str(folder)), Fleet()
    entry = Entry("m", Admission(10, 10), resident=Resident("m", 0))

    async def scene() -> None:
        loader = ModelLoader(ServerSettings(models=(model,)), fleet)  # type: ignore[arg-type]  # what is used
        loader.models["m"] = model
        with pytest.raises(WeightMismatch, match="holds no vector of token weights"):
            await loader.load(entry, hub.resolve(str(folder)))
        assert not fleet.loaded
        table.write_bytes(whole)
        assert (await loader.load(entry, hub.resolve(str(folder)))).name == "m" and fleet.loaded

    asyncio.run(scene())
