"""Who may call. One key, compared in constant time, never logged."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from hilbert.errors import Unauthorized


class Keys:
    """Checks the key of a request: ``Authorization: Bearer KEY``, a bare ``KEY`` there, or ``x-api-key``."""

    def __init__(self, api_key: str) -> None:
        self._key = api_key.encode()

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Let the request pass.

        Raises:
            Unauthorized: a key is required, and none or another was given.
        """
        if not self._key:
            return
        given = [headers.get(b"x-api-key", b"")]
        scheme, _, rest = headers.get(b"authorization", b"").strip().partition(b" ")
        given.append(rest.strip() if scheme.lower() == b"bearer" else scheme)
        # Every candidate is compared in full, so that time tells nothing.
        if not sum([hmac.compare_digest(key, self._key) for key in given]):
            raise Unauthorized(
                "The API key is wrong."
                if any(given)
                else "An API key is needed: send `Authorization: Bearer KEY`."
            )
