"""The scheduler under any sequence of calls: nothing lost, nothing twice, budgets kept, waiting bounded."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hilbert.core import OutputType, Request, Sequence
from hilbert.scheduler import Scheduler
from hilbert.testing.clock import ManualClock

MAX_LENGTH = 60
LANES = (frozenset({OutputType.DENSE}), frozenset({OutputType.DENSE, OutputType.SPARSE}))


class _Expected:
    """What the test knows of a request: what is still to come, and how long it may wait."""

    def __init__(self, request: Request, patience: int) -> None:
        self.request = request
        self.queued = list(request.sequences)
        self.patience = patience


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(max_tokens=st.integers(1, 200), max_sequences=st.integers(1, 12))
    def start(self, max_tokens: int, max_sequences: int) -> None:
        self.scheduler = Scheduler(max_tokens, max_sequences)
        self.clock = ManualClock()
        self.known: dict[int, _Expected] = {}
        self.next_id = 0

    def _patience(self, outputs: frozenset[OutputType]) -> int:
        """Batches until a newcomer's first sequence leaves, at worst."""
        scheduler = self.scheduler
        ahead = sum(1 for e in self.known.values() if e.queued and e.request.outputs == outputs)
        quantum = max(1, scheduler.max_batch_tokens // 4)
        tokens_ahead = ahead * max(quantum + MAX_LENGTH, 2 * quantum)
        smallest_full_batch = max(1, scheduler.max_batch_tokens - MAX_LENGTH + 1)
        batches = tokens_ahead // smallest_full_batch + tokens_ahead // scheduler.max_batch_sequences + 1
        return len(LANES) * (batches + 1)

    @rule(
        lengths=st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=30),
        outputs=st.sampled_from(LANES),
        seconds=st.none() | st.floats(0, 10),
    )
    def add(self, lengths: list[int], outputs: frozenset[OutputType], seconds: float | None) -> None:
        i, self.next_id = self.next_id, self.next_id + 1
        sequences = tuple(Sequence(i, k, np.zeros(n, np.int32)) for k, n in enumerate(lengths))
        deadline = None if seconds is None else self.clock() + seconds
        request = Request(i, sequences, outputs, deadline)
        self.known[i] = _Expected(request, self._patience(outputs))
        self.scheduler.add(request, self.clock())

    @rule(only_full=st.booleans())
    def take(self, only_full: bool) -> None:
        scheduler = self.scheduler
        num_before = scheduler.num_queued_sequences
        batch = scheduler.next_batch(self.clock(), only_full=only_full)
        if batch is None:
            assert only_full or num_before == 0
            return
        assert batch.sequences
        assert len(batch.sequences) <= scheduler.max_batch_sequences
        assert batch.num_tokens <= scheduler.max_batch_tokens or len(batch.sequences) == 1
        served = set()
        for sequence in batch.sequences:
            expected = self.known[sequence.request_id]
            assert expected.request.outputs == batch.outputs
            assert expected.queued.pop(0) is sequence  # in order, not lost, not twice
            served.add(sequence.request_id)
        heads = [e.queued[0] for e in self.known.values() if e.queued and e.request.outputs == batch.outputs]
        if heads and len(batch.sequences) < scheduler.max_batch_sequences:
            room = scheduler.max_batch_tokens - batch.num_tokens
            assert any(head.num_tokens > room for head in heads), "the batch closed too early"
        for i, expected in self.known.items():
            if i in served:
                expected.patience = 10**9  # only the first sequence's wait is bounded by arrival
            elif expected.queued:
                expected.patience -= 1
                assert expected.patience >= 0, f"request {i} starves"

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        i = data.draw(st.sampled_from(sorted(self.known)))
        leave = data.draw(st.sampled_from([self.scheduler.cancel, self.scheduler.finish]))
        assert leave(i)
        assert not leave(i)
        del self.known[i]

    @rule(seconds=st.floats(0, 5))
    def expire(self, seconds: float) -> None:
        self.clock.advance(seconds)
        late = {
            i
            for i, e in self.known.items()
            if e.request.deadline is not None and e.request.deadline <= self.clock()
        }
        expired = self.scheduler.expire(self.clock())
        assert len(expired) == len(set(expired))
        assert set(expired) == late
        for i in expired:
            del self.known[i]

    @invariant()
    def counters_are_exact(self) -> None:
        queued = [s for e in self.known.values() for s in e.queued]
        assert self.scheduler.num_queued_sequences == len(queued)
        assert self.scheduler.num_queued_tokens == sum(s.num_tokens for s in queued)
        assert len(self.scheduler) == len(self.known)
        deadlines = [e.request.deadline for e in self.known.values() if e.request.deadline is not None]
        assert self.scheduler.next_deadline() == min(deadlines, default=None)

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            while self.scheduler.num_queued_sequences:
                self.take(only_full=False)
            assert not any(e.queued for e in self.known.values())
            assert self.scheduler.next_batch(self.clock()) is None


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
