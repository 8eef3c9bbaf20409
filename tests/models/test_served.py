"""One request's way through a served model, with an engine that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec, Output, OutputType, Request, Task
from hilbert.engine.base import Health
from hilbert.errors import (
    InvalidInput,
    ModelNotFound,
    NonFiniteOutput,
    OutOfMemory,
    Overloaded,
    RequestTimeout,
    WorkerLost,
)
from hilbert.models import Registry, ServedModel
from hilbert.processors import TextProcessor, token_array
from hilbert.runtimes.base import RuntimeInfo
from hilbert.scheduler import Admission
from hilbert.testing.models import tiny_model
from hilbert.testing.runtime import fake_vector

INFO = RuntimeInfo("scripted", "none", "float32", "none", "", 384, frozenset({OutputType.DENSE}), 2048)


class ScriptedEngine:
    """Answers with the fake runtime's vectors, unless `act` says otherwise."""

    health = Health.READY
    info = INFO

    def __init__(self, dimensions: int = 384, act: Callable[[Request], Any] | None = None) -> None:
        self.dimensions = dimensions
        self.act = act
        self.requests: list[Request] = []
        self.num_cancelled = 0

    async def run(self, request: Request) -> Output:
        self.requests.append(request)
        try:
            if self.act is not None:
                output = self.act(request)
                if asyncio.iscoroutine(output):
                    output = await output
                if output is not None:
                    return output
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        rows = np.stack([fake_vector(s.input_ids, self.dimensions) for s in request.sequences])
        return Output(request.id, dense=rows, queue_seconds=0.5, inference_seconds=0.25)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return hub.resolve("bundled")


@pytest.fixture(scope="module")
def processor(spec: ModelSpec) -> TextProcessor:
    return TextProcessor(spec)


def served(processor: TextProcessor, engine: ScriptedEngine, name: str = "m", **more: Any) -> ServedModel:
    return ServedModel(name, processor.spec, processor, engine, Admission(10_000, 4), **more)


def embed(model: ServedModel, *inputs: Any, **more: Any) -> Any:
    return asyncio.run(model.embed(EmbedRequest(tuple(inputs), **more)))


def test_vectors_tokens_and_timing(processor):
    engine = ScriptedEngine()
    result = embed(served(processor, engine), "a", "b c d", token_array([101, 102], 2))
    assert result.vectors.shape == (3, 384) and result.vectors.dtype == np.float32
    assert result.vectors.flags.c_contiguous
    assert np.abs(np.linalg.norm(result.vectors, axis=1) - 1).max() < 1e-6  # this model's chain normalises
    assert result.num_tokens == 3 + 5 + 2 == engine.requests[0].num_tokens
    assert (result.timing.queue_seconds, result.timing.inference_seconds) == (0.5, 0.25)
    assert result.timing.tokenize_seconds > 0


def test_request_ids_are_unique_over_models(processor):
    engine = ScriptedEngine()
    for model in (served(processor, engine), served(processor, engine), served(processor, engine)):
        embed(model, "a", "b")
    ids = [r.id for r in engine.requests]
    assert len(set(ids)) == 3
    assert all(s.request_id == r.id for r in engine.requests for s in r.sequences)


