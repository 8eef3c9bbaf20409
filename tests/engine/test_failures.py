"""The engine on runtimes that fail: only the guilty input fails, and every caller is answered."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import numpy as np
import pytest

from hilbert.core import BatchOutput
from hilbert.engine import Device, Health
from hilbert.errors import (
    EngineError,
    NonFiniteOutput,
    OutOfMemory,
    RequestTimeout,
    ServingError,
    ShuttingDown,
    WorkerLost,
)
from hilbert.testing.clock import ManualClock
from hilbert.testing.runtime import FakeRuntime, tokens

BAD, SICK, LOST, HANG, SHORT = 901, 902, 903, 904, 905


@pytest.mark.parametrize("bad", [{0}, {31}, {13}, {0, 1}, {3, 17, 30}, set(range(32))])
def test_a_bad_input_fails_alone(make_bench, caplog, bad):
    bench = make_bench(FakeRuntime(raise_on_token=BAD))
    caller = bench.submit(*(tokens(i, BAD if i in bad else 1) for i in range(32)))
    output = caller.check_rows(bad=bad)
    assert all(type(e) is EngineError for e in output.errors.values())
    assert "token 901" not in str(output.errors)
    error_id = output.errors[min(bad)].message.rpartition(" ")[2].rstrip(")")
    assert error_id in caplog.text
    assert "RuntimeError" in caplog.text and "token 901" not in caplog.text  # it may quote an input
    assert bench.engine.health is Health.READY


def test_a_bad_input_does_not_harm_the_neighbours_in_its_batch(make_bench):
    bench = make_bench(FakeRuntime(raise_on_token=BAD, record=True), is_started=False)
    good = [bench.submit(tokens(i), tokens(i + 1)) for i in range(10)]
    guilty = bench.submit(tokens(1), tokens(BAD), tokens(2))
    bench.engine.start()
    for caller in good:
        caller.check_rows()
    guilty.check_rows(bad={1})
    assert len(bench.runtime.batches[0].sequences) == 23
    assert bench.runtime.num_runs <= 1 + 2 * 5  # two per halving


def test_failing_in_prepare_is_the_same(make_bench):
    runtime = FakeRuntime()
    prepare = runtime.prepare

    def fail(batch):
        if any(BAD in s.input_ids for s in batch.sequences):
            raise KeyError("unexpected")
        return prepare(batch)

    runtime.prepare = fail
    bench = make_bench(runtime)
    bench.submit(tokens(1), tokens(BAD), tokens(2)).check_rows(bad={1})


def test_errors_of_our_own_keep_their_class_and_message(make_bench):
    bench = make_bench(FakeRuntime(oom_on_token=BAD))
    output = bench.submit(tokens(1), tokens(BAD)).check_rows(bad={1})
    assert isinstance(output.errors[1], OutOfMemory)
    assert "does not fit the fake device" in output.errors[1].message


def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_bench):
    bench = make_bench(FakeRuntime(oom_above_tokens=10, record=True))
    bench.submit(*(tokens(i, 1, 2) for i in range(32))).check_rows()
    assert max(b.num_tokens for b in bench.runtime.batches[1:] if b.num_tokens <= 10) <= 10


def test_what_does_not_fit_alone_fails_alone(make_bench):
    bench = make_bench(FakeRuntime(oom_above_tokens=10))
    output = bench.submit(tokens(1), tokens(2, repeat=11), tokens(3)).check_rows(bad={1})
    assert isinstance(output.errors[1], OutOfMemory)


def test_rows_that_are_not_finite_fail_alone(make_bench):
    bench = make_bench(FakeRuntime(nan_on_token=SICK, record=True))
    output = bench.submit(*(tokens(i, SICK if i in (2, 5) else 1) for i in range(8))).check_rows(bad={2, 5})
    assert all(isinstance(e, NonFiniteOutput) for e in output.errors.values())
    assert [len(b.sequences) for b in bench.runtime.batches] == [8, 1, 1]  # once more, and no further


def test_rows_that_are_finite_alone_are_delivered(make_bench):
    bench = make_bench(FakeRuntime(nan_once_on_token=SICK))
    bench.submit(*(tokens(i, SICK if i in (2, 5) else 1) for i in range(8))).check_rows()


def test_large_numbers_whose_sum_overflows_are_finite(make_bench):
    runtime = FakeRuntime(dimensions=3)
    runtime.run = lambda prepared: BatchOutput(
        dense=np.full((len(prepared.batch.sequences), 3), 3e38, dtype=np.float32)
    )
    bench = make_bench(runtime)
    output = bench.submit(tokens(1), tokens(2)).output()
    assert not output.errors
    np.testing.assert_array_equal(output.dense, np.full((2, 3), 3e38, dtype=np.float32))


def test_a_wrong_shape_is_an_error_of_the_engine(make_bench):
    bench = make_bench(FakeRuntime(wrong_shape_on_token=SHORT, record=True))
    output = bench.submit(tokens(1), tokens(SHORT)).check_rows(bad={0, 1})
    assert isinstance(output.errors[0], EngineError)
    assert "(1, 8)" in output.errors[0].message
    assert bench.runtime.num_runs == 1
    bench.submit(tokens(1)).check_rows()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_second_tries_do_not_starve_others(make_bench, num_slots):
    """A request whose every input is bad needs 127 runs; a newcomer waits for a few of them only."""
    runtime = FakeRuntime(raise_on_token=BAD, num_slots=num_slots, record=True)
    bench = make_bench(runtime)
    runtime.hold()
    guilty = bench.submit(*[tokens(BAD)] * 64)
    runtime.wait_for_run()
    innocent = [bench.submit(tokens(i)) for i in range(5)]
    runtime.release()
    for caller in innocent:
        caller.check_rows()
    guilty.check_rows(bad=set(range(64)))
    ids = {caller.request.id for caller in innocent}
    first = next(i for i, b in enumerate(runtime.batches) if b.sequences[0].request_id in ids)
    assert first <= 3


def test_second_tries_of_a_cancelled_request_are_dropped(make_bench):
    runtime = FakeRuntime(raise_on_token=BAD, num_slots=1, record=True)
    bench = make_bench(runtime)
    runtime.hold()
    guilty = bench.submit(*[tokens(BAD)] * 64)
    runtime.wait_for_run()
    bench.engine.cancel(guilty.request.id)
    runtime.release()
    bench.submit(tokens(1)).check_rows()
    assert bench.runtime.num_runs == 2
    assert not guilty.is_answered


def test_second_tries_run_out_of_time_like_anything_else(make_bench):
    runtime = FakeRuntime(raise_on_token=BAD, hang_on_token=HANG, num_slots=1)
    bench = make_bench(runtime)
    runtime.hold()
    guilty = bench.submit(tokens(BAD), tokens(BAD), deadline=time.monotonic() + 0.1)
    runtime.wait_for_run()
    blocker = bench.submit(tokens(HANG))
    runtime.release()
    output = guilty.output()  # the halves wait behind the blocker, or are done: both are answers
    assert all(isinstance(e, RequestTimeout | EngineError) for e in output.errors.values())
    runtime.let_go()
    blocker.check_rows()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_lost_device_answers_every_caller(make_bench, num_slots):
    failures: list[ServingError] = []
    has_failed = threading.Event()

    def on_failed(error):
        assert all(c.is_answered for c in callers), "on_failed comes last"
        failures.append(error)
        has_failed.set()

    runtime = FakeRuntime(lose_device_on_token=LOST, num_slots=num_slots)
    bench = make_bench(runtime, max_batch_tokens=4, on_failed=on_failed)
    runtime.hold()
    callers = [bench.submit(tokens(1), tokens(LOST, 2, 3, 4))]
    runtime.wait_for_run()
    callers += [bench.submit(*[tokens(i, 2, 3, 4)] * 3) for i in range(10)]
    runtime.release()
    for caller in callers:
        assert isinstance(caller.failure(), WorkerLost)
    assert has_failed.wait(10)
    assert bench.engine.health is Health.FAILED
    with pytest.raises(WorkerLost):
        bench.submit(tokens(1))
    bench.engine.stop()
    assert len(failures) == 1
    assert all(len(c.answers) == 1 for c in callers)


def test_a_hung_batch_answers_every_caller(make_bench):
    has_failed = threading.Event()
    runtime = FakeRuntime(hang_on_token=HANG)
    bench = make_bench(
        runtime, max_batch_tokens=4, batch_timeout_seconds=0.1, on_failed=lambda error: has_failed.set()
    )
    callers = [bench.submit(tokens(HANG, 1, 2, 3))]
    runtime.wait_for_run()
    callers += [bench.submit(*[tokens(i, 2, 3, 4)] * 3) for i in range(10)]
    for caller in callers:
        error = caller.failure()
        assert isinstance(error, WorkerLost)
        assert "hangs" in error.message
    assert has_failed.wait(10)
    assert bench.engine.health is Health.FAILED
    runtime.let_go()


def test_a_hung_prepare_is_noticed_too(make_bench):
    runtime = FakeRuntime()
    let_go = threading.Event()
    runtime.prepare = lambda batch: let_go.wait()
    bench = make_bench(runtime, batch_timeout_seconds=0.05)
    assert isinstance(bench.submit(tokens(1)).failure(), WorkerLost)
    let_go.set()


def test_many_short_batches_are_not_a_hung_one(make_bench):
    bench = make_bench(FakeRuntime(seconds_per_batch=0.02), max_batch_tokens=2, batch_timeout_seconds=0.2)
    bench.submit(*(tokens(i, 1) for i in range(30))).check_rows()
    assert bench.engine.health is Health.READY


def test_waiting_for_the_turn_is_not_hanging(make_bench):
    device, clock = Device(), ManualClock()
    holder = make_bench(device=device, name="engine-a")
    waiter = make_bench(device=device, name="engine-b", clock=clock, batch_timeout_seconds=1.0)
    holder.runtime.hold()
    first = holder.submit(tokens(1))
    holder.runtime.wait_for_run()
    second = waiter.submit(tokens(2))
    while not device._waiting:
        threading.Event().wait(0.001)
    clock.advance(1000)
    for _ in range(2):  # a late request makes the watcher look; after the second it has looked in full
        assert isinstance(waiter.submit(tokens(3), deadline=clock() - 1).failure(), RequestTimeout)
    assert waiter.engine.health is Health.READY
    holder.runtime.release()
    first.check_rows()
    second.check_rows()


def test_a_hung_engine_takes_the_others_on_its_device_along(make_bench):
    device = Device()
    hung = make_bench(
        FakeRuntime(hang_on_token=HANG), device=device, batch_timeout_seconds=0.1, name="engine-a"
    )
    other = make_bench(device=device, name="engine-b")
    hanging = hung.submit(tokens(HANG))
    hung.runtime.wait_for_run()
    waiting = other.submit(tokens(1))
    assert isinstance(hanging.failure(), WorkerLost)
    assert isinstance(waiting.failure(), WorkerLost)
    assert other.engine.health is Health.FAILED
    hung.runtime.let_go()


def test_a_batch_that_hangs_while_its_engine_stops_is_noticed_too(make_bench):
    """Else the others on the device would wait for their turn for ever."""
    device, failures = Device(), []
    stopped = make_bench(
        FakeRuntime(hang_on_token=HANG), device=device, batch_timeout_seconds=0.2, on_failed=failures.append
    )
    other = make_bench(device=device)
    hanging = stopped.submit(tokens(HANG))
    stopped.runtime.wait_for_run()
    waiting = other.submit(tokens(1))
    for _ in range(2):
        stopped.engine.stop()
    assert isinstance(hanging.failure(), ShuttingDown)
    assert isinstance(waiting.failure(), WorkerLost)
    assert stopped.engine.health is Health.STOPPED and len(failures) == 1 and "hangs" in failures[0].message
    stopped.runtime.let_go()


def test_an_engine_that_stops_may_wait_for_its_turn(make_bench):
    device, failures = Device(), []
    holder = make_bench(device=device)
    waiter = make_bench(device=device, batch_timeout_seconds=0.05, on_failed=failures.append)
    holder.runtime.hold()
    first = holder.submit(tokens(1))
    holder.runtime.wait_for_run()
    waiter.submit(tokens(2))
    while not device._waiting:
        threading.Event().wait(0.001)
    release = threading.Timer(0.2, holder.runtime.release)
    release.start()
    waiter.engine.stop()
    assert not failures and waiter.runtime.num_runs == 1
    first.check_rows()
    release.join()


def test_a_bug_in_the_engine_answers_every_caller(make_bench, caplog, monkeypatch):
    device = Device()
    bench = make_bench(device=device)
    other = make_bench(device=device)

    def broken(work, rows):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(bench.engine, "deliver", broken)
    error = bench.submit(tokens(1)).failure()
    assert type(error) is EngineError
    assert "a bug" in caplog.text
    assert bench.engine.health is Health.FAILED
    other.submit(tokens(1)).check_rows()


def test_a_bug_in_the_watcher_answers_every_caller(make_bench, caplog, monkeypatch):
    bench = make_bench()
    bench.runtime.hold()
    caller = bench.submit(tokens(1))
    bench.runtime.wait_for_run()

    def broken(now):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(bench.engine._scheduler, "expire", broken)
    with contextlib.suppress(EngineError):  # the watcher may have looked already
        late = bench.submit(tokens(2), deadline=time.monotonic())
        assert type(late.failure()) is EngineError
    assert type(caller.failure()) is EngineError
    assert "a bug" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_every_caller_is_answered_exactly_once_whatever_happens(make_bench, seed):
    """50 threads, random requests, random cancels, every failure short of losing the device."""
    runtime = FakeRuntime(
        raise_on_token=BAD, nan_on_token=SICK, nan_once_on_token=SHORT, oom_above_tokens=150, num_slots=2
    )
    bench = make_bench(runtime, max_batch_tokens=200, max_batch_sequences=16)
    problems: list[BaseException] = []
    num_answered = [0] * 50
    lock = threading.Lock()

    def client(k: int) -> None:
        rng = random.Random(1000 * seed + k)
        try:
            for _ in range(12):
                length = rng.choice([1, 1, 1, 3, 40])
                bad, inputs = set(), []
                for i in range(length):
                    kind = rng.choices([1, BAD, SICK, SHORT], [90, 3, 3, 4])[0]
                    repeat = rng.randint(1, 30) if rng.random() < 0.98 else 100
                    if kind in (BAD, SICK) or repeat * 2 > 150:
                        bad.add(i)
                    inputs.append(tokens(rng.randint(10, 800), kind, repeat=repeat))
                with lock:
                    caller = bench.submit(*inputs)
                if rng.random() < 0.3 and bench.engine.cancel(caller.request.id):
                    assert not caller.is_answered
                    continue
                caller.check_rows(bad=bad)
                num_answered[k] += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(k,)) for k in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
    assert sum(num_answered) > 300
    assert bench.engine.drain(10)
    assert bench.engine.num_queued_sequences == 0
    assert bench.engine.num_queued_tokens == 0


def test_every_caller_is_answered_exactly_once_when_the_engine_ends_under_load(make_bench):
    for end in ("stop", "lose", "drain"):
        runtime = FakeRuntime(lose_device_on_token=LOST)
        bench = make_bench(runtime, max_batch_tokens=64)
        callers, lock = [], threading.Lock()
        barrier = threading.Barrier(9)

        def client(bench=bench, callers=callers, lock=lock, barrier=barrier) -> None:
            barrier.wait()
            try:
                for i in range(100):
                    with lock:
                        callers.append(bench.submit(*[tokens(i, 1, 2)] * (1 + i % 40)))
            except (ShuttingDown, WorkerLost):
                pass

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        barrier.wait()
        if end == "stop":
            bench.engine.stop()
        elif end == "drain":
            assert bench.engine.drain(20)
        else:
            with lock:
                callers.append(bench.submit(tokens(LOST)))
        for thread in threads:
            thread.join()
        for caller in callers:
            output = caller.output()
            if end == "drain":
                assert not output.errors
            elif output.errors:
                assert isinstance(caller.failure(), ShuttingDown | WorkerLost)
        bench.engine.stop()
        assert all(len(c.answers) == 1 for c in callers)
