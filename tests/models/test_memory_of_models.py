"""Models that come and go: a loader that does as it is told, real waiting and real requests."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec, Output, OutputType, Request, Task
from hilbert.engine.base import Health
from hilbert.errors import ModelLoading, ModelUnavailable, Overloaded, ShuttingDown, UnsupportedTask
from hilbert.models import Entry, Memory, Registry, Residency, Resident, ServedModel, State
from hilbert.processors import TextProcessor
from hilbert.runtimes.base import RuntimeInfo
from hilbert.scheduler import Admission
from hilbert.testing.runtime import fake_vector

INFO = RuntimeInfo("scripted", "none", "float32", "none", "", 384, frozenset({OutputType.DENSE}), 2048)
MB = 1_000_000


class Engine:
    """Answers when its gate is open."""

    info = INFO

    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.health = Health.READY

    async def run(self, request: Request) -> Output:
        assert self.health is Health.READY, "a request reached a model that was unloaded"
        await self.gate.wait()
        assert self.health is Health.READY, "a model was unloaded under a request"
        rows = np.stack([fake_vector(s.input_ids, 384) for s in request.sequences])
        return Output(request.id, dense=rows)


class ScriptedLoader:
    """Each model takes 10 MB; `act` runs inside every load."""

    def __init__(self, processor: TextProcessor) -> None:
        self.processor = processor
        self.loads: Counter[str] = Counter()
        self.resolved: Counter[str] = Counter()
        self.inside: dict[str, Engine] = {}
        self.peak_bytes = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.act: Callable[[str], Awaitable[None]] | None = None
        self.sizes: dict[str, int] = {}
        self.lost: int | None = 0

    async def resolve(self, entry: Entry) -> ModelSpec:
        self.resolved[entry.name] += 1
        await asyncio.sleep(0)
        if entry.name == "nowhere":
            raise ModelUnavailable("nowhere is not on the hub.")
        return self.processor.spec

    async def load(self, entry: Entry, spec: ModelSpec) -> ServedModel:
        self.loads[entry.name] += 1
        await asyncio.sleep(0)
        if self.act is not None:
            await self.act(entry.name)
        assert entry.name not in self.inside
        engine = self.inside[entry.name] = Engine(self.gate)
        self.peak_bytes = max(self.peak_bytes, self.used_bytes())
        return ServedModel(entry.name, spec, self.processor, engine, entry.admission, entry.metrics)

    async def unload(self, entry: Entry) -> None:
        await asyncio.sleep(0)
        self.inside.pop(entry.name).health = Health.STOPPED

    def used_bytes(self) -> int:
        return 10 * MB * len(self.inside)

    def epoch(self) -> int | None:
        return self.lost

    def size_of(self, entry: Entry, spec: ModelSpec) -> int:
        return 10 * MB

    def remember_size(self, entry: Entry, spec: ModelSpec, size_bytes: int) -> None:
        self.sizes[entry.name] = size_bytes


class Hotel:
    """A memory with room for `rooms` models, and the models by name."""

    def __init__(self, processor: TextProcessor, rooms: int, *names: str, **more: Any) -> None:
        timeout = more.pop("load_timeout_seconds", 10.0)
        self.loader = ScriptedLoader(processor)
        self.memory = Memory(Residency(rooms * 10 * MB, **more), self.loader, timeout)
        entries = [Entry(n, Admission(10**6, 8), resident=Resident(n, 0), memory=self.memory) for n in names]
        for entry in entries:
            self.memory.add(entry)
        self.registry = Registry(entries)

    def __getitem__(self, name: str) -> Entry:
        entry = self.registry.find(name)
        assert entry is not None
        return entry

    async def ask(self, name: str) -> str:
        model = await self.registry.take(name, Task.EMBED)
        await model.embed(EmbedRequest((name,)))
        return model.name


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    return TextProcessor(hub.resolve("bundled"))


def run(work: Coroutine[Any, Any, None]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(whole())


def test_many_first_requests_cause_one_load(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 2, "a", "b")
        answers = await asyncio.gather(*(hotel.ask("a") for _ in range(8)))
        assert set(answers) == {"a"} and hotel.loader.loads == {"a": 1} and hotel.loader.resolved == {"a": 1}
        assert hotel["a"].metrics.loads == {"ok": 1, "failed": 0} and hotel["a"].is_ready
        assert hotel["b"].state is State.AVAILABLE and hotel["b"].tasks == ()
        assert hotel.loader.sizes == {"a": 10 * MB}

    run(scene())


def test_models_that_do_not_fit_take_turns_and_every_request_is_answered(processor) -> None:
    async def scene() -> None:
        names = [f"m{i}" for i in range(6)]
        hotel = Hotel(processor, 2, *names)
        rng = np.random.default_rng(0)

        async def client() -> None:
            for index in rng.integers(0, 6, 30):
                assert await hotel.ask(names[index]) == names[index]

        await asyncio.gather(*(client() for _ in range(6)))
        assert hotel.loader.peak_bytes <= 20 * MB
        assert sum(hotel.loader.loads.values()) > 6
        assert all(entry.admission.num_requests == 0 for entry in hotel.registry.list())

    run(scene())


def test_a_model_finishes_before_it_leaves_and_newcomers_wait_for_its_return(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 1, "a", "b")
        await hotel.ask("a")
        hotel.loader.gate.clear()
        slow = asyncio.create_task(hotel.ask("a"))
        await asyncio.sleep(0.01)
        other = asyncio.create_task(hotel.ask("b"))
        await asyncio.sleep(0.01)
        assert hotel["a"].state is State.LEAVING and "b" not in hotel.loader.inside
        again = asyncio.create_task(hotel.ask("a"))
        await asyncio.sleep(0.01)
        hotel.loader.gate.set()
        assert await asyncio.gather(slow, other, again) == ["a", "b", "a"]
        assert hotel.loader.loads == {"a": 2, "b": 1}

    run(scene())


def test_a_request_waits_for_so_long_and_the_load_goes_on(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 1, "a", load_timeout_seconds=0.05)
        opened = asyncio.Event()

        async def slowly(name: str) -> None:
            await opened.wait()

        hotel.loader.act = slowly
        with pytest.raises(ModelLoading, match=r"0.05 s \(--load-timeout\)") as late:
            await hotel.ask("a")
        assert late.value.retry_after_seconds
        opened.set()
        assert await hotel.ask("a") == "a" and hotel.loader.loads == {"a": 1}

    run(scene())


def test_the_queue_before_a_load_is_bounded(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 1, "a")
        answers = await asyncio.gather(*(hotel.ask("a") for _ in range(12)), return_exceptions=True)
        assert answers.count("a") == 8 and sum(isinstance(a, Overloaded) for a in answers) == 4

    run(scene())


def test_a_load_that_fails_is_told_at_once_and_tried_again_and_others_go_on(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 2, "a", "b", "c", "nowhere")
        is_broken = True
        ready: list[bool] = []

        async def maybe(name: str) -> None:
            ready.append(hotel.registry.readiness.is_ready)
            if name == "b" and is_broken:
                raise RuntimeError("an accident")
            if name == "c":
                raise UnsupportedTask("it cannot be served for --task embed")

        hotel.loader.act = maybe
        assert await hotel.ask("a") == "a"
        with pytest.raises(Exception, match="b cannot be loaded: RuntimeError"):
            await hotel.ask("b")
        with pytest.raises(ModelUnavailable, match=r"c cannot be served as configured: .*--task"):
            await hotel.ask("c")  # the operator's mistake, not the caller's
        with pytest.raises(ModelUnavailable, match="not on the hub"):
            await hotel.ask("nowhere")
        with pytest.raises(ModelUnavailable, match=r"not on the hub.*next try is in") as refused:
            await hotel.ask("nowhere")
        assert refused.value.retry_after_seconds and hotel.loader.resolved["nowhere"] == 1
        assert hotel["b"].state is State.FAILED and hotel["b"].metrics.loads == {"ok": 0, "failed": 1}
        assert hotel.registry.readiness.is_ready  # others go on
        hotel["b"].resident.is_kept = True  # it was to be loaded at start
        assert not hotel.registry.readiness.is_ready
        assert await hotel.ask("a") == "a"
        is_broken = False
        await asyncio.sleep(1.05)
        assert await hotel.ask("b") == "b" and hotel["b"].error is None
        assert ready[-1] is False and hotel.registry.readiness.is_ready  # red until the next try succeeds

    run(scene())


def test_idle_models_leave_by_themselves(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 2, "a", idle_unload_seconds=0.1)
        await hotel.ask("a")
        for _ in range(4):  # each request begins the time anew
            await asyncio.sleep(0.05)
            await hotel.ask("a")
        assert hotel.loader.loads == {"a": 1}
        await asyncio.sleep(0.3)
        assert hotel["a"].state is State.AVAILABLE and not hotel.loader.inside
        assert hotel["a"].metrics.unloads == {"evicted": 0, "idle": 1, "asked": 0}
        assert hotel["a"].dimensions == 384

    run(scene())


def test_growth_beyond_the_budget_sends_somebody_away(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 3, "a", "b", "c")
        for name in "abc":
            await hotel.ask(name)
        hotel.loader.used_bytes = lambda: 12 * MB * len(hotel.loader.inside)  # type: ignore[method-assign]
        hotel.memory.look()
        while hotel["a"].state is not State.AVAILABLE:
            await asyncio.sleep(0.001)
        assert sorted(hotel.loader.inside) == ["b", "c"]

    run(scene())


def test_unload_reload_and_retire(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 2, "a", "b")
        await hotel.ask("a")
        await hotel.memory.unload(hotel["a"])
        assert hotel["a"].state is State.AVAILABLE and not hotel.loader.inside
        await hotel.memory.reload(hotel["a"])
        assert hotel.loader.resolved == {"a": 2} and hotel["a"].is_ready
        old, (_, other) = hotel["a"], hotel.registry.list()
        new = Entry("a", Admission(10**6, 8), resident=Resident("a (2)", 0), memory=hotel.memory)
        hotel.memory.add(new)
        hotel.loader.gate.clear()
        slow = asyncio.create_task(hotel.ask("a"))
        await asyncio.sleep(0.01)
        hotel.registry.replace([new, other])
        leaving = asyncio.create_task(hotel.memory.retire(old))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        hotel.loader.gate.set()
        assert await slow == "a"
        await leaving
        assert await hotel.ask("a") == "a" and hotel["a"] is new and old.served is None

    run(scene())


@pytest.mark.parametrize("order", ["unload", "reload"])
def test_an_order_is_carried_out_once_while_requests_keep_coming(processor, order: str) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 2, "a", "b")
        await hotel.ask("a")
        leave = hotel.loader.unload

        async def slowly(entry: Entry) -> None:
            await asyncio.sleep(0.01)
            await leave(entry)

        hotel.loader.unload = slowly  # type: ignore[method-assign]
        is_over = False

        async def client() -> None:
            while not is_over:
                await hotel.ask("a")
                await asyncio.sleep(0.0005)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await getattr(hotel.memory, order)(hotel["a"])
        is_over = True
        await asyncio.gather(*clients)
        assert hotel["a"].metrics.unloads["asked"] == 1 and hotel.loader.loads["a"] == 2
        assert hotel.loader.resolved["a"] == (2 if order == "reload" else 1)

    run(scene())


def test_what_leaves_while_another_loads_is_not_taken_from_its_size(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 3, "a", "b")
        await hotel.ask("a")
        is_loading, may_go_on = asyncio.Event(), asyncio.Event()

        async def slowly(name: str) -> None:
            is_loading.set()
            await may_go_on.wait()

        hotel.loader.act = slowly
        coming = asyncio.create_task(hotel.ask("b"))
        await is_loading.wait()
        await hotel.memory.unload(hotel["a"])
        may_go_on.set()
        await coming
        assert hotel.loader.sizes["b"] == 10 * MB

    run(scene())


def test_the_end_answers_whoever_waits(processor) -> None:
    async def scene() -> None:
        hotel = Hotel(processor, 1, "a")

        async def never(name: str) -> None:
            await asyncio.Event().wait()

        hotel.loader.act = never
        waiting = asyncio.create_task(hotel.ask("a"))
        await asyncio.sleep(0.01)
        await hotel.memory.close()
        with pytest.raises(ShuttingDown):
            await waiting

    run(scene())


def test_a_model_is_gone_from_memory_when_its_loader_gives_the_memory_back(processor) -> None:
    """Without the garbage collector: what waits for that would add up, tokenizer by tokenizer."""
    alive: list[weakref.ref[Any]] = []
    at_unload: list[list[bool]] = []

    class Loader(ScriptedLoader):
        async def load(self, entry: Entry, spec: ModelSpec) -> ServedModel:
            self.processor = TextProcessor(spec)
            model = await super().load(entry, spec)
            alive[:] = [weakref.ref(model), weakref.ref(self.processor)]
            del self.processor
            return model

        async def unload(self, entry: Entry) -> None:
            at_unload.append([found() is not None for found in alive])
            await super().unload(entry)

        async def resolve(self, entry: Entry) -> ModelSpec:
            return processor.spec

    async def scene() -> None:
        hotel = Hotel(processor, 2, "a")
        hotel.memory._loader = Loader(processor)
        for _ in range(2):
            await asyncio.gather(*(hotel.ask("a") for _ in range(3)))
            await hotel.memory.unload(hotel["a"])

    gc.disable()
    try:
        run(scene())
    finally:
        gc.enable()
    assert at_unload == [[False, False]] * 2


@pytest.mark.parametrize(("before", "after"), [(0, 1), (None, 1)], ids=["meanwhile", "and is coming back"])
def test_a_size_is_not_measured_where_a_worker_was_lost(processor, before: int | None, after: int) -> None:
    """What else it held went and came at the same time."""

    async def scene() -> None:
        hotel = Hotel(processor, 3, "a")
        hotel.loader.lost = before

        async def lose(name: str) -> None:
            hotel.loader.inside["others"] = Engine(hotel.loader.gate)
            hotel.loader.lost = after

        hotel.loader.act = lose
        await hotel.ask("a")
        assert hotel.loader.sizes == {} and hotel["a"].resident.size_bytes == 10 * MB
        unload = hotel.loader.unload

        async def lose_again(entry: Entry) -> None:
            await unload(entry)
            hotel.loader.inside.clear()
            hotel.loader.lost = after + 1

        hotel.loader.unload = lose_again  # type: ignore[method-assign]
        await hotel.memory.unload(hotel["a"])
        assert hotel.loader.sizes == {} and hotel["a"].resident.size_bytes == 10 * MB

    run(scene())