@pytest.mark.parametrize("num_texts", [3, 1000])  # the larger goes through a thread
def test_dimensions_and_normalisation(processor, num_texts):
    texts = [f"text {i}" for i in range(num_texts)]
    engine = ScriptedEngine()
    model = served(processor, engine)
    raw = embed(model, *texts, normalize=False).vectors
    sequences = engine.requests[0].sequences
    assert np.array_equal(raw, np.stack([fake_vector(s.input_ids, 384) for s in sequences]))
    short = embed(model, *texts, dimensions=7).vectors
    assert short.shape == (num_texts, 7)
    assert np.abs(short - raw[:, :7] / np.linalg.norm(raw[:, :7], axis=1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("dimensions", [0, -1, 385, 10**30])
def test_dimensions_out_of_range_name_the_range(processor, dimensions):
    model = served(processor, ScriptedEngine())
    with pytest.raises(InvalidInput, match=f"{dimensions}.*1 to 384") as refused:
        embed(model, "a", dimensions=dimensions)
    assert refused.value.param == "dimensions"
    assert model.metrics.requests == {"ok": 0, "client_error": 1}


def test_the_first_guilty_input_is_named(processor):
    def fail(request: Request) -> Output:
        return Output(request.id, errors={2: OutOfMemory("no room"), 1: NonFiniteOutput("not a number")})

    with pytest.raises(NonFiniteOutput, match=r"^input\[1\]: not a number") as failed:
        embed(served(processor, ScriptedEngine(act=fail)), "a", "b", "c")
    assert failed.value.index == 1 and failed.value.param == "input"


def test_what_befalls_the_whole_request_names_no_input(processor):
    def fail(request: Request) -> Output:
        return Output(request.id, errors=dict.fromkeys(range(3), WorkerLost("replaced")))

    with pytest.raises(WorkerLost, match=r"^replaced$"):
        embed(served(processor, ScriptedEngine(act=fail)), "a", "b", "c")


def test_texts_without_tokens_have_the_zero_vector_and_cost_nothing(tmp_path):
    processor = TextProcessor(hub.resolve(str(tiny_model("static", tmp_path / "m"))))
    size = processor.spec.dimensions
    engine = ScriptedEngine(size)
    model = served(processor, engine)
    vectors = embed(model, "", "the packed row", "", "query").vectors
    assert not vectors[[0, 2]].any() and vectors[[1, 3]].all()
    assert [s.index for s in engine.requests[0].sequences] == [0, 1]  # the engine counts its own
    rows = embed(model, "", "", dimensions=3).vectors
    assert rows.shape == (2, 3) and not rows.any() and len(engine.requests) == 1

    def fail(request: Request) -> Output:
        return Output(request.id, errors={0: NonFiniteOutput("x")})

    engine.act = fail
    with pytest.raises(NonFiniteOutput, match=r"input\[1\]"):
        embed(model, "", "guilty")


async def forever(request: Request) -> None:
    await asyncio.Event().wait()


def test_late_requests_are_told_and_cancelled(processor):
    engine = ScriptedEngine(act=forever)
    model = served(processor, engine, request_timeout_seconds=0.05)
    with pytest.raises(RequestTimeout, match=r"0\.05 s"):
        embed(model, "a")
    with pytest.raises(RequestTimeout, match=r"0\.01 s"):
        embed(model, "a", timeout_seconds=0.01)
    assert engine.num_cancelled == 2
    assert model.metrics.requests == {"ok": 0, "rejected": 2} and model.admission.num_requests == 0
    deadlines = [r.deadline for r in engine.requests]
    assert all(d is not None for d in deadlines)


def test_without_a_limit_there_is_no_deadline(processor):
    engine = ScriptedEngine()
    embed(served(processor, engine), "a")
    assert engine.requests[0].deadline is None


def test_cancelling_gives_the_place_back(processor):
    engine = ScriptedEngine(act=forever)
    model = served(processor, engine)

    async def scenario() -> None:
        tasks = [asyncio.create_task(model.embed(EmbedRequest(("a",)))) for _ in range(4)]
        await asyncio.sleep(0)
        assert model.admission.num_requests == 4 and model.metrics.queue_sequences == 4
        with pytest.raises(Overloaded):
            await model.embed(EmbedRequest(("a",)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert engine.num_cancelled == 4
    assert model.admission.num_requests == model.admission.num_queued_tokens == 0
    assert model.metrics.queue_sequences == 0
    assert model.metrics.requests == {"ok": 0, "rejected": 1, "cancelled": 4}


def test_an_engine_that_breaks_gives_the_place_back(processor):
    def explode(request: Request) -> Output:
        raise ZeroDivisionError

    model = served(processor, ScriptedEngine(act=explode))
    with pytest.raises(ZeroDivisionError):
        embed(model, "a")
    assert model.admission.num_requests == 0 and model.metrics.requests["server_error"] == 1


# -- the registry -----------------------------------------------------------------------------------


def test_one_model_answers_to_any_name(processor):
    model = served(processor, ScriptedEngine(), "one")
    registry = Registry([model])
    for name in ("one", "anything", "", None):
        assert asyncio.run(registry.take(name, Task.EMBED)) is model
    (entry,) = registry.list()
    assert entry.served is model
    assert registry.find("one") is entry and registry.find("anything") is None


def test_several_models_answer_to_their_names_and_aliases(processor):
    one = served(processor, ScriptedEngine(), "one", aliases=("uno",))
    two = served(processor, ScriptedEngine(), "two")
    registry = Registry([one, two])
    assert [entry.served for entry in registry.list()] == [one, two]
    for name, model in {"one": one, "uno": one, "two": two, "": one, None: one}.items():
        assert asyncio.run(registry.take(name, Task.EMBED)) is model
    with pytest.raises(ModelNotFound, match="one, two"):
        registry.choose("three", Task.EMBED)
    with pytest.raises(InvalidInput, match=r"`classify`.*one, two"):  # neither can
        registry.choose(None, Task.CLASSIFY)


def test_names_are_unique_and_there_is_a_model(processor):
    one = served(processor, ScriptedEngine(), "one")
    with pytest.raises(ValueError, match=r"'one'.*--served-model-name"):
        Registry([one, served(processor, ScriptedEngine(), "two", aliases=("one",))])
    with pytest.raises(ValueError, match="no model"):
        Registry([])


def test_readiness_is_red_while_any_model_is(processor):
    one, two = ScriptedEngine(), ScriptedEngine()
    registry = Registry([served(processor, one, "one"), served(processor, two, "two")])
    assert registry.readiness.is_ready
    two.health = Health.RECOVERING
    assert not registry.readiness.is_ready
    assert registry.readiness.health == {"one": Health.READY, "two": Health.RECOVERING}
    two.health = Health.READY
    registry.is_draining = True
    assert not registry.readiness.is_ready
