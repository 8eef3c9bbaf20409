"""What the scheduler promises, one example each. The general case is in test_properties.py."""

from __future__ import annotations

import numpy as np
import pytest

from hilbert.core import Batch, OutputType, Request, Sequence
from hilbert.errors import EngineError, InvalidInput
from hilbert.scheduler import Scheduler

SPARSE = frozenset({OutputType.SPARSE})
IDS = np.zeros(100_000, dtype=np.int32)


def request(request_id: int, lengths: list[int], *, deadline: float | None = None, **more) -> Request:
    sequences = tuple(Sequence(request_id, i, IDS[:n]) for i, n in enumerate(lengths))
    return Request(request_id, sequences, deadline=deadline, **more)


def content(batch: Batch | None) -> list[tuple[int, int]]:
    assert batch is not None
    return [(s.request_id, s.index) for s in batch.sequences]


def drain(scheduler: Scheduler) -> list[Batch]:
    batches = []
    while (batch := scheduler.next_batch(0.0)) is not None:
        batches.append(batch)
    return batches


def test_an_empty_scheduler_has_no_batch():
    scheduler = Scheduler(100)
    assert scheduler.next_batch(0.0) is None
    assert scheduler.next_deadline() is None
    assert scheduler.expire(1e9) == []


def test_sequences_leave_in_order_and_within_the_budget():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [40, 40, 40]), 0.0)
    assert (scheduler.num_queued_sequences, scheduler.num_queued_tokens) == (3, 120)
    assert content(scheduler.next_batch(0.0)) == [(1, 0), (1, 1)]
    assert content(scheduler.next_batch(0.0)) == [(1, 2)]
    assert (scheduler.num_queued_sequences, scheduler.num_queued_tokens) == (0, 0)
    assert scheduler.next_batch(0.0) is None


def test_single_texts_leave_in_order_of_arrival():
    scheduler = Scheduler(100)
    for i in range(30):
        scheduler.add(request(i, [20]), 0.0)
    assert [i for batch in drain(scheduler) for i, _ in content(batch)] == list(range(30))


def test_the_number_of_sequences_is_limited_too():
    scheduler = Scheduler(1000, max_batch_sequences=2)
    scheduler.add(request(1, [1] * 5), 0.0)
    assert [len(b.sequences) for b in drain(scheduler)] == [2, 2, 1]


def test_a_sequence_longer_than_the_budget_runs_alone():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [5, 500, 5]), 0.0)
    scheduler.add(request(2, [5]), 0.0)
    batches = [content(b) for b in drain(scheduler)]
    assert [(1, 1)] in batches
    assert sorted(pair for batch in batches for pair in batch) == [(1, 0), (1, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize("num_texts", [2048])
@pytest.mark.parametrize("num_before", [0, 1, 7])
def test_beside_a_large_request_a_short_query_is_in_the_very_next_batch(num_texts, num_before):
    scheduler = Scheduler(2048)
    scheduler.add(request(1, [100] * num_texts), 0.0)
    for _ in range(num_before):
        scheduler.next_batch(0.0)
    scheduler.add(request(2, [12]), 0.0)
    assert (2, 0) in content(scheduler.next_batch(0.0))


def test_beside_three_large_requests_too():
    scheduler = Scheduler(2048)
    for i in range(3):
        scheduler.add(request(i, [100] * 2048), 0.0)
    for _ in range(5):
        scheduler.next_batch(0.0)
    scheduler.add(request(9, [12]), 0.0)
    assert (9, 0) in content(scheduler.next_batch(0.0))


def test_a_stream_of_newcomers_does_not_starve_a_large_request():
    scheduler = Scheduler(1000)
    scheduler.add(request(0, [100] * 2048), 0.0)
    served = 0
    for round_ in range(50):
        for i in range(30):  # more than fits: the queue only grows
            scheduler.add(request(1 + 30 * round_ + i, [100]), 0.0)
        served += sum(1 for i, _ in content(scheduler.next_batch(0.0)) if i == 0)
    assert served >= 10


def test_large_requests_share_equally_whatever_the_length_of_their_texts():
    scheduler = Scheduler(1000)
    lengths = {1: 7, 2: 90, 3: 400, 4: 999}
    for i, n in lengths.items():
        scheduler.add(request(i, [n] * (200_000 // n)), 0.0)
    tokens = dict.fromkeys(lengths, 0)
    for _ in range(200):
        for s in scheduler.next_batch(0.0).sequences:  # type: ignore[union-attr]
            tokens[s.request_id] += s.num_tokens
    assert max(tokens.values()) - min(tokens.values()) <= 2 * 1000, tokens


def test_a_small_request_is_finished_whole():
    scheduler = Scheduler(1000)
    scheduler.add(request(1, [50] * 2048), 0.0)
    scheduler.add(request(2, [49] * 10), 0.0)  # 490 tokens: two quanta
    first_batch = [i for i, _ in content(scheduler.next_batch(0.0))]
    assert first_batch[5:15] == [2] * 10, first_batch


def test_other_outputs_run_in_batches_of_their_own_in_turn():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [50] * 8), 0.0)
    scheduler.add(request(2, [50] * 8, outputs=SPARSE), 0.0)
    scheduler.add(request(3, [50] * 2), 0.0)
    batches = drain(scheduler)
    assert [b.outputs == SPARSE for b in batches[:8]] == [False, True] * 4
    assert all(len({s.request_id == 2 for s in b.sequences}) == 1 for b in batches)


def test_only_full_leaves_a_batch_open_for_newcomers():
    scheduler = Scheduler(100, max_batch_sequences=3)
    scheduler.add(request(1, [60]), 0.0)
    assert not scheduler.has_full_batch
    assert scheduler.next_batch(0.0, only_full=True) is None
    scheduler.add(request(2, [40]), 0.0)
    assert scheduler.has_full_batch
    assert content(scheduler.next_batch(0.0, only_full=True)) == [(1, 0), (2, 0)]
    scheduler.add(request(3, [1, 1, 1]), 0.0)
    assert content(scheduler.next_batch(0.0, only_full=True)) == [(3, 0), (3, 1), (3, 2)]


def test_cancel_drops_what_is_queued():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [50] * 10), 0.0)
    scheduler.add(request(2, [50] * 2), 0.0)
    scheduler.next_batch(0.0)
    assert scheduler.cancel(1) is True
    assert scheduler.cancel(1) is False
    assert {s.request_id for b in drain(scheduler) for s in b.sequences} == {2}
    assert (scheduler.num_queued_sequences, scheduler.num_queued_tokens) == (0, 0)


def test_the_id_of_a_cancelled_request_can_be_used_again():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [10, 10]), 0.0)
    scheduler.cancel(1)
    scheduler.add(request(1, [20]), 0.0)
    assert [s.num_tokens for b in drain(scheduler) for s in b.sequences] == [20]


