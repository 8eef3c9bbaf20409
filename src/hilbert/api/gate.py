"""The gate before every route that is not open: who asks, may they, and how much is left.

One `enter` and one `leave` around each request; both return at once where neither keys nor limits are
set. What is decided here comes from `hilbert.access`.
"""

from __future__ import annotations

from hilbert.access import ANONYMOUS, PASSED, Key, Keys, Limiter, Permit, Proxies, Usage, Verdicts, group_of
from hilbert.api.call import Call
from hilbert.api.settings import ApiSettings
from hilbert.config.limits import parse_limits
from hilbert.errors import RateLimited, Unauthorized

Visit = tuple[Key, Permit]
"""One request inside: whose it is, and what the limiter wants back."""


class Gate:
    """Keys, limits, verdicts and usage of one server.

    Attributes:
        usage: requests and tokens by key.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self.usage = Usage()
        self._verdicts = Verdicts()
        self._keys = Keys(settings.api_key, settings.keys_file)
        self._proxies = Proxies(settings.trusted_proxies)
        has_limits = settings.limits_per_key or settings.limits_overall or settings.keys_file
        self._limiter = (
            Limiter(parse_limits(settings.limits_per_key), parse_limits(settings.limits_overall))
            if has_limits
            else None
        )
        self._has_nothing_to_do = self._keys.is_open and self._limiter is None

    def enter(self, call: Call) -> Visit | None:
        """Let a request in; None where there is nothing to do when it leaves.

        Raises:
            Unauthorized: a key is required, and none or an unknown one was given.
            RateLimited: a limit is reached.
        """
        if self._has_nothing_to_do:
            return None
        client = self._proxies.client_of(call.peer, call.headers)
        limiter, permit = self._limiter, None
        try:
            call.key = key = self._keys.identify(call.headers, call.received_at)
            if limiter is not None:
                caller = _caller(key, client)
                permit = limiter.enter(caller, key.limits)
        except (Unauthorized, RateLimited) as error:
            if limiter is not None and isinstance(error, RateLimited):
                call.reply_headers = limiter.standing_of(caller, key.limits)
            self._verdicts.log(error.status, client, call.key.label, call.method, call.prefix + call.path)
            raise
        if key is not ANONYMOUS:
            self._verdicts.log(PASSED, client, key.label, call.method, call.prefix + call.path)
        return key, permit

    def leave(self, visit: Visit, call: Call) -> None:
        """A request has ended, well or not."""
        key, permit = visit
        if self._limiter is not None:
            call.reply_headers = self._limiter.leave(permit, call.num_tokens)
        if key is not ANONYMOUS:
            self.usage.count(key.label, call.num_tokens)

    def charge(self, call: Call, num_tokens: int) -> None:
        """Count tokens that were used on behalf of a call, which may have left long ago."""
        if self._limiter is not None:
            client = self._proxies.client_of(call.peer, call.headers)
            self._limiter.charge(_caller(call.key, client), num_tokens, call.key.limits)
        if call.key is not ANONYMOUS:
            self.usage.count(call.key.label, num_tokens, num_requests=0)


def _caller(key: Key, client: str) -> bytes | str:
    """Whom limits count: a key, or an address."""
    return group_of(client) if key is ANONYMOUS else key.digest
