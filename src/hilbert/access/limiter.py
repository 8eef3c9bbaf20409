"""Who must wait: the generic cell rate algorithm, and a count of requests in work.

For each caller two times are kept, and no list of past requests: when its requests, and when its tokens,
will have been paid for at the allowed rate (ATM Forum TM 4.1, GCRA as virtual scheduling). A caller whose
times lie in the past is as good as unknown and is forgotten; beyond `MAX_ACCOUNTS` the one that was
longest away is. Tokens are charged when they are known: whoever has some left may begin, and may overdraw.
Times are arguments or come from the clock given; no I/O.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from hilbert.config.limits import NO_LIMITS, Limits
from hilbert.errors import RateLimited

# About 20 MB. Whoever comes from more addresses than that within a minute is stopped by the overall limits.
MAX_ACCOUNTS = 100_000
_SWEEP_EVERY_SECONDS = 1.0
_SWEEP_AT_MOST = 1000
_MINUTE = 60.0
# Rounding of clocks must not refuse a request that comes exactly in time.
_SLACK_SECONDS = 1e-9
# Requests in work end at any time; this is worth another try.
_CONCURRENT_RETRY_SECONDS = 1.0

Headers = tuple[tuple[bytes, bytes], ...]
_Names = tuple[bytes, bytes, bytes]
_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")


class Account:
    """What one caller owes.

    Attributes:
        requests_until: when all its requests so far are paid for.
        tokens_until: likewise its tokens.
        num_inside: its requests in work.
    """

    __slots__ = ("num_inside", "requests_until", "tokens_until")

    def __init__(self) -> None:
        self.requests_until = 0.0
        self.tokens_until = 0.0
        self.num_inside = 0


class Permit(NamedTuple):
    """A request that was let in; to be given back with `Limiter.leave`."""

    limits: Limits
    account: Account | None


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
        self._overall = overall
        self._has_overall = overall != NO_LIMITS
        self._clock = clock
        self._accounts: OrderedDict[bytes | str, Account] = OrderedDict()
        self._all = Account()
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
        limits = self._limits_of(own)
        now = self._clock()
        account = None
        if limits is not NO_LIMITS:
            account = self._account(caller, now)
            _check(limits, account, now, "This key" if isinstance(caller, bytes) else "This address")
        if self._has_overall:
            _check(self._overall, self._all, now, "All callers together")
            _count(self._overall, self._all, now)
        if account is not None:
            _count(limits, account, now)
        return Permit(limits, account)

    def leave(self, permit: Permit, num_tokens: int) -> Headers:
        """A request has ended: charge its tokens, and say how its caller stands.

        Returns:
            ``x-ratelimit-*`` headers for what is limited; those of all callers where each has no limits.
        """
        now = self._clock()
        if self._has_overall:
            self._all.num_inside -= 1
            _charge(self._overall, self._all, now, num_tokens)
        account = permit.account
        if account is None:
            return standing(self._overall, self._all, now) if self._has_overall else ()
        account.num_inside -= 1
        _charge(permit.limits, account, now, num_tokens)
        return standing(permit.limits, account, now)

    def charge(self, caller: bytes | str, num_tokens: int, own: Limits = NO_LIMITS) -> None:
        """Charge tokens that were used for a caller who did not wait for them: those of a job."""
        now = self._clock()
        if self._has_overall:
            _charge(self._overall, self._all, now, num_tokens)
        limits = self._limits_of(own)
        if limits is not NO_LIMITS:
            _charge(limits, self._account(caller, now), now, num_tokens)

    def standing_of(self, caller: bytes | str, own: Limits = NO_LIMITS) -> Headers:
        """The headers for a caller who was refused."""
        account = self._accounts.get(caller)
        if account is None:
            return standing(self._overall, self._all, self._clock())
        return standing(self._limits_of(own), account, self._clock())

    def _limits_of(self, own: Limits) -> Limits:
        if own is NO_LIMITS:
            return self._each
        return own if self._each is NO_LIMITS else own.over(self._each)

    def _account(self, caller: bytes | str, now: float) -> Account:
        account = self._accounts.get(caller)
        if account is not None:
            self._accounts.move_to_end(caller)
            return account
        if now - self._swept > _SWEEP_EVERY_SECONDS:
            self._sweep(now)
        if len(self._accounts) >= MAX_ACCOUNTS:
            self._accounts.popitem(last=False)
        account = self._accounts[caller] = Account()
        return account

    def _sweep(self, now: float) -> None:
        """Forget those who were longest away, as far as they owe nothing."""
        self._swept = now
        for _ in range(min(len(self._accounts), _SWEEP_AT_MOST)):
            caller, account = next(iter(self._accounts.items()))
            if account.num_inside or max(account.requests_until, account.tokens_until) > now:
                return
            del self._accounts[caller]


def _check(limits: Limits, account: Account, now: float, who: str) -> None:
    if limits.concurrent is not None and account.num_inside >= limits.concurrent:
        raise _refused(
            who, f"have {limits.concurrent} requests in work", "concurrent", _CONCURRENT_RETRY_SECONDS
        )
    if limits.rate is not None:
        burst = limits.requests_at_once
        wait = account.requests_until - now - (burst - 1) / limits.rate
        if wait > _SLACK_SECONDS:
            raise _refused(who, f"make {limits.rate:g} requests per second (burst {burst})", "rate", wait)
    if limits.tokens is not None:
        wait = account.tokens_until - now - _MINUTE * (1 - 1 / limits.tokens)
        if wait > _SLACK_SECONDS:
            raise _refused(who, f"use {limits.tokens} tokens per minute", "tokens", wait)


def _count(limits: Limits, account: Account, now: float) -> None:
    account.num_inside += 1
    if limits.rate is not None:
        account.requests_until = max(account.requests_until, now) + 1 / limits.rate


def _charge(limits: Limits, account: Account, now: float, num_tokens: int) -> None:
    if limits.tokens is not None and num_tokens:
        account.tokens_until = max(account.tokens_until, now) + num_tokens * _MINUTE / limits.tokens


def _refused(who: str, may: str, name: str, wait: float) -> RateLimited:
    return RateLimited(
        f"{who} may {may}, and that is used up; try again in {wait:.3g} s ({name}= sets the limit).",
        retry_after_seconds=wait,
    )


def standing(limits: Limits, account: Account, now: float) -> Headers:
    """What a caller has left, in OpenAI's headers: the limit is what may come at once."""
    headers: Headers = ()
    if limits.rate is not None:
        burst = limits.requests_at_once
        owed = max(0.0, account.requests_until - now)
        left = max(0, math.floor(burst - owed * limits.rate + _SLACK_SECONDS))
        headers += _three(_REQUESTS, burst, left, owed)
    if limits.tokens is not None:
        owed = max(0.0, account.tokens_until - now)
        left = max(0, math.floor(limits.tokens * (1 - owed / _MINUTE) + _SLACK_SECONDS))
        headers += _three(_TOKENS, limits.tokens, left, owed)
    return headers


def _three(names: _Names, limit: int, left: int, reset: float) -> Headers:
    return (
        (names[0], b"%d" % limit),
        (names[1], b"%d" % left),
        (names[2], _duration(reset)),
    )


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: ``20ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(math.ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
