"""What is left behind when a model cannot be served after all."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hilbert import hub
from hilbert.cli.fleet import LocalFleet
from hilbert.cli.loader import ModelLoader
from hilbert.cli.roster import Roster
from hilbert.config import ModelSettings, ServerSettings
from hilbert.errors import ModelUnavailable, WeightMismatch
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


def test_an_edit_leaves_the_metrics_to_whom_they_are_about(tmp_path: Path) -> None:
    folder = tiny_model("static", tmp_path / "model")
    before = ModelSettings(model_id=str(folder), served_model_name="m")
    settings = ServerSettings(models=(before,), cache_dir=str(tmp_path / "cache"))
    after = dataclasses.replace(before, max_batch_tokens=512)
    missing = ModelSettings(model_id=str(tmp_path / "missing"))

    async def scene() -> None:
        fleet = LocalFleet(settings, lambda *batch: None)
        roster = Roster(settings, fleet)
        try:
            roster.begin()
            await roster.until_started()
            (old,) = roster.entries
            metrics, labels = old.metrics, old.metrics.read_info()
            assert metrics.read_ready() == 1 and labels["engine"]
            with pytest.raises(ModelUnavailable):
                await roster.apply(dataclasses.replace(settings, models=(after, missing)))
            assert roster.entries == (old,) and old.is_ready
            assert metrics.read_ready() == 1 and metrics.read_info() == labels
            await roster.apply(dataclasses.replace(settings, models=(after,)))
            (new,) = roster.entries
            assert new is not old and new.metrics is metrics and metrics.read_ready() == 1
            await old.memory.unload(new)
            assert metrics.read_ready() == 0
        finally:
            await roster.close()
            await fleet.close()

    asyncio.run(scene())


def test_a_model_may_leave_while_the_server_does(tmp_path: Path) -> None:
    async def scene() -> None:
        settings = ServerSettings(cache_dir=str(tmp_path / "cache"))
        fleet = LocalFleet(settings, lambda *batch: None)
        folder = str(tiny_model("static", tmp_path / "model"))
        for key in "ab":
            await fleet.open(key, ModelSettings(model_id=folder), hub.resolve(folder))
            await fleet.wait_loaded(key)
        closing = asyncio.create_task(fleet.close())
        await asyncio.sleep(0)
        await fleet.unload("b")
        await closing

    asyncio.run(scene())
