from __future__ import annotations

import pytest

from hilbert.errors import Overloaded
from hilbert.scheduler import Admission
from hilbert.testing.clock import ManualClock


def test_requests_come_in_until_the_tokens_are_too_many():
    admission = Admission(max_queued_tokens=100, max_concurrent_requests=10)
    admission.admit(60, 0.0)
    admission.admit(40, 0.0)
    with pytest.raises(
        Overloaded, match=r"100 tokens are queued .* 1; the limit is 100 .*--max-queued-tokens"
    ):
        admission.admit(1, 0.0)
    assert (admission.num_queued_tokens, admission.num_requests) == (100, 2)
    admission.release(60)
    admission.admit(1, 0.0)
    assert (admission.num_queued_tokens, admission.num_requests) == (41, 2)


def test_requests_come_in_until_they_are_too_many():
    admission = Admission(max_queued_tokens=100, max_concurrent_requests=2)
    admission.admit(1, 0.0)
    admission.admit(1, 0.0)
    with pytest.raises(Overloaded, match="2 requests are in progress; the limit is 2"):
        admission.admit(1, 0.0)
    admission.complete(1, 1.0)
    admission.admit(1, 1.0)


def test_an_empty_house_lets_in_what_is_larger_than_the_house():
    admission = Admission(max_queued_tokens=100, max_concurrent_requests=2)
    admission.admit(1_000_000, 0.0)
    with pytest.raises(Overloaded):
        admission.admit(1, 0.0)
    admission.complete(1_000_000, 5.0)
    admission.admit(1_000_000, 5.0)


def test_the_wait_is_the_excess_over_the_measured_rate():
    clock = ManualClock()
    admission = Admission(max_queued_tokens=1000, max_concurrent_requests=100)
    for _ in range(20):
        admission.admit(500, clock())
        clock.advance(0.5)
        admission.complete(500, clock())
    assert admission.tokens_per_second == pytest.approx(1000)
    admission.admit(900, clock())
    with pytest.raises(Overloaded) as caught:
        admission.admit(600, clock())
    assert caught.value.retry_after_seconds == pytest.approx(0.5)  # 500 tokens too many, 1000 a second
    assert caught.value.status == 429
    assert caught.value.retryable


def test_the_wait_for_a_request_that_never_fits_is_until_the_house_is_empty():
    admission = Admission(max_queued_tokens=1000, max_concurrent_requests=100)
    admission.admit(1000, 0.0)
    admission.complete(1000, 1.0)
    admission.admit(200, 1.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(50_000, 1.0)
    assert caught.value.retry_after_seconds == pytest.approx(0.2)


def test_the_wait_for_a_place_is_that_of_one_request():
    admission = Admission(max_queued_tokens=10_000, max_concurrent_requests=2)
    admission.admit(1000, 0.0)
    admission.complete(1000, 1.0)
    admission.admit(400, 1.0)
    admission.admit(800, 1.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(1, 1.0)
    assert caught.value.retry_after_seconds == pytest.approx(0.6)


def test_idle_time_says_nothing_about_speed():
    clock = ManualClock()
    admission = Admission(max_queued_tokens=1000, max_concurrent_requests=100)
    for _ in range(10):
        admission.admit(100, clock())
        clock.advance(0.1)
        admission.complete(100, clock())
        clock.advance(3600)
    assert admission.tokens_per_second == pytest.approx(1000)


def test_requests_side_by_side_are_not_counted_twice():
    clock = ManualClock()
    admission = Admission(max_queued_tokens=100_000, max_concurrent_requests=100)
    for _ in range(10):
        admission.admit(100, clock())
    for _ in range(10):
        clock.advance(0.1)
        admission.complete(100, clock())
    assert admission.tokens_per_second == pytest.approx(1000)


def test_the_rate_follows_a_change():
    clock = ManualClock()
    admission = Admission(max_queued_tokens=100_000, max_concurrent_requests=100)
    for tokens in [100] * 100 + [1000] * 200:
        admission.admit(tokens, clock())
        clock.advance(0.1)
        admission.complete(tokens, clock())
    assert admission.tokens_per_second == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize(("rate", "expected"), [(None, 1.0), (1e9, 0.05), (1.0, 60.0)])
def test_the_wait_is_sensible_whatever_was_measured(rate, expected):
    admission = Admission(max_queued_tokens=1000, max_concurrent_requests=100)
    if rate is not None:
        admission.admit(100, 0.0)
        admission.complete(100, 100 / rate)
    admission.admit(1000, 1000.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(1000, 1000.0)
    assert caught.value.retry_after_seconds == pytest.approx(expected)
