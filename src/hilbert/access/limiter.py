"""Who must wait: the generic cell rate algorithm, and a count of requests in work.

For each caller two times are kept, and no list of past requests: when its requests, and when its tokens,
will have been paid for at the allowed rate (ATM Forum TM 4.1, GCRA as virtual scheduling). A caller whose
times lie in the past is as good as unknown and is forgotten; beyond `MAX_ACCOUNTS` the one that was
longest away is. Tokens are charged when they are known: whoever has some left may begin, and may overdraw.
Times are arguments or come from the clock given; no I/O.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from math import ceil, inf

from hilbert.config.limits import NO_LIMITS, Limits
from hilbert.errors import RateLimited

# About 27 MB. Whoever comes from more addresses than that within a minute is stopped by the overall limits.
MAX_ACCOUNTS = 100_000
_SWEEP_EVERY_SECONDS = 1.0
_SWEEP_AT_MOST = 1000
_MINUTE = 60.0
# Rounding of clocks must not refuse a request that comes exactly in time.
_SLACK_SECONDS = 1e-9
# Requests in work end at any time; this is worth another try.
_CONCURRENT_RETRY_SECONDS = 1.0

Headers = tuple[tuple[bytes, bytes], ...]


class Rules:
    """Limits, worked out once: what is not limited takes no time, and any amount of it may be owed.

    Attributes:
        limits: where they come from.
        concurrent: requests that may be in work.
        request_seconds, token_seconds: what one takes to be paid for.
        requests_owed, tokens_owed: seconds of each that a caller may owe and still come in.
        requests, tokens: how to say what is left of each; None where it is not limited.
    """

    __slots__ = (
        "concurrent",
        "limits",
        "request_seconds",
        "requests",
        "requests_owed",
        "token_seconds",
        "tokens",
        "tokens_owed",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.concurrent = inf if limits.concurrent is None else limits.concurrent
        self.request_seconds, self.requests_owed = 0.0, inf
        self.token_seconds, self.tokens_owed = 0.0, inf
        self.requests: _Standing | None = None
        self.tokens: _Standing | None = None
        if limits.rate is not None:
            self.request_seconds = 1 / limits.rate
            self.requests_owed = (limits.requests_at_once - 1) / limits.rate + _SLACK_SECONDS
            self.requests = _Standing(b"requests", limits.requests_at_once, self.request_seconds)
        if limits.tokens is not None:
            self.token_seconds = _MINUTE / limits.tokens
            self.tokens_owed = _MINUTE * (1 - 1 / limits.tokens) + _SLACK_SECONDS
            self.tokens = _Standing(b"tokens", limits.tokens, self.token_seconds)


class _Standing:
    """The three headers of one limit: so many at once, each of which takes `unit` seconds to be paid for."""

    __slots__ = ("_limit", "_num", "_remaining", "_reset", "_unit")

    def __init__(self, what: bytes, num: int, unit: float) -> None:
        self._num = num + _SLACK_SECONDS
        self._unit = unit
        self._limit = (b"x-ratelimit-limit-" + what, b"%d" % num)
        self._remaining = b"x-ratelimit-remaining-" + what
        self._reset = b"x-ratelimit-reset-" + what

    def headers(self, owed: float) -> Headers:
        """For somebody who owes so many seconds."""
        limit = self._limit
        if owed <= 0:
            return limit, (self._remaining, limit[1]), (self._reset, b"0ms")
        left = self._num - owed / self._unit
        return (
            limit,
            (self._remaining, b"%d" % left if left > 0 else b"0"),
            (self._reset, b"%dms" % ceil(owed * 1000) if owed < 1 else _long_duration(owed)),
        )


@lru_cache(1024)
def _rules(limits: Limits) -> Rules | None:
    return None if limits == NO_LIMITS else Rules(limits)


class Account:
    """What one caller owes, or all of them together.

    Attributes:
        rules: what it may do.
        own: the limits of this caller alone that they were made of.
        requests_until: when all its requests so far are paid for.
        tokens_until: likewise its tokens.
        num_inside: its requests in work.
    """

    __slots__ = ("num_inside", "own", "requests_until", "rules", "tokens_until")

    def __init__(self, rules: Rules, own: Limits = NO_LIMITS) -> None:
        self.rules = rules
        self.own = own
        self.requests_until = 0.0
        self.tokens_until = 0.0
        self.num_inside = 0

    def enter(self, now: float) -> bool:
        """Count a request that comes; false, and not counted, where a limit is reached."""
        rules, until = self.rules, self.requests_until
        if (
            self.num_inside >= rules.concurrent
            or until > now + rules.requests_owed
            or self.tokens_until > now + rules.tokens_owed
        ):
            return False
        self.num_inside += 1
        self.requests_until = (until if until > now else now) + rules.request_seconds
        return True

    def undo(self, requests_until: float) -> None:
        """It did not come after all; all is paid for when it was before."""
        self.num_inside -= 1
        self.requests_until = requests_until

    def charge(self, now: float, seconds: float) -> None:
        """Tokens were used that take so long to be paid for."""
        until = self.tokens_until
        self.tokens_until = (until if until > now else now) + seconds

    def standing(self, now: float) -> Headers:
        """What is left, in OpenAI's headers: the limit is what may come at once."""
        rules = self.rules
        requests, tokens = rules.requests, rules.tokens
        headers = () if requests is None else requests.headers(self.requests_until - now)
        return headers if tokens is None else headers + tokens.headers(self.tokens_until - now)

    def refusal(self, now: float, caller: bytes | str | None) -> RateLimited:
        """Why a request cannot come; the caller is None for all of them together."""
        rules = self.rules
        limits = rules.limits
        who = (
            "All callers together"
            if caller is None
            else "This key"
            if type(caller) is bytes
            else "This address"
        )
        too_early = self.requests_until - now - rules.requests_owed
        too_many_tokens = self.tokens_until - now - rules.tokens_owed
        if self.num_inside >= rules.concurrent:
            may, name, wait = (
                f"have {limits.concurrent} requests in work",
                "concurrent",
                _CONCURRENT_RETRY_SECONDS,
            )
        elif too_early > 0:
            may = f"make {limits.rate:g} requests per second (burst {limits.requests_at_once})"
            name, wait = "rate", too_early
        else:
            may, name, wait = f"use {limits.tokens} tokens per minute", "tokens", too_many_tokens
        return RateLimited(
            f"{who} may {may}, and that is used up; try again in {wait:.3g} s ({name}= sets the limit).",
            retry_after_seconds=wait,
        )


