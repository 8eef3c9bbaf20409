"""GCRA against a plain count of what was let in, and memory that stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilbert.access import Limiter
from hilbert.access import limiter as module
from hilbert.config.limits import Limits, parse_limits, wrong_limits
from hilbert.errors import RateLimited
from hilbert.testing.clock import ManualClock


def limiter(each: str = "", overall: str = "") -> tuple[Limiter, ManualClock]:
    clock = ManualClock()
    clock.advance(1000)
    return Limiter(parse_limits(each), parse_limits(overall), clock), clock


def admitted(limiter: Limiter, caller: str, count: int, num_tokens: int = 0) -> int:
    done = 0
    for _ in range(count):
        try:
            limiter.leave(limiter.enter(caller), num_tokens)
        except RateLimited:
            continue
        done += 1
    return done


def headers_of(limiter: Limiter, caller: str, num_tokens: int = 0) -> dict[str, str]:
    headers = limiter.leave(limiter.enter(caller), num_tokens)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers}


def test_words() -> None:
    assert parse_limits(" rate=80, burst=50 ") == Limits(80, 50)
    assert parse_limits("rate=0.5").requests_at_once == 1 and parse_limits("rate=80").requests_at_once == 80
    assert Limits(burst=None, rate=5).over(Limits(80, 50, 9, 4)) == Limits(5, None, 9, 4)
    assert Limits(tokens=7).over(Limits(80, 50, 9, 4)) == Limits(80, 50, 7, 4)
    for text, why in {
        "speed=3": "no limit",
        "rate=-1": "above 0",
        "rate=inf": "above 0",
        "rate=nan": "above 0",
        "tokens=1.5": "whole number",
        f"tokens={'9' * 400}": "at most",
        "burst=3": "needs rate=",
        "rate": "above 0",
    }.items():
        assert why in (wrong_limits(text) or ""), text


def test_seed_004_eighty_a_second_and_fifty_at_once() -> None:
    it, clock = limiter("rate=80 burst=50")
    assert admitted(it, "a", 60) == 50
    assert admitted(it, "b", 60) == 50  # each has its own
    clock.advance(0.5)
    assert admitted(it, "a", 60) == 40
    clock.advance(100)
    assert admitted(it, "a", 60) == 50
    with pytest.raises(
        RateLimited, match=r"This address may make 80 requests per second \(burst 50\)"
    ) as refused:
        it.enter("a")
    assert refused.value.retry_after_seconds == pytest.approx(1 / 80)
    clock.advance(1 / 80)
    assert admitted(it, "a", 2) == 1


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.5, 200),
    st.integers(1, 20),
    st.lists(st.floats(0, 0.3), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate_allow_and_who_waits_as_told_comes_in(rate, burst, pauses) -> None:
    it, clock = limiter(f"rate={rate!r} burst={burst}")
    times: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        try:
            it.enter("a")
            times.append(clock())
        except RateLimited as refused:
            assert refused.retry_after_seconds is not None and refused.retry_after_seconds > 0
            clock.advance(refused.retry_after_seconds + 1e-6)
            it.enter("a")
            times.append(clock())
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - start) * rate + 1e-3


def test_tokens_are_charged_when_known_and_may_overdraw_once() -> None:
    it, clock = limiter("tokens=600")
    assert admitted(it, "a", 5, num_tokens=250) == 3  # 250, 500, 750: the third had some left
    with pytest.raises(RateLimited, match="600 tokens per minute") as refused:
        it.enter("a")
    assert refused.value.retry_after_seconds == pytest.approx(15.1)
    clock.advance(15.2)
    assert admitted(it, "a", 2, num_tokens=250) == 1


def test_concurrent_requests() -> None:
    it, _ = limiter("concurrent=2", "concurrent=3")
    first, _ = it.enter("a"), it.enter("a")
    with pytest.raises(RateLimited, match="This address may have 2 requests in work"):
        it.enter("a")
    it.enter("b")
    with pytest.raises(RateLimited, match="All callers together may have 3"):
        it.enter("b")
    it.leave(first, 0)
    it.enter("b")


def test_who_is_refused_by_all_has_not_paid_alone() -> None:
    it, _ = limiter("rate=1 burst=5", "rate=1 burst=2")
    assert admitted(it, "a", 5) == 2
    assert dict(it.standing_of("a"))[b"x-ratelimit-remaining-requests"] == b"3"


def test_who_is_refused_by_all_has_all_of_its_own_left_to_the_last_digit() -> None:
    it, clock = limiter("rate=1 burst=1", "concurrent=1")
    clock.advance(23.4)  # 1023.4 + 1 - 1 is a little more
    it.enter("b")
    with pytest.raises(RateLimited, match="All callers"):
        it.enter("a")
    assert dict(it.standing_of("a"))[b"x-ratelimit-reset-requests"] == b"0ms"


def test_limits_that_are_gone_are_not_told_of() -> None:
    it, _ = limiter("", "rate=1 burst=2")
    own = parse_limits("tokens=60")
    assert b"x-ratelimit-limit-tokens" in dict(it.leave(it.enter(b"digest", own), 1))
    it.enter(b"digest")
    with pytest.raises(RateLimited, match="All callers"):
        it.enter(b"digest")
    assert dict(it.standing_of(b"digest"))[b"x-ratelimit-limit-requests"] == b"2"


def test_a_job_with_older_limits_changes_nothing_of_those_of_today() -> None:
    it, _ = limiter()
    older, today = parse_limits("rate=1000"), parse_limits("tokens=60")
    permit = it.enter(b"digest", today)
    it.charge(b"digest", 5, older)
    assert dict(it.leave(permit, 600))[b"x-ratelimit-remaining-tokens"] == b"0"
    with pytest.raises(RateLimited, match="This key may use 60 tokens"):
        it.enter(b"digest", today)


def test_an_address_that_the_server_does_not_say_is_one_caller_and_not_all() -> None:
    it, _ = limiter("rate=1 burst=1")
    it.enter("")
    with pytest.raises(RateLimited, match="This address"):
        it.enter("")


def test_headers() -> None:
    it, clock = limiter("rate=2 burst=10 tokens=1000")
    assert headers_of(it, "a", 250) == {
        "limit-requests": "10",
        "remaining-requests": "9",
        "reset-requests": "500ms",
        "limit-tokens": "1000",
        "remaining-tokens": "750",
        "reset-tokens": "15s",
    }
    assert headers_of(it, "a", 10_000)["reset-tokens"] == "10m15s"
    clock.advance(0)
    assert limiter()[0].leave(limiter()[0].enter("a"), 5) == ()


def test_a_key_may_have_limits_of_its_own() -> None:
    it, _ = limiter("rate=1 burst=1")
    own = parse_limits("rate=1 burst=3")
    for _ in range(3):
        it.enter(b"digest", own)
    with pytest.raises(RateLimited, match="This key"):
        it.enter(b"digest", own)


def test_a_million_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 1000)
    it, clock = limiter("rate=1 burst=1 tokens=1", "rate=1000000 burst=1000000000")
    for number in range(100_000):
        it.leave(it.enter(f"10.0.0.{number}"), 100)
        assert it.num_accounts <= 1000
    with pytest.raises(RateLimited):
        it.enter("10.0.0.99999")  # the latest are remembered
    clock.advance(1e6)
    for number in range(20):  # whoever owes nothing is forgotten, some at a time
        it.enter(f"again {number}")
        clock.advance(2)
    assert it.num_accounts <= 20
