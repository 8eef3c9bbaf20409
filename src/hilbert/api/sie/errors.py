"""Errors as SIE's workers word them: ``{"detail": {"code", "message"}}``, the codes in capitals."""

from __future__ import annotations

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import (
    CapacityError,
    ClientError,
    MissingDependency,
    ModelLoading,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    ServingError,
    Unauthorized,
    UnsafeWeights,
    UnsupportedArchitecture,
    WeightMismatch,
)

# What keeps a model from being loaded, and SIE's word for it.
_LOAD_FAILURES: tuple[tuple[type[ServingError], str], ...] = (
    (ModelUnavailable, "NOT_FOUND"),
    (MissingDependency, "DEPENDENCY"),
    (UnsupportedArchitecture, "UNKNOWN"),
    (UnsafeWeights, "UNKNOWN"),
    (WeightMismatch, "UNKNOWN"),
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
        return _reply(status, code, error.message, headers, reason=error.code, **_load_failure(error))

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
    if _load_failure(error):  # its client tries every 503 again, and this will not pass
        return 502, "MODEL_LOAD_FAILED"
    return 500, "INFERENCE_ERROR"


def _load_failure(error: ServingError) -> dict[str, str]:
    """What is said of an error that keeps a model from being loaded; nothing of any other."""
    return next(({"error_class": word} for kind, word in _LOAD_FAILURES if isinstance(error, kind)), {})


def _reply(
    status: int,
    code: str,
    message: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **more: str,
) -> Reply:
    body = {"detail": {"code": code, "message": sound(message), **more}}
    return Reply(orjson.dumps(body), status, headers=headers)