def test_expire_drops_what_is_late_and_says_so():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [10], deadline=5.0), 0.0)
    scheduler.add(request(2, [10], deadline=3.0), 0.0)
    scheduler.add(request(3, [10]), 0.0)
    assert scheduler.next_deadline() == 3.0
    assert scheduler.expire(2.9) == []
    assert scheduler.expire(5.0) == [2, 1]
    assert scheduler.next_deadline() is None
    assert {s.request_id for b in drain(scheduler) for s in b.sequences} == {3}


def test_a_deadline_counts_until_the_request_is_finished():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [10], deadline=5.0), 0.0)
    scheduler.add(request(2, [10], deadline=6.0), 0.0)
    scheduler.next_batch(0.0)
    assert scheduler.next_deadline() == 5.0
    assert scheduler.finish(1) is True
    assert scheduler.expire(10.0) == [2]


def test_deadlines_of_answered_requests_do_not_pile_up():
    scheduler = Scheduler(100)
    scheduler.add(request(0, [10], deadline=1.0), 0.0)
    for i in range(1, 10_000):
        scheduler.add(request(i, [10], deadline=600.0 + i), 0.0)
        scheduler.next_batch(0.0)
        scheduler.finish(i)
    assert len(scheduler._deadlines) < 1000
    assert scheduler.expire(1.0) == [0]


def test_what_cannot_be_queued_is_refused():
    scheduler = Scheduler(100)
    scheduler.add(request(1, [10]), 0.0)
    with pytest.raises(EngineError, match="already"):
        scheduler.add(request(1, [10]), 0.0)
    with pytest.raises(InvalidInput):
        scheduler.add(request(2, []), 0.0)
    with pytest.raises(InvalidInput) as caught:
        scheduler.add(request(3, [5, 0]), 0.0)
    assert caught.value.index == 1
    assert len(scheduler) == 1
    with pytest.raises(ValueError, match="max_batch_tokens=0"):
        Scheduler(0)


def test_the_work_for_a_batch_does_not_grow_with_what_is_queued(monkeypatch):
    """Counts the visits, as time would not be the same on every machine."""
    visits = 0

    def counted(self, lane, num_tokens, num_sequences, original=Scheduler._count):
        nonlocal visits
        visits += 1
        original(self, lane, num_tokens, num_sequences)

    scheduler = Scheduler(2048)
    for i in range(100):
        scheduler.add(request(i, [100] * 2048), 0.0)
    monkeypatch.setattr(Scheduler, "_count", counted)
    for _ in range(1000):
        scheduler.next_batch(0.0)
    assert visits <= 1000 * 6
