"""The engine behind its handle: asyncio and plain threads."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from hilbert.core import Request, Sequence
from hilbert.engine import EngineHandle, Health, LocalEngine
from hilbert.errors import RequestTimeout, ShuttingDown, WorkerLost
from hilbert.testing.runtime import FakeRuntime, fake_vector, tokens


def request(request_id: int, *inputs) -> Request:
    return Request(request_id, tuple(Sequence(request_id, i, ids) for i, ids in enumerate(inputs)))


def test_answers_reach_their_tasks(make_bench):
    bench = make_bench(max_batch_tokens=64)
    engine: EngineHandle = LocalEngine(bench.engine)

    async def main() -> None:
        outputs = await asyncio.gather(
            *(engine.run(request(i, *(tokens(i, k) for k in range(1 + i % 40)))) for i in range(200))
        )
        for i, output in enumerate(outputs):
            expected = np.stack([fake_vector(tokens(i, k)) for k in range(1 + i % 40)])
            np.testing.assert_array_equal(output.dense, expected)

    asyncio.run(main())
    assert engine.health is Health.READY
    assert engine.info.engine == "fake"


def test_another_loop_afterwards(make_bench):
    engine = LocalEngine(make_bench().engine)
    for i in range(3):
        output = asyncio.run(engine.run(request(i, tokens(i))))
        np.testing.assert_array_equal(output.dense[0], fake_vector(tokens(i)))


def test_cancelling_the_task_cancels_the_request(make_bench):
    bench = make_bench(max_batch_tokens=4)
    engine = LocalEngine(bench.engine)
    bench.runtime.hold()

    async def main() -> None:
        task = asyncio.create_task(engine.run(request(1, *[tokens(1, 2, 3, 4)] * 100)))
        await asyncio.to_thread(bench.runtime.wait_for_run)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.engine.num_requests == 0
        assert bench.engine.num_queued_sequences == 0
        bench.runtime.release()
        output = await engine.run(request(2, tokens(5)))
        np.testing.assert_array_equal(output.dense[0], fake_vector(tokens(5)))

    asyncio.run(main())
    assert bench.runtime.num_runs <= 3


def test_a_loop_that_is_gone_harms_nobody(make_bench):
    bench = make_bench()
    engine = LocalEngine(bench.engine)
    bench.runtime.hold()
    loop = asyncio.new_event_loop()
    task = loop.create_task(engine.run(request(1, tokens(1))))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    bench.runtime.release()
    assert bench.engine.drain(10)
    assert not task.done()
    task._log_destroy_pending = False  # it was abandoned on purpose
    task.get_coro().close()
    assert bench.engine.health is Health.DRAINING


def test_a_failed_request_raises_and_a_bad_input_does_not(make_bench):
    bench = make_bench(FakeRuntime(raise_on_token=9, lose_device_on_token=10))
    engine = LocalEngine(bench.engine)
    output = engine.run_sync(request(1, tokens(1), tokens(9)), timeout=10)
    assert list(output.errors) == [1]
    with pytest.raises(WorkerLost):
        engine.run_sync(request(2, tokens(10)), timeout=10)
    with pytest.raises(WorkerLost):
        asyncio.run(engine.run(request(3, tokens(1))))


def test_when_every_input_is_bad_the_request_still_has_an_output(make_bench):
    engine = LocalEngine(make_bench(FakeRuntime(raise_on_token=9)).engine)
    output = engine.run_sync(request(1, tokens(9), tokens(9)), timeout=10)
    assert sorted(output.errors) == [0, 1]
    assert not output.dense.any()


def test_draining_raises(make_bench):
    bench = make_bench()
    engine = LocalEngine(bench.engine)
    bench.engine.drain(1)
    with pytest.raises(ShuttingDown):
        asyncio.run(engine.run(request(1, tokens(1))))
    with pytest.raises(ShuttingDown):
        engine.run_sync(request(1, tokens(1)))


def test_run_sync_gives_up_in_time(make_bench):
    bench = make_bench()
    bench.runtime.hold()
    engine = LocalEngine(bench.engine)
    with pytest.raises(RequestTimeout):
        engine.run_sync(request(1, tokens(1)), timeout=0.02)
    assert bench.engine.num_requests == 0
    bench.runtime.release()
    engine.run_sync(request(2, tokens(1)), timeout=10)


def test_run_sync_from_many_threads(make_bench):
    engine = LocalEngine(make_bench(max_batch_tokens=32).engine)
    wrong = []

    def client(k: int) -> None:
        for i in range(20):
            output = engine.run_sync(request(k * 100 + i, tokens(k, i)), timeout=20)
            if not np.array_equal(output.dense[0], fake_vector(tokens(k, i))):
                wrong.append((k, i))

    threads = [threading.Thread(target=client, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
