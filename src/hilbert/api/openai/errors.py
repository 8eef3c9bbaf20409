"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}``, never 422."""

from __future__ import annotations

import math

import orjson

from hilbert.api.call import Call, Reply
from hilbert.errors import ServingError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
# What a client is told to wait when the server is away for a moment and nothing better is known.
_DEFAULT_RETRY_SECONDS = 1.0


def retry_headers(error: ServingError) -> tuple[tuple[bytes, bytes], ...]:
    """When to try again, in both forms that clients read; and that it is no use, where it is none."""
    if error.retryable:
        seconds = _DEFAULT_RETRY_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
        return (
            (b"retry-after", b"%d" % max(1, math.ceil(seconds))),
            (b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))),
        )
    # The client retries every 5xx; a model's failure on this input will not pass.
    return ((b"x-should-retry", b"false"),) if error.status >= 500 else ()


_MAX_MESSAGE = 2000


class OpenAIDialect:
    """Words errors as OpenAI does.

    Attributes:
        names: further members at the top that hold the message, for the clients of other makers.
    """

    names: tuple[str, ...] = ()

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        headers = retry_headers(error)
        if error.status == 401:
            headers += ((b"www-authenticate", b"Bearer"),)
        if error.status in (408, 413):
            headers += ((b"connection", b"close"),)
        return self._reply(error.status, error.message, error.param, error.code, headers)

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return self._reply(404, f"Unknown route: {call.method} {call.path}. See /docs.", None, "unknown_url")

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        message = f"{call.path} takes {allowed}, not {call.method}."
        return self._reply(405, message, None, "method_not_allowed", ((b"allow", allowed.encode()),))

    def _reply(
        self,
        status: int,
        message: str,
        param: str | None,
        code: str,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Reply:
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        said = sound(message)
        error = {"message": said, "type": kind, "param": param, "code": code}
        return Reply(
            orjson.dumps(dict.fromkeys(self.names, said) | {"error": error}), status, headers=headers
        )


class SharedDialect(OpenAIDialect):
    """Errors of the embeddings routes, which are Jina's and Voyage's as well: their clients read `detail`."""

    names = ("detail",)


def sound(text: str) -> str:
    """Text that JSON can carry, and not more than anybody reads.

    A message may quote what was not valid Unicode, and what was megabytes long.
    """
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE // 2]} […] {text[-_MAX_MESSAGE // 4 :]}"
    return text.encode("utf-8", "backslashreplace").decode()
