"""A device with memory of its own, told by a real worker: its models share that, and not the machine's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_runtimes import CONTEXT, LONG, MB, OTHERS, TOTAL

from hilbert.cli.fleet import WorkerFleet
from hilbert.cli.remote import status_text
from hilbert.cli.roster import Roster
from hilbert.config import ModelSettings, ServerSettings
from hilbert.core import EmbedRequest, Task
from hilbert.models.residency import UNKNOWN_BYTES
from hilbert.runtimes.memory import DeviceMemory
from hilbert.testing.models import tiny_model
from hilbert.worker.spawn import prestart

# Of what this process may hold, 90 %, as of the machine's memory.
BUDGET = int(0.9 * (TOTAL - OTHERS - CONTEXT))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    models = []
    for number, name in enumerate(("a", "b", "c")):
        folder = tiny_model("static", tmp_path / name, seed=number)
        (weights,) = folder.rglob("*.safetensors")
        os.truncate(weights, 36 * MB)  # with the 64 MB that any model needs to work: what it will hold
        models.append(
            ModelSettings(model_id=str(folder), served_model_name=name, device="cuda", dtype="float32")
        )
    return ServerSettings(models=tuple(models), cache_dir=str(tmp_path / "cache"), worker_timeout=5.0)


def test_models_of_a_gpu_share_its_memory_and_not_the_machines(settings: ServerSettings) -> None:
    async def scene() -> None:
        fleet = WorkerFleet(settings, prestart("gpu_runtimes:make"), lambda *batch: roster.on_batch(*batch))
        roster = Roster(settings, fleet)
        a, b, c = roster.entries
        assert a.memory is b.memory is not roster.memory and a.memory is not None
        assert a.memory.device == "cuda:0" and a.memory.residency.budget_bytes == UNKNOWN_BYTES
        try:
            roster.begin()
            await roster.until_started()
            # The first one tells how much there is: two fit.
            assert a.memory.residency.budget_bytes == BUDGET
            assert sorted(entry.state.value for entry in (a, b, c)) == ["available", "loaded", "loaded"]
            for name in "abcabc":
                model = await roster.registry.take(name, Task.EMBED)
                assert (await model.embed(EmbedRequest(("a room",)))).vectors.shape == (1, model.dimensions)
                assert a.memory.used_bytes == 200 * MB <= BUDGET
            assert {entry.resident.size_bytes for entry in (a, b, c)} == {100 * MB}
            assert a.metrics.unloads["evicted"] and roster.memory.residency.residents == ()
            long, short = EmbedRequest(("room " * LONG,)), EmbedRequest(("a room",))
            await model.embed(long)
            while a.memory.used_bytes == 200 * MB:  # until a ping tells
                await asyncio.sleep(0.01)
            while b.served is not None:  # a batch looks at the memory, ten times a second at most
                await model.embed(short)
            await a.memory.unload(b)  # returns when it is gone
            assert c.served is not None and a.memory.used_bytes == 160 * MB
            await a.memory.reload(c)
            assert c.served is not None and a.memory.used_bytes == 100 * MB
            reading = roster.devices()[1]
            assert (reading.device, reading.total_bytes) == ("cuda:0", TOTAL)
            assert reading.used_bytes == OTHERS + CONTEXT + 100 * MB
        finally:
            await roster.close()
            await fleet.close()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_first_model_may_come_to_a_device_while_the_others_are_read(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are read in a thread."""
    memory = DeviceMemory(used_bytes=1, total_bytes=2)

    class Lost(SimpleNamespace):
        @property
        def pid(self) -> None:
            supervisors[f"cuda:{len(supervisors)}"] = self

        @property
        def device(self) -> DeviceMemory:
            _ = self.pid
            return memory

    fleet = WorkerFleet(settings, None, lambda *batch: None)
    supervisors = {"cpu": Lost(num_restarts=3)}
    monkeypatch.setattr(fleet, "_supervisors", supervisors)
    assert [worker.num_restarts for worker in fleet.workers()] == [3]
    assert [reading.device for reading in fleet.devices()] == ["cpu", "cuda:1"]
    assert fleet.used_bytes() == 0


def test_status_says_what_each_device_has() -> None:
    cpu = {"device": "cpu", "used_bytes": 10 * MB, "budget_bytes": 90 * MB, "floor_bytes": 5 * MB}
    gpu = {"device": "cuda:0", "used_bytes": 600 * MB, "budget_bytes": BUDGET, "floor_bytes": 0}
    status = {"version": "1", "pid": 2, "uptime_seconds": 3.0, "ready": True, "config": None, "models": []}
    text = status_text(status | {"memory": cpu, "devices": [gpu, gpu | {"budget_bytes": None}]})
    assert "\nmemory 10 MB of 90 MB\nmemory of cuda:0 600 MB of 252 MB\nmemory of cuda:0 600 MB\n" in text
