"""Engines on fake runtimes, and callers that notice a second answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hilbert.core import Output, OutputType, Request, Sequence
from hilbert.core.request import DENSE_ONLY, IntArray
from hilbert.engine import Device, Engine, Health, has_rows
from hilbert.errors import ServingError
from hilbert.scheduler import Scheduler
from hilbert.testing.runtime import FakeRuntime, check_fake_output

PATIENCE = 20.0  # seconds until a test gives up; nothing waits that long when all is well


class Caller:
    """Submits one request and keeps its answers."""

    def __init__(
        self,
        engine: Engine[Any],
        inputs: list[IntArray],
        *,
        id: int,
        deadline: float | None,
        outputs: frozenset[OutputType],
    ) -> None:
        self.inputs = inputs
        self.info = engine.info
        sequences = tuple(Sequence(id, i, ids) for i, ids in enumerate(inputs))
        self.request = Request(id, sequences, outputs, deadline)
        self.answers: list[Output] = []
        self.threads: list[str] = []
        self._is_answered = threading.Event()
        engine.submit(self.request, self._deliver)

    def _deliver(self, output: Output) -> None:
        self.answers.append(output)
        self.threads.append(threading.current_thread().name)
        self._is_answered.set()

    @property
    def is_answered(self) -> bool:
        return bool(self.answers)

    def output(self) -> Output:
        assert self._is_answered.wait(PATIENCE), f"request {self.request.id} was not answered"
        assert len(self.answers) == 1
        assert self.answers[0].request_id == self.request.id
        return self.answers[0]

    def failure(self) -> ServingError:
        """The error of a request that failed as a whole."""
        output = self.output()
        assert not has_rows(output)
        assert sorted(output.errors) == list(range(len(self.inputs)))
        assert len(set(map(id, output.errors.values()))) == 1
        return output.errors[0]

    def check_rows(self, *, bad: set[int] = frozenset()) -> Output:  # type: ignore[assignment]
        """All rows are right, except the bad ones, which are zero and have an error that points at them."""
        output = self.output()
        check_fake_output(output, self.request, self.info, bad)
        return output


class Bench:
    """An engine with its runtime; makes callers."""

    def __init__(self, runtime: FakeRuntime, engine: Engine[Any]) -> None:
        self.runtime = runtime
        self.engine = engine
        self._next_id = 0

    def submit(
        self,
        *inputs: IntArray,
        deadline: float | None = None,
        outputs: frozenset[OutputType] = DENSE_ONLY,
    ) -> Caller:
        self._next_id += 1
        return Caller(self.engine, list(inputs), id=self._next_id, deadline=deadline, outputs=outputs)


@pytest.fixture
def make_bench() -> Iterator[Any]:
    benches: list[Bench] = []
    before = set(threading.enumerate())

    def make(
        runtime: FakeRuntime | None = None,
        *,
        max_batch_tokens: int = 2048,
        max_batch_sequences: int = 64,
        device: Device | None = None,
        is_started: bool = True,
        **more: Any,
    ) -> Bench:
        runtime = runtime or FakeRuntime(record=True)
        scheduler = Scheduler(max_batch_tokens, max_batch_sequences)
        engine = Engine(runtime, scheduler, device or Device(), **more)
        benches.append(Bench(runtime, engine))
        if is_started:
            engine.start()
        return benches[-1]

    yield make
    for bench in benches:
        bench.runtime.release()
        bench.runtime.let_go()
        bench.engine.stop()
        assert bench.engine.health is Health.STOPPED
        assert bench.engine.num_requests == 0
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("engine-"):
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread.name} is still there"
