"""Errors as SIE's workers word them: ``{"detail": {"code", "message"}}``, the codes in capitals."""

from __future__ import annotations

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import (
    CapacityError,
    ClientError,
    ModelLoading,
    ModelNotFound,
    Overloaded,
    ServingError,
    Unauthorized,
)


class SieDialect:
    """Words errors as SIE does, and says in `reason` what OpenAI's `code` would."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        status, code = _status_and_code(error)
        headers = retry_headers(error)
        if status == 401:
            headers += ((b"www-authenticate", b"Bearer"),)
        if status in (408, 413):
            headers += ((b"connection", b"close"),)
        return _reply(status, code, error.message, headers, reason=error.code)

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return _reply(404, "NOT_FOUND", f"Unknown route: {call.method} {call.path}.")

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        message = f"{call.path} takes {allowed}, not {call.method}."
        return _reply(405, "METHOD_NOT_ALLOWED", message, ((b"allow", allowed.encode()),))


def _status_and_code(error: ServingError) -> tuple[int, str]:
    if isinstance(error, ModelNotFound):
        return 404, "MODEL_NOT_FOUND"
    if isinstance(error, Unauthorized):
        return 401, "UNAUTHORIZED"
    if isinstance(error, ClientError):
        return error.status, "INVALID_INPUT"
    if isinstance(error, Overloaded):  # its client retries a full queue at 503 only
        return 503, "QUEUE_FULL"
    if isinstance(error, ModelLoading):
        return 503, "MODEL_LOADING"
    if isinstance(error, CapacityError) or error.retryable:
        return 503, "RESOURCE_EXHAUSTED"
    return 500, "INFERENCE_ERROR"


def _reply(
    status: int,
    code: str,
    message: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **more: str,
) -> Reply:
    body = {"detail": {"code": code, "message": sound(message), **more}}
    return Reply(orjson.dumps(body), status, headers=headers)
