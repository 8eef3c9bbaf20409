"""What tests of worker processes share: a supervisor with a model, and callers that check their vectors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from hilbert.core import ModelSpec, Output, OutputType, Request, Sequence
from hilbert.core.request import DENSE_ONLY
from hilbert.engine import EngineLimits
from hilbert.runtimes.base import RuntimeSettings
from hilbert.testing.runtime import check_fake_output, tokens
from hilbert.worker.client import WorkerEngine
from hilbert.worker.settings import Restart
from hilbert.worker.supervisor import Supervisor

PATIENCE = 30.0  # seconds until a test gives up; nothing waits that long when all is well
FACTORY = "worker_runtimes:make"
DIMENSIONS = 8


def children(pid: int) -> set[int]:
    """The processes whose parent this is, zombies included."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def spec(**config: object) -> ModelSpec:
    """A model for `worker_runtimes.make`; `config` says what loading it does."""
    return ModelSpec(
        model_id="test/model",
        path="/nowhere",
        commit="",
        digest="",
        kind="transformer",
        family="bert",
        architecture="BertModel",
        config=config,
        modules=(),
        normalize=True,
        hidden_size=DIMENSIONS,
        dimensions=DIMENSIONS,
        max_model_len=512,
        vocab_size=1_000_000,
    )


async def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something has become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.002)


class House:
    """A supervisor with one model, and what it told."""

    def __init__(self, supervisor: Supervisor, restarts: list[Restart], batches: list) -> None:
        self.supervisor = supervisor
        self.restarts = restarts
        self.batches = batches
        self.model: WorkerEngine
        self._next_id = 0

    async def load(self, key: str = "model", limits: EngineLimits | None = None, **config) -> WorkerEngine:
        return await self.supervisor.load(key, spec(**config), RuntimeSettings(), limits)

    def request(
        self,
        *inputs: list[int],
        deadline: float | None = None,
        outputs: frozenset[OutputType] = DENSE_ONLY,
    ) -> Request:
        """A request of token id lists; ids repeat between houses, as those of callers may."""
        self._next_id += 1
        number = self._next_id
        return Request(
            number,
            tuple(Sequence(number, i, tokens(*ids)) for i, ids in enumerate(inputs)),
            outputs,
            None if deadline is None else time.monotonic() + deadline,
        )

    async def embed(
        self,
        *inputs: list[int],
        model: WorkerEngine | None = None,
        deadline: float | None = None,
        outputs: frozenset[OutputType] = DENSE_ONLY,
        bad: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> Output:
        """Run a request and check that every row is the right one, and that the bad inputs have errors."""
        model = model or self.model
        request = self.request(*inputs, deadline=deadline, outputs=outputs)
        output = await asyncio.wait_for(model.run(request), PATIENCE)
        assert output.request_id == request.id
        check_fake_output(output, request, model.info, bad)
        return output

    def start(self, *inputs: list[int], **options) -> asyncio.Task[Output]:
        return asyncio.create_task(self.embed(*inputs, **options))

    @property
    def pid(self) -> int:
        assert self.supervisor.pid is not None
        return self.supervisor.pid
