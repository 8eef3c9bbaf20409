"""Real worker processes with dangerous runtimes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from worker_house import FACTORY, House, children

from hilbert.engine import EngineLimits
from hilbert.worker.settings import Restart, SupervisorSettings
from hilbert.worker.supervisor import Supervisor


@pytest.fixture
def anyio_backend():
    """The loop that the server runs on; `test_connection` also takes asyncio's own."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _find_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find `worker_runtimes.py`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children(os.getpid())
    yield
    assert children(os.getpid()) <= before, "a worker process was left behind"


@pytest.fixture
async def open_house(anyio_backend) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    """Makes houses; all are closed at the end."""
    houses: list[House] = []

    async def open_(
        *, load: bool = True, limits: EngineLimits | None = None, config=None, **settings
    ) -> House:
        restarts: list[Restart] = []
        batches: list = []
        settings = {"worker_timeout_seconds": 2.0, "runtime_factory": FACTORY, **settings}
        supervisor = Supervisor(
            SupervisorSettings(**settings),
            on_batch=lambda key, stats: batches.append((key, stats)),
            on_restart=restarts.append,
        )
        house = House(supervisor, restarts, batches)
        houses.append(house)
        await supervisor.start()
        if load:
            house.model = await house.load(limits=limits, **(config or {}))
        return house

    yield open_
    for house in houses:
        await house.supervisor.close()


@pytest.fixture
async def house(open_house) -> House:
    """A worker with one model, ready."""
    return await open_house()
