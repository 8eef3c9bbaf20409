"""Errors as RunPod's workers word them: an object that is the job's output, with the status as its code."""

from __future__ import annotations

import msgspec
import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import ClientError, ModelNotFound, ServingError

_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


class RunpodError(msgspec.Struct):
    """The body of every status from 400 up, and the output of a job that failed."""

    object: str
    message: str
    type: str
    param: str | None
    code: int


class RunpodDialect:
    """Words errors as RunPod's embedding worker does."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        status = 400 if isinstance(error, ModelNotFound) else error.status
        return _reply(status, error.message, error.param, retry_headers(error))

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return _reply(404, f"Unknown route: {call.method} {call.path}.", None)

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        return _reply(
            405,
            f"{call.path} takes {allowed}, not {call.method}.",
            None,
            ((b"allow", allowed.encode()),),
        )


class JobNotFound(ClientError):
    """No job has this id, or its result was kept long enough."""

    status = 404
    code = "job_not_found"


def _reply(
    status: int, message: str, param: str | None, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Reply:
    kind = _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    body = {"object": "error", "message": sound(message), "type": kind, "param": param, "code": status}
    return Reply(orjson.dumps(body), status, headers=headers)
