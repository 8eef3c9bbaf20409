"""Errors as Infinity words them.

A body of the wrong form: 422 ``{"detail": [{type, loc, msg}]}``. Routing and keys: ``{"detail": text}``.
Everything else: ``{"error": {message, type, param, code}}`` with the status as code, and 400 where the
model is unknown.
"""

from __future__ import annotations

import orjson

from hilbert.api.body import MalformedRequest
from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import MalformedMedia, ModelNotFound, ServingError


class InfinityDialect:
    """Words errors as Infinity does."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        if isinstance(error, MalformedRequest | MalformedMedia):
            loc = [part for part in ("body", error.param, error.index) if part is not None]
            detail = [{"type": "value_error", "loc": loc, "msg": sound(error.message)}]
            return Reply(orjson.dumps({"detail": detail}), 422)
        if error.status == 401:
            return Reply(
                orjson.dumps({"detail": "Unauthorized"}), 401, headers=((b"www-authenticate", b"Bearer"),)
            )
        if error.status in (408, 413):
            return Reply(
                orjson.dumps({"detail": sound(error.message)}),
                error.status,
                headers=((b"connection", b"close"),),
            )
        status = 400 if isinstance(error, ModelNotFound) else error.status
        body = {"error": {"message": sound(error.message), "type": None, "param": None, "code": status}}
        return Reply(orjson.dumps(body), status, headers=retry_headers(error))

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return Reply(orjson.dumps({"detail": "Not Found"}), 404)

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        return Reply(
            orjson.dumps({"detail": "Method Not Allowed"}), 405, headers=((b"allow", allowed.encode()),)
        )
