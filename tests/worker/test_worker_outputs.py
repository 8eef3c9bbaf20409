"""Every kind of output from a real worker process."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from itertools import chain, combinations

import pytest
import worker_runtimes as danger
from worker_house import PATIENCE, until

from hilbert.core import OutputType
from hilbert.engine import EngineLimits, Health
from hilbert.errors import InvalidInput, NonFiniteOutput, UnsupportedTask
from hilbert.worker.ledger import Loss

pytestmark = pytest.mark.anyio

ALL = frozenset(OutputType)
SETS = [frozenset(s) for s in chain.from_iterable(combinations(OutputType, n) for n in range(1, 5))]
EVERYTHING = {"outputs": sorted(ALL)}
TOKEN_VECTORS = frozenset({OutputType.MULTIVECTOR})
LARGE = {"outputs": [OutputType.MULTIVECTOR, OutputType.DENSE], "token_dimensions": 128}


@pytest.fixture
async def able(open_house):
    """A worker whose model returns everything."""
    return await open_house(config=EVERYTHING)


async def test_several_outputs_come_from_one_run(able):
    assert able.model.info.outputs == ALL
    for number, outputs in enumerate(SETS, 1):
        await able.embed([1], [2, 3, 2], [4, 5, 6], outputs=outputs)
        await until(lambda n=number: len(able.batches) >= n, "the batch is reported")
        assert len(able.batches) == number


async def test_requests_of_all_kinds_in_flight(able):
    rng = random.Random(0)
    tasks = []
    for _ in range(300):
        kinds = rng.choices([1, danger.RAISE, danger.NAN], [96, 2, 2], k=rng.choice([1, 1, 4, 30]))
        inputs = [[rng.randint(1, 800)] * rng.randint(1, 9) + [kind] for kind in kinds]
        bad = {i for i, kind in enumerate(kinds) if kind != 1}
        tasks.append(able.start(*inputs, outputs=rng.choice(SETS), bad=bad))
    await asyncio.gather(*tasks)
    assert able.restarts == []


@pytest.mark.parametrize("output", OutputType)
async def test_only_the_bad_input_fails(able, output):
    answer = await able.embed(
        [1], [danger.RAISE], [3], [danger.NAN, 4], outputs=frozenset({output}), bad={1, 3}
    )
    assert isinstance(answer.errors[3], NonFiniteOutput)
    await able.embed([danger.RAISE], [danger.RAISE], outputs=frozenset({output}), bad={0, 1})


async def test_what_the_model_cannot_is_refused(house):
    with pytest.raises(UnsupportedTask, match="model does not return logits, sparse; it returns dense"):
        await house.embed([1], outputs=frozenset({OutputType.SPARSE, OutputType.LOGITS, OutputType.DENSE}))
    with pytest.raises(InvalidInput):
        await house.embed([1], outputs=frozenset())
    await house.embed([1])


async def test_token_vectors_of_2048_texts(open_house):
    """105 MB back, in several frames; others are answered meanwhile."""
    house = await open_house(
        config={**LARGE, "max_batch_tokens": 16_384}, limits=EngineLimits(max_batch_sequences=256)
    )
    huge = house.start(*[list(range(n, n + 100)) for n in range(2048)], outputs=TOKEN_VECTORS)
    num_meanwhile = 0
    while not huge.done():
        await house.embed([num_meanwhile, 1])
        num_meanwhile += 1
    output = await huge
    assert sum(table.nbytes for table in output.multivector) == 2048 * 100 * 128 * 4
    assert num_meanwhile > 3
    assert house.restarts == [] and house.model.health is Health.READY


async def on_first_part(house, act) -> asyncio.Task:
    """Ask for an answer of two frames; `act` when the first one has come, before anything else is read."""
    has_come = asyncio.Event()
    take = house.supervisor._desk._take_part

    def take_and_act(result, body):
        take(result, body)
        if not has_come.is_set():
            has_come.set()
            act()

    house.supervisor._desk._take_part = take_and_act
    inputs = [list(range(n, n + 100)) for n in range(1024)]
    task = house.start(*inputs, outputs=TOKEN_VECTORS | {OutputType.DENSE})
    await asyncio.wait_for(has_come.wait(), PATIENCE)
    return task


async def test_a_large_answer_outlives_the_worker(open_house):
    """Lost between two frames of an answer: the next worker sends it from its beginning."""
    house = await open_house(config={**LARGE, "max_batch_tokens": 16_384}, worker_timeout_seconds=20.0)
    pid = house.pid
    # A stopped worker sends nothing more; killed at once, it could have sent the rest already.
    huge = await on_first_part(house, lambda: os.kill(pid, signal.SIGSTOP))
    await asyncio.sleep(0.05)
    assert not huge.done()
    os.kill(pid, signal.SIGKILL)
    await huge
    assert [r.loss for r in house.restarts] == [Loss.KILLED]


async def test_a_large_answer_that_nobody_waits_for(open_house):
    house = await open_house(config={**LARGE, "max_batch_tokens": 16_384})
    huge = await on_first_part(house, lambda: None)
    huge.cancel()
    await asyncio.gather(*[house.embed([n]) for n in range(20)])
    assert house.supervisor.num_pending == 0 and house.restarts == []
