"""A worker under a memory cap: whoever does not fit is told so, everybody else is served."""

from __future__ import annotations

import asyncio
import resource

import pytest
import worker_runtimes as danger
from worker_house import PATIENCE, spec, until

from hilbert.engine import Health
from hilbert.errors import EngineError
from hilbert.runtimes.base import RuntimeSettings
from hilbert.worker.ledger import Loss

pytestmark = pytest.mark.anyio


def cap(pid: int, extra_bytes: int) -> None:
    """Let a process map so much more memory than it has mapped now."""
    with open(f"/proc/{pid}/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped + extra_bytes, mapped + extra_bytes))


async def test_a_model_that_does_not_fit(house):
    cap(house.pid, 100 << 20)
    callers = [house.start([n]) for n in range(50)]
    with pytest.raises(EngineError, match="MemoryError"):
        await house.supervisor.load("big", spec(allocate_bytes=1 << 30), RuntimeSettings())
    await asyncio.gather(*callers)
    assert house.model.health is Health.READY and not house.restarts


async def test_a_batch_that_does_not_fit(house):
    cap(house.pid, 100 << 20)
    request = house.request([1], [danger.ALLOCATE], [2])
    output = await asyncio.wait_for(house.model.run(request), PATIENCE)
    assert list(output.errors) == [1]
    assert output.dense[0].any() and output.dense[2].any()


async def test_a_request_that_the_worker_cannot_even_receive(open_house):
    """It dies of it; in the next one there is room, and nobody notices."""
    house = await open_house(worker_timeout_seconds=20.0)
    cap(house.pid, 0)
    huge = asyncio.create_task(house.model.run(house.request([7] * (16 << 20))))  # 64 MiB
    await until(lambda: house.supervisor.num_pending == 1, "it is posted")
    callers = [house.start([n]) for n in range(20)]
    results = await asyncio.wait_for(asyncio.gather(huge, *callers, return_exceptions=True), PATIENCE)
    assert [r for r in results[1:] if isinstance(r, BaseException)] == []
    assert not isinstance(results[0], BaseException)
    assert [r.loss for r in house.restarts] == [Loss.CRASHED]
