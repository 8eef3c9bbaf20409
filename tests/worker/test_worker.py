"""Requests to a worker process and back, while all is well."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import worker_runtimes as danger
from worker_house import PATIENCE, spec, until

from hilbert.config.machine import resident_bytes
from hilbert.engine import EngineLimits, Health
from hilbert.errors import (
    EngineError,
    ModelLoading,
    RequestTimeout,
    ShuttingDown,
    UnsupportedArchitecture,
)
from hilbert.runtimes.base import RuntimeSettings
from hilbert.worker.journal import NUM_LANES

pytestmark = pytest.mark.anyio


class TestRequests:
    async def test_vectors_and_order(self, house):
        output = await house.embed([1], [2, 3], [4, 5, 6])
        assert output.queue_seconds >= 0 and output.inference_seconds > 0
        assert output.dense.flags.writeable

    async def test_many_at_once(self, house):
        await asyncio.gather(*[house.embed([n], [n, n + 1]) for n in range(300)])

    async def test_a_request_larger_than_any_socket_buffer(self, house):
        inputs = [[n] * 512 for n in range(2048)]  # 4 MB out
        await house.embed(*inputs)

    async def test_large_answers(self, open_house):
        house = await open_house(load=False)
        big = spec()
        big = type(big)(**{**{f: getattr(big, f) for f in big.__struct_fields__}, "dimensions": 4096})
        model = await house.supervisor.load("big", big, RuntimeSettings())
        request = house.request(*[[n] for n in range(1024)])  # 16 MB back
        output = await asyncio.wait_for(model.run(request), PATIENCE)
        assert output.dense.shape == (1024, 4096)

    async def test_only_the_bad_input_fails(self, house):
        request = house.request([1], [2, danger.RAISE], [3])
        output = await house.model.run(request)
        assert list(output.errors) == [1]
        assert isinstance(output.errors[1], EngineError) and output.errors[1].index == 1
        assert not output.dense[1].any() and output.dense[0].any() and output.dense[2].any()

    async def test_callers_may_use_the_same_id(self, house):
        requests = [house.request([n]) for n in range(20)]
        same = [type(r)(7, r.sequences) for r in requests]
        outputs = await asyncio.gather(*[house.model.run(r) for r in same])
        assert {o.request_id for o in outputs} == {7}
        assert len({o.dense.tobytes() for o in outputs}) == 20

    async def test_batches_are_reported(self, house):
        await house.embed([1, 2], [3])
        await until(lambda: bool(house.batches), "the batch is reported")
        key, stats = house.batches[0]
        assert key == "model"
        assert (stats.num_sequences, stats.num_tokens) == (2, 3)

    async def test_limits_of_batches(self, open_house):
        house = await open_house(limits=EngineLimits(max_batch_tokens=4, max_batch_sequences=1))
        await house.embed([1], [2], [3])
        await until(lambda: len(house.batches) == 3, "one batch per sequence")

    async def test_memory_is_known(self, house):
        await until(lambda: house.supervisor.resident_bytes > 10_000_000, "a pong has come")


class TestDeadlines:
    async def test_in_the_queue(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.5})
        first = house.start([1])
        await asyncio.sleep(0.05)
        with pytest.raises(RequestTimeout):
            await house.embed([2], deadline=0.1)
        await first

    async def test_the_front_answers_when_the_worker_cannot(self, open_house):
        house = await open_house(worker_timeout_seconds=20.0)
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            await house.embed([danger.KEEP_GIL], deadline=0.3)
        assert time.monotonic() - start < 2.0


class TestCancel:
    async def test_queued_work_is_dropped(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.2, "max_batch_tokens": 1})
        blocker = house.start([1])
        await asyncio.sleep(0.05)
        doomed = [house.start([n]) for n in range(2, 52)]  # ten seconds of work
        await asyncio.sleep(0.05)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        start = time.monotonic()
        await house.embed([99])
        assert time.monotonic() - start < 2.0
        await blocker
        assert house.supervisor.num_pending == 0


class TestModels:
    async def test_several_share_a_worker(self, house):
        other = await house.load("other")
        await asyncio.gather(
            *[house.embed([n]) for n in range(50)], *[house.embed([n], model=other) for n in range(50)]
        )
        assert {key for key, _ in house.batches} == {"model", "other"}

    async def test_others_go_on_while_one_loads(self, house, tmp_path):
        gate = tmp_path / "gate"
        loading = house.supervisor.begin_load("slow", spec(wait_for=str(gate)), RuntimeSettings())
        await house.embed([1])
        assert loading.health is Health.LOADING and house.model.health is Health.READY
        with pytest.raises(ModelLoading) as error:
            await house.embed([1], model=loading)
        assert error.value.retry_after_seconds
        gate.touch()
        await house.supervisor.wait_loaded(loading)
        assert loading.health is Health.READY
        await house.embed([1], model=loading)

    async def test_a_load_that_fails(self, house, tmp_path):
        trap = tmp_path / "trap"
        trap.touch()
        with pytest.raises(UnsupportedArchitecture, match="no program"):
            await house.load("bad", fail_while_exists=str(trap))
        assert list(house.supervisor.models) == ["model"]
        await house.embed([1])
        trap.unlink()
        await house.load("bad", fail_while_exists=str(trap))

    async def test_a_load_that_kills_the_worker(self, house, tmp_path):
        trap = tmp_path / "trap"
        trap.touch()
        with pytest.raises(EngineError, match="died"):
            await house.load("bad", die_while_exists=str(trap))
        await house.embed([1])
        assert house.model.health is Health.READY

    async def test_unload_gives_memory_back(self, house):
        big = await house.load("big", ballast_bytes=200 << 20, seconds_per_batch=0.2)
        await until(lambda: house.supervisor.resident_bytes > 200 << 20, "the memory is taken")
        waiting = house.start([1], model=big)
        await until(lambda: house.supervisor.num_pending == 1, "it is posted")
        await house.supervisor.unload("big")
        await waiting
        assert big.health is Health.STOPPED
        await until(lambda: house.supervisor.resident_bytes < 150 << 20, "the memory is back")
        with pytest.raises(ShuttingDown):
            await house.embed([1], model=big)
        await house.embed([2])

    async def test_a_load_that_fails_gives_memory_back(self, house):
        before = resident_bytes(house.pid)
        with pytest.raises(UnsupportedArchitecture, match="200000 pieces"):
            await house.load("bad", fail_after_bytes=200_000_000)
        assert resident_bytes(house.pid) < before + 50_000_000

    async def test_unloaded_while_it_is_traced(self, house, tmp_path):
        traced = tmp_path / "traced"
        slow = asyncio.create_task(house.load("slow", traced_when=str(traced), ballast_bytes=200 << 20))
        await house.embed([1])
        await house.supervisor.unload("slow")
        with pytest.raises(ShuttingDown, match="slow is being unloaded"):
            await slow
        traced.touch()
        await house.load("other")  # what came while the first one was traced was built at once
        await house.load("traced", traced_when=str(traced))  # and this after it
        await until(lambda: 0 < house.supervisor.resident_bytes < 150 << 20, "nothing of it is left")

    @pytest.mark.parametrize("end", ["answer", "loss", "close"])
    async def test_whoever_unloads_a_model_may_leave(self, house, end):
        await house.load("other")
        if end != "answer":
            os.kill(house.pid, signal.SIGSTOP)  # so that it does not answer
        leaves, stays = (asyncio.create_task(house.supervisor.unload(key)) for key in ("other", "model"))
        await asyncio.sleep(0)  # both have told the worker
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        if end == "loss":
            os.kill(house.pid, signal.SIGKILL)
        elif end == "close":
            await house.supervisor.close()
        await asyncio.wait_for(stays, 2)
        if end != "close":
            await house.embed([1], model=await house.load("new"))
        assert len(house.restarts) == (end == "loss")

    async def test_a_name_is_taken_once(self, house):
        with pytest.raises(EngineError, match="already"):
            await house.load("model")

    async def test_more_models_than_journal_lanes(self, house):
        for n in range(NUM_LANES // 2 + 1):
            model = await house.load(f"m{n}")
            await house.embed([n], model=model)
            await house.supervisor.unload(f"m{n}")
        await house.embed([1])

    async def test_many_models_are_told_apart_when_a_worker_is_lost(self, house):
        models = [await house.load(f"m{n}") for n in range(50)]
        await asyncio.gather(*[house.embed([n, k], model=m) for n, m in enumerate(models) for k in range(3)])
        callers = [house.start([danger.SLOW], model=models[-1])]
        await asyncio.sleep(0.1)
        callers += [house.start([n], model=m) for n, m in enumerate(models)]
        await asyncio.sleep(0.05)
        os.kill(house.pid, signal.SIGKILL)
        await asyncio.gather(*callers)
        assert house.restarts[0].num_suspects == 1

    async def test_info(self, house):
        assert house.model.info.engine == "fake"
        assert house.model.info.dimensions == 8
