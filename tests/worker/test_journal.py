"""What a worker leaves behind about what it was computing."""

from __future__ import annotations

import os

import pytest

from hilbert.worker.journal import NO_LANE, NUM_LANES, Journal, create_journal_file


@pytest.fixture
def twins():
    """The worker's mapping and the front's."""
    fd = create_journal_file()
    worker, front = Journal(fd), Journal(fd)
    os.close(fd)
    yield worker, front
    worker.close()
    front.close()


def test_what_runs_is_seen_on_the_other_side(twins):
    worker, front = twins
    assert front.running() == frozenset()
    worker.enter(0, [1, 2**40])
    worker.enter(NUM_LANES - 1, [7])
    assert front.running() == {1, 2**40, 7}
    worker.leave(0)
    assert front.running() == {7}
    worker.leave(NUM_LANES - 1)
    assert front.running() == frozenset()


def test_a_batch_with_more_requests_than_fit_is_unknown(twins):
    worker, front = twins
    worker.enter(0, range(5000))
    assert front.running() is None
    worker.leave(0)
    assert front.running() == frozenset()


def test_who_has_no_lane_makes_everything_unknown(twins):
    worker, front = twins
    worker.enter(NO_LANE, [1])
    worker.leave(NO_LANE)  # perhaps another thread without a lane goes on
    assert front.running() is None


def test_progress_counts_batches(twins):
    worker, front = twins
    before = front.progress()
    worker.enter(3, [1])
    worker.leave(3, is_batch_done=False)
    assert front.progress() == before
    worker.enter(3, [1])
    worker.leave(3)
    assert front.progress() == before + 1


def test_it_survives_the_process(twins):
    worker, front = twins
    child = os.fork()
    if child == 0:
        worker.enter(1, [42])
        os._exit(1)
    os.waitpid(child, 0)
    assert front.running() == {42}