Permit = Account | None
"""A request that was let in, to be given back with `Limiter.leave`; None where its caller has no limits."""


class Limiter:
    """Counts requests and tokens of each caller, and of all of them.

    Args:
        each: what a caller may do who has no limits of its own.
        overall: what all may do together.
        clock: seconds, monotonic, above 0.
    """

    def __init__(
        self,
        each: Limits = NO_LIMITS,
        overall: Limits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each = each
        self._is_each_limited = each != NO_LIMITS
        rules = _rules(overall)
        self._everybody = None if rules is None else Account(rules)
        self._clock = clock
        self._accounts: OrderedDict[bytes | str, Account] = OrderedDict()
        self._swept = 0.0

    @property
    def num_accounts(self) -> int:
        """Callers that are remembered."""
        return len(self._accounts)

    def enter(self, caller: bytes | str, own: Limits = NO_LIMITS) -> Permit:
        """Let a request in, and count it.

        Args:
            caller: a key's digest, or an address.
            own: limits of this caller alone, before those of each.
        Raises:
            RateLimited: some limit is reached; nothing was counted.
        """
        now = self._clock()
        account, until = None, 0.0
        if self._is_each_limited or own is not NO_LIMITS:
            account = self._accounts.get(caller)
            if account is not None and account.own is own:
                self._accounts.move_to_end(caller)
            else:
                account = self._opened(caller, own, now)
            if account is not None:
                until = account.requests_until
                if not account.enter(now):
                    raise account.refusal(now, caller)
        everybody = self._everybody
        if everybody is not None and not everybody.enter(now):
            if account is not None:
                account.undo(until)
            raise everybody.refusal(now, None)
        return account

    def leave(self, permit: Permit, num_tokens: int) -> Headers:
        """A request has ended: charge its tokens, and say how its caller stands.

        Returns:
            ``x-ratelimit-*`` headers for what is limited; those of all callers where each has no limits.
        """
        now = self._clock()
        everybody = self._everybody
        if everybody is not None:
            everybody.num_inside -= 1
            if everybody.rules.token_seconds:
                everybody.charge(now, num_tokens * everybody.rules.token_seconds)
        if permit is None:
            return () if everybody is None else everybody.standing(now)
        permit.num_inside -= 1
        if permit.rules.token_seconds:
            permit.charge(now, num_tokens * permit.rules.token_seconds)
        return permit.standing(now)

    def charge(self, caller: bytes | str, num_tokens: int, own: Limits = NO_LIMITS) -> None:
        """Charge tokens that were used for a caller who did not wait for them: those of a job."""
        now = self._clock()
        everybody, rules = self._everybody, _rules(own.over(self._each))
        if everybody is not None:
            everybody.charge(now, num_tokens * everybody.rules.token_seconds)
        if rules is not None:  # which may be older than those of the requests that are in work
            account = self._account(caller, rules, own, now)
            account.charge(now, num_tokens * rules.token_seconds)

    def standing_of(self, caller: bytes | str, own: Limits = NO_LIMITS) -> Headers:
        """The headers for a caller who was refused."""
        is_limited = self._is_each_limited or own is not NO_LIMITS
        account = self._accounts.get(caller) if is_limited else None
        account = account or self._everybody
        return () if account is None else account.standing(self._clock())

    def _opened(self, caller: bytes | str, own: Limits, now: float) -> Account | None:
        """The account of a caller, brought to these limits; None for one without limits."""
        rules = _rules(own.over(self._each))
        if rules is None:
            return None
        account = self._account(caller, rules, own, now)
        account.rules, account.own = rules, own
        return account

    def _account(self, caller: bytes | str, rules: Rules, own: Limits, now: float) -> Account:
        """The account of a caller, made with these limits where there is none."""
        account = self._accounts.get(caller)
        if account is not None:
            self._accounts.move_to_end(caller)
            return account
        if now - self._swept > _SWEEP_EVERY_SECONDS:
            self._sweep(now)
        if len(self._accounts) >= MAX_ACCOUNTS:
            self._accounts.popitem(last=False)
        account = self._accounts[caller] = Account(rules, own)
        return account

    def _sweep(self, now: float) -> None:
        """Forget those who were longest away, as far as they owe nothing."""
        self._swept = now
        for _ in range(min(len(self._accounts), _SWEEP_AT_MOST)):
            caller, account = next(iter(self._accounts.items()))
            if account.num_inside or max(account.requests_until, account.tokens_until) > now:
                return
            del self._accounts[caller]


def _long_duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``1s``, ``6m0s``."""
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
