"""The engine on runtimes that work: every answer once, in order, and nothing waits without need."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from hilbert.core import Request, Sequence
from hilbert.engine import BatchStats, Device, Health
from hilbert.engine.assembly import Pending
from hilbert.errors import InvalidInput, RequestTimeout, ShuttingDown
from hilbert.testing.runtime import FakeRuntime, tokens


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_rows_come_back_in_order(make_bench, num_slots):
    bench = make_bench(FakeRuntime(num_slots=num_slots), max_batch_tokens=64)
    callers = [
        bench.submit(*(tokens(i, k, repeat=1 + (i * k) % 7) for k in range(1 + 9 * (i % 5))))
        for i in range(40)
    ]
    for caller in callers:
        output = caller.check_rows()
        assert output.queue_seconds >= 0
        assert caller.threads[0].startswith("engine-step-")


def test_a_request_of_2048_texts(make_bench):
    bench = make_bench()
    caller = bench.submit(*(tokens(i, i + 1, i + 2) for i in range(2048)))
    caller.check_rows()


def test_an_answer_does_not_share_memory_with_the_batch(make_bench):
    runtime = FakeRuntime()
    seen = []
    run = runtime.run

    def remember(prepared):
        output = run(prepared)
        seen.append(output.dense)
        return output

    runtime.run = remember
    bench = make_bench(runtime)
    output = bench.submit(tokens(1), tokens(2)).check_rows()
    assert not np.shares_memory(output.dense, seen[0])


def test_the_next_full_batch_is_prepared_while_one_runs(make_bench):
    runtime = FakeRuntime()
    prepared = threading.Semaphore(0)
    prepare = runtime.prepare

    def notice(batch):
        prepared.release()
        return prepare(batch)

    runtime.prepare = notice
    runtime.hold()
    bench = make_bench(runtime, max_batch_tokens=4)
    caller = bench.submit(tokens(1, 2, 3, 4), tokens(5, 6, 7, 8))
    runtime.wait_for_run()
    assert prepared.acquire(timeout=10)
    assert prepared.acquire(timeout=10)
    assert runtime.num_runs == 1
    runtime.release()
    caller.check_rows()


def test_a_batch_that_cannot_start_stays_open_for_newcomers(make_bench):
    bench = make_bench()
    bench.runtime.hold()
    first = bench.submit(tokens(1))
    bench.runtime.wait_for_run()
    others = [bench.submit(tokens(i)) for i in range(2, 20)]
    bench.runtime.release()
    for caller in [first, *others]:
        caller.check_rows()
    assert [len(b.sequences) for b in bench.runtime.batches] == [1, 18]


def test_while_a_batch_is_open_only_a_full_one_is_taken(make_bench):
    bench = make_bench(max_batch_tokens=4, is_started=False)  # this thread does the steps
    engine = bench.engine
    bench.submit(tokens(1))
    first = engine.take()
    bench.submit(tokens(2))
    assert engine._next_work() is None
    bench.submit(tokens(3, 4, 5))
    second = engine.take()
    assert second.batch.num_tokens == 4
    bench.submit(tokens(6))
    engine.mark_done(first)
    assert engine._next_work() is None
    engine.mark_done(second)
    assert engine.take().batch.num_tokens == 1


def test_a_slow_deliver_does_not_hold_up_the_next_batch(make_bench):
    bench = make_bench()
    may_go_on = threading.Event()
    bench.runtime.hold()
    bench.engine.submit(Request(99, (Sequence(99, 0, tokens(1)),)), lambda output: may_go_on.wait())
    bench.runtime.wait_for_run()
    other = bench.submit(tokens(2))
    bench.runtime.release()
    other.check_rows()
    may_go_on.set()


def test_requests_may_come_before_the_start(make_bench):
    bench = make_bench(is_started=False)
    caller = bench.submit(tokens(1))
    assert bench.engine.health is Health.LOADING
    bench.engine.start()
    assert bench.engine.health is Health.READY
    caller.check_rows()


def test_an_empty_request_is_refused(make_bench):
    bench = make_bench()
    with pytest.raises(InvalidInput):
        bench.submit()
    assert bench.engine.num_requests == 0
    bench.submit(tokens(1)).check_rows()


def test_a_cancelled_request_is_not_answered_and_its_queue_is_dropped(make_bench):
    bench = make_bench(max_batch_tokens=4)
    bench.runtime.hold()
    cancelled = bench.submit(*[tokens(1, 2, 3, 4)] * 50)
    bench.runtime.wait_for_run()
    kept = bench.submit(tokens(7))
    assert bench.engine.cancel(cancelled.request.id) is True
    assert bench.engine.cancel(cancelled.request.id) is False
    assert bench.engine.num_queued_sequences == 1
    bench.runtime.release()
    kept.check_rows()
    assert bench.engine.drain(10)
    assert not cancelled.is_answered
    assert bench.runtime.num_runs <= 3


def test_rows_of_a_cancelled_request_do_not_reach_the_next_one_with_its_id(make_bench):
    bench = make_bench()
    bench.runtime.hold()
    cancelled = bench.submit(tokens(1), tokens(2))
    bench.runtime.wait_for_run()
    bench.engine.cancel(cancelled.request.id)
    bench._next_id -= 1
    again = bench.submit(tokens(3), tokens(4))
    assert again.request.id == cancelled.request.id
    bench.runtime.release()
    again.check_rows()
    assert not cancelled.is_answered


def test_cancelling_between_the_copy_of_the_rows_and_the_answer(make_bench, monkeypatch):
    bench = make_bench()

    def put(self, first, rows, original=Pending.put):
        original(self, first, rows)
        if self.request.id == 1:
            bench.engine.cancel(1)

    monkeypatch.setattr(Pending, "put", put)
    cancelled = bench.submit(tokens(1))
    bench.submit(tokens(2)).check_rows()
    assert bench.engine.drain(10)
    assert not cancelled.is_answered


def test_cancelling_what_is_answered_changes_nothing(make_bench):
    bench = make_bench()
    caller = bench.submit(tokens(1))
    caller.check_rows()
    assert bench.engine.cancel(caller.request.id) is False
    assert bench.engine.cancel(12345) is False


def test_a_late_request_is_answered_although_no_batch_ends(make_bench):
    bench = make_bench(max_batch_tokens=4)
    bench.runtime.hold()
    running = bench.submit(tokens(1, 2, 3, 4), deadline=time.monotonic() + 0.05)
    bench.runtime.wait_for_run()
    queued = bench.submit(tokens(1), deadline=time.monotonic() + 0.05)
    assert isinstance(queued.failure(), RequestTimeout)
    assert isinstance(running.failure(), RequestTimeout)
    assert bench.engine.num_queued_sequences == 0
    assert bench.engine.health is Health.READY
    bench.runtime.release()
    bench.submit(tokens(5), deadline=time.monotonic() + 60).check_rows()
    assert len(running.answers) == 1


def test_requests_with_later_deadlines_let_the_watcher_sleep(make_bench, monkeypatch):
    """One after the other: the watcher looks when the first comes, also if it finds that all is over."""
    bench = make_bench(max_batch_tokens=4)
    looks = []
    scheduler = bench.engine._scheduler
    expire = scheduler.expire
    monkeypatch.setattr(scheduler, "expire", lambda now: looks.append(now) or expire(now))
    for number in range(30):
        bench.submit(tokens(1), deadline=time.monotonic() + 60 + number).check_rows()
        seen = len(looks)
        with bench.engine._lock:
            bench.engine._has_event.notify()  # now it finds that all is over
        while len(looks) == seen:
            threading.Event().wait(0.001)
    assert 30 <= len(looks) < 45
    bench.runtime.hold()
    near = bench.submit(tokens(1), deadline=time.monotonic() + 0.02)
    assert isinstance(near.failure(), RequestTimeout), "and yet it wakes when something is due"
    bench.runtime.release()


def test_a_nearer_deadline_wakes_the_watcher_earlier(make_bench):
    bench = make_bench(max_batch_tokens=4)
    bench.runtime.hold()
    far = bench.submit(tokens(1, 2, 3, 4), deadline=time.monotonic() + 3600)
    bench.runtime.wait_for_run()
    while not 0 < bench.engine._watched_until < math.inf:  # until the watcher sleeps towards the far one
        threading.Event().wait(0.001)
    near = bench.submit(tokens(1), deadline=time.monotonic() + 0.02)
    assert isinstance(near.failure(), RequestTimeout)
    bench.runtime.release()
    far.check_rows()


def test_drain_finishes_what_is_there_and_takes_nothing_new(make_bench):
    bench = make_bench(max_batch_tokens=4)
    bench.runtime.hold()
    callers = [bench.submit(*[tokens(i, 2, 3, 4)] * 3) for i in range(5)]
    bench.runtime.wait_for_run()
    assert bench.engine.drain(0.01) is False
    assert bench.engine.health is Health.DRAINING
    with pytest.raises(ShuttingDown):
        bench.submit(tokens(1))
    bench.runtime.release()
    assert bench.engine.drain(10) is True
    for caller in callers:
        caller.check_rows()


def test_drain_waits_for_the_last_answer_to_be_delivered(make_bench):
    bench = make_bench()
    may_go_on, is_delivering = threading.Event(), threading.Event()

    def deliver(output):
        is_delivering.set()
        may_go_on.wait()

    bench.engine.submit(Request(99, (Sequence(99, 0, tokens(1)),)), deliver)
    assert is_delivering.wait(10)
    assert bench.engine.num_requests == 0
    assert bench.engine.drain(0.02) is False
    may_go_on.set()
    assert bench.engine.drain(10) is True


def test_drain_of_an_engine_whose_last_request_is_cancelled(make_bench):
    bench = make_bench()
    bench.runtime.hold()
    caller = bench.submit(tokens(1))
    bench.runtime.wait_for_run()
    drainer = threading.Thread(target=bench.engine.drain, args=(20,))
    drainer.start()
    assert bench.engine.cancel(caller.request.id)
    drainer.join(10)
    assert not drainer.is_alive()
    bench.runtime.release()


def test_stop_answers_the_rest(make_bench):
    bench = make_bench(max_batch_tokens=4)
    bench.runtime.hold()
    callers = [bench.submit(*[tokens(i, 2, 3, 4)] * 3) for i in range(5)]
    bench.runtime.wait_for_run()
    stopper = threading.Thread(target=bench.engine.stop)
    stopper.start()
    for caller in callers:
        assert isinstance(caller.failure(), ShuttingDown)
    bench.runtime.release()
    stopper.join(10)
    assert not stopper.is_alive()
    assert bench.engine.health is Health.STOPPED
    with pytest.raises(ShuttingDown):
        bench.submit(tokens(1))
    bench.engine.stop()
    assert all(len(c.answers) == 1 for c in callers)


def test_stop_from_within_an_answer(make_bench):
    bench = make_bench()
    is_stopped = threading.Event()

    def deliver(output):
        bench.engine.stop()
        is_stopped.set()

    bench.engine.submit(Request(99, (Sequence(99, 0, tokens(1)),)), deliver)
    assert is_stopped.wait(10)


def test_a_deliver_that_raises_harms_nobody_else(make_bench, caplog):
    bench = make_bench()

    def deliver(output):
        raise RuntimeError("the caller is broken")

    bench.engine.submit(Request(99, (Sequence(99, 0, tokens(1)),)), deliver)
    bench.submit(tokens(2)).check_rows()
    assert bench.engine.drain(10)
    assert "the caller is broken" in caplog.text


def test_every_batch_is_reported_after_its_answers(make_bench):
    reports: list[tuple[BatchStats, bool]] = []
    is_reported = threading.Event()
    callers = []

    def on_batch(stats):
        reports.append((stats, callers[0].is_answered))
        is_reported.set()

    bench = make_bench(FakeRuntime(seconds_per_batch=0.01), on_batch=on_batch, is_started=False)
    callers.append(bench.submit(tokens(1, 2), tokens(3)))
    bench.engine.start()
    callers[0].check_rows()
    assert is_reported.wait(10)
    (stats, was_answered) = reports[0]
    assert was_answered
    assert (stats.num_sequences, stats.num_tokens, stats.is_retry, stats.error) == (2, 3, False, "")
    assert stats.run_seconds >= 0.01
    assert stats.queue_seconds > 0
    output = callers[0].output()
    assert output.inference_seconds == stats.run_seconds
    assert output.queue_seconds == stats.queue_seconds


def test_batches_are_cut_while_a_model_with_short_turns_is_about(make_bench) -> None:
    class Shared(Device):
        """Somebody else's usual turn, as it were."""

        seconds = math.inf

        def slice_seconds(self, owner: object) -> float:
            return self.seconds

    device, sizes = Shared(), []
    runtime = FakeRuntime(seconds_per_token=0.001, num_slots=1)
    bench = make_bench(
        runtime, max_batch_tokens=40, device=device, on_batch=lambda stats: sizes.append(stats.num_tokens)
    )
    bench.submit(*(tokens(1, 2) for _ in range(60))).check_rows()
    assert sizes == [40, 40, 40]
    device.seconds = 0.010  # ten tokens, by what was measured
    sizes.clear()
    bench.submit(*(tokens(1, 2) for _ in range(30))).check_rows()
    assert sum(sizes) == 60 and max(sizes) <= 12
