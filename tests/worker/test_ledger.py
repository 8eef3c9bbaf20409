"""Whom a loss is blamed on: rules, and a machine that tries to break them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hilbert.worker.ledger import Ledger, Loss

READY = {1}


def filled(*ids: int) -> Ledger:
    ledger = Ledger()
    for request_id in ids:
        assert ledger.enter(request_id, 1, READY)
    return ledger


class TestRules:
    def test_without_a_worker_requests_wait_in_order(self):
        ledger = Ledger()
        assert not ledger.enter(1, 1, ())
        assert not ledger.enter(2, 2, ())
        assert ledger.next_to_send({2}) == [2]
        assert ledger.next_to_send({1, 2}) == [1]

    def test_what_only_queued_is_not_suspected(self):
        ledger = filled(1, 2, 3)
        assert ledger.lost(Loss.KILLED, {2}) == []
        assert ledger.next_to_send(READY) == [2]  # the suspect first, alone
        assert ledger.next_to_send(READY) == []
        assert not ledger.enter(4, 1, READY)
        assert ledger.answered(2)
        assert ledger.next_to_send(READY) == [1, 3, 4]

    @pytest.mark.parametrize("loss", [Loss.CRASHED, Loss.HUNG])
    def test_the_guilty_one_is_convicted_alone(self, loss):
        ledger = filled(1, 2)
        assert ledger.lost(loss, {1, 2}) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(loss, {1}) == [1]
        assert ledger.next_to_send(READY) == [2]
        assert ledger.answered(2)
        assert len(ledger) == 0

    def test_a_kill_from_outside_must_hit_twice(self):
        ledger = filled(1)
        assert ledger.lost(Loss.KILLED, {1}) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(Loss.KILLED, {1}) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(Loss.KILLED, {1}) == [1]

    @pytest.mark.parametrize("loss", [Loss.CRASHED, Loss.HUNG])
    def test_a_loss_while_a_model_is_built_must_hit_twice(self, loss):
        ledger = filled(1, 2)
        assert ledger.lost(loss, {1}, was_building=True) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(loss, {1}, was_building=True) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(loss, {1}) == [1]
        assert ledger.next_to_send(READY) == [2]
        assert ledger.lost(loss, set(), was_building=True) == []
        assert not ledger.keeps_waiting(READY)

    def test_a_kill_between_two_batches_proves_nothing(self):
        ledger = filled(1)
        for _ in range(5):
            assert ledger.lost(Loss.KILLED, {1} if _ == 0 else set()) == []
            assert ledger.next_to_send(READY) == [1]

    def test_a_crash_outside_of_batches_makes_everybody_a_suspect(self):
        ledger = filled(1, 2)
        assert ledger.lost(Loss.CRASHED, set()) == []
        assert ledger.next_to_send(READY) == [1]
        assert ledger.lost(Loss.CRASHED, set()) == [1]

    def test_who_only_queues_is_never_suspected(self):
        ledger = filled(1, 2)
        for _ in range(3):
            assert ledger.lost(Loss.KILLED, {1}) == ([] if _ < 2 else [1])
            assert ledger.next_to_send(READY) == ([1] if _ < 2 else [2])
        assert not ledger.keeps_waiting(READY)

    def test_two_losses_that_nothing_explains(self):
        ledger = filled(1)
        ledger.lost(Loss.KILLED, set())
        assert not ledger.keeps_waiting(READY)
        assert ledger.next_to_send(READY) == [1]
        ledger.lost(Loss.KILLED, set())
        assert ledger.keeps_waiting(READY)

    def test_a_trial_waits_for_a_quiet_worker(self):
        ledger = filled(1)
        ledger.lost(Loss.CRASHED, {1})
        assert ledger.enter(2, 2, ()) is False
        assert ledger.next_to_send({2}) == [2]  # the suspect's model is not there yet
        assert ledger.enter(3, 2, {2}) is True
        assert ledger.enter(4, 2, {1, 2}) is False
        assert ledger.next_to_send({1, 2}) == []
        assert ledger.answered(2) is False
        assert ledger.answered(3) is True
        assert ledger.next_to_send({1, 2}) == [1]

    def test_an_abandoned_trial_goes_on(self):
        ledger = filled(1, 2)
        ledger.lost(Loss.CRASHED, {1})
        assert ledger.next_to_send(READY) == [1]
        assert ledger.abandon(1) is False  # do not cancel: its end shows that the worker is quiet
        assert ledger.next_to_send(READY) == []
        assert ledger.answered(1)
        assert ledger.next_to_send(READY) == [2]

    def test_an_abandoned_trial_that_kills_is_nobodys(self):
        ledger = filled(1)
        ledger.lost(Loss.CRASHED, {1})
        ledger.next_to_send(READY)
        ledger.abandon(1)
        assert ledger.lost(Loss.CRASHED, {1}) == []
        assert len(ledger) == 0


class Machine(RuleBasedStateMachine):
    """A model of the worker beside the ledger: some requests are poison, the rest is innocent.

    `worker` holds what was sent and not answered. A poison kills the worker when it is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.next_id = 1
        self.poison: set[int] = set()
        self.open: set[int] = set()  # requests that somebody waits for
        self.worker: set[int] = set()
        self.model_of: dict[int, int] = {}
        self.ready: set[int] = set()
        self.is_up = False
        self.crashes: dict[int, int] = {}  # by poison
        self.taken_down: dict[int, dict[int, int]] = {}  # innocent → poison → times

    def _send(self, ids: list[int]) -> None:
        assert len(set(ids)) == len(ids)
        for request_id in ids:
            assert request_id not in self.worker, "sent twice to one worker"
            assert self.is_up and self.model_of[request_id] in self.ready
            self.worker.add(request_id)
        if self.ledger.trial is not None:
            assert self.worker <= {self.ledger.trial}, "a trial is alone"

    @rule(model=st.sampled_from([1, 2]), is_poison=st.integers(0, 4).map(lambda n: n == 0))
    def enter(self, model, is_poison):
        request_id, self.next_id = self.next_id, self.next_id + 1
        self.model_of[request_id] = model
        if is_poison:
            self.poison.add(request_id)
        self.open.add(request_id)
        if self.ledger.enter(request_id, model, self.ready):
            self._send([request_id])

    @precondition(lambda self: not self.is_up)
    @rule()
    def start(self):
        self.is_up = True

    @precondition(lambda self: self.is_up)
    @rule(model=st.sampled_from([1, 2]))
    def load(self, model):
        self.ready.add(model)
        self._send(self.ledger.next_to_send(self.ready))

    @precondition(lambda self: self.worker)
    @rule(data=st.data())
    def compute(self, data):
        """A batch: innocents are answered, a poison in it brings the worker down."""
        batch = data.draw(st.sets(st.sampled_from(sorted(self.worker)), min_size=1))
        guilty = batch & self.poison
        if guilty:
            for innocent in batch - self.poison:
                for poison in guilty:
                    times = self.taken_down.setdefault(innocent, {})
                    times[poison] = times.get(poison, 0) + 1
            for poison in guilty:
                self.crashes[poison] = self.crashes.get(poison, 0) + 1
            self._lose(data.draw(st.sampled_from([Loss.CRASHED, Loss.HUNG])), batch)
        else:
            for request_id in batch:
                self.worker.discard(request_id)
                self.open.discard(request_id)
                if self.ledger.answered(request_id):
                    self._send(self.ledger.next_to_send(self.ready))

    @precondition(lambda self: self.is_up)
    @rule(data=st.data())
    def killed(self, data):
        batch = data.draw(st.sets(st.sampled_from(sorted(self.worker)))) if self.worker else set()
        self._lose(Loss.KILLED, batch)

    def _lose(self, loss, batch):
        self.worker.clear()
        self.ready.clear()
        self.is_up = False
        convicted = self.ledger.lost(loss, batch)
        assert set(convicted) <= self.open
        if loss is not Loss.KILLED:
            assert set(convicted) <= self.poison, "an innocent was convicted"
        self.open -= set(convicted)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abandon(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(request_id)
        if self.ledger.abandon(request_id):
            self.worker.discard(request_id)
        if self.is_up:
            self._send(self.ledger.next_to_send(self.ready))

    @invariant()
    def nothing_is_lost(self):
        trial = self.ledger.trial
        extra = 1 if trial is not None and trial not in self.open else 0
        assert len(self.ledger) == len(self.open) + extra

    @invariant()
    def nobody_waits_for_nothing(self):
        can_run = {i for i in self.open - self.worker if self.is_up and self.model_of[i] in self.ready}
        assert not can_run or self.ledger.keeps_waiting(self.ready)

    @invariant()
    def nobody_is_taken_down_twice_by_the_same(self):
        for times in self.taken_down.values():
            assert max(times.values()) == 1

    @invariant()
    def poison_is_convicted_soon(self):
        assert max(self.crashes.values(), default=0) <= 2

    def teardown(self):
        """With a healthy worker everybody gets an answer."""
        for _ in range(10_000):
            if not self.open:
                break
            self.is_up, self.ready = True, {1, 2}
            self._send(self.ledger.next_to_send(self.ready))
            assert self.worker, "somebody waits and nothing is sent"
            batch = set(self.worker)
            if batch & self.poison:
                self._lose(Loss.CRASHED, batch)
                continue
            for request_id in batch:
                self.worker.discard(request_id)
                self.open.discard(request_id)
                self.ledger.answered(request_id)
        assert not self.open


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
