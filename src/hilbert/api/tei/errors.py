"""Errors as TEI words them: ``{"error": text, "error_type": kind}``, with its status codes.

Where TEI answers with plain text or nothing (a body of the wrong form, a wrong key), the answer has the same
status and the same object as everywhere else.
"""

from __future__ import annotations

import orjson

from hilbert.api.body import MalformedRequest, UnreadableBody
from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import (
    InputTooLong,
    InvalidInput,
    ModelError,
    Overloaded,
    RateLimited,
    ServingError,
    UnsupportedTask,
)


class EmptyInput(MalformedRequest):
    """An input is there and has nothing in it, which this dialect refuses."""


class TeiDialect:
    """Words errors as TEI does."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        status, kind = self.status_and_kind(error)
        headers = retry_headers(error)
        if status == 401:
            headers += ((b"www-authenticate", b"Bearer"),)
        if status == 408 or error.code == "payload_too_large":
            headers += ((b"connection", b"close"),)
        return self.reply(status, self.message(error), kind, headers)

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return self.reply(404, f"Unknown route: {call.method} {call.path}. See /docs.", "NotFound")

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        message = f"{call.path} takes {allowed}, not {call.method}."
        return self.reply(405, message, "Validation", ((b"allow", allowed.encode()),))

    def status_and_kind(self, error: ServingError) -> tuple[int, str]:
        """TEI's status and its word for what happened."""
        if isinstance(error, EmptyInput):
            return 400, "Empty"
        if isinstance(error, UnreadableBody):
            return 400, "Validation"
        if isinstance(error, MalformedRequest | InputTooLong | InvalidInput):
            return 422, "Validation"
        if isinstance(error, Overloaded | RateLimited):
            return 429, "Overloaded"
        if isinstance(error, UnsupportedTask | ModelError):
            return 424, "Backend"
        if error.retryable:
            return 503, "Unhealthy"
        return error.status, "Backend" if error.status >= 500 else "Validation"

    def message(self, error: ServingError) -> str:
        """What the caller reads."""
        return error.message

    def reply(
        self, status: int, message: str, kind: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Reply:
        """The answer."""
        return Reply(orjson.dumps({"error": sound(message), "error_type": kind}), status, headers=headers)


class EnvelopeDialect(TeiDialect):
    """The same for the server whose answers stand in ``{"body": …}``: kinds in lower case, failures 500."""

    def status_and_kind(self, error: ServingError) -> tuple[int, str]:
        """See `TeiDialect`."""
        status, kind = super().status_and_kind(error)
        return 500 if isinstance(error, ModelError) else status, kind.lower()

    def message(self, error: ServingError) -> str:
        """What the caller reads; the header says when to try again."""
        return "Queue is full" if isinstance(error, Overloaded) else error.message
