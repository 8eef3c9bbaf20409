"""Errors as Ollama words them: ``{"error": text}``."""

from __future__ import annotations

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import retry_headers, sound
from hilbert.errors import Overloaded, ServingError


class OllamaDialect:
    """Words errors as Ollama does."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose. A full queue is 503 there."""
        status = 503 if isinstance(error, Overloaded) else error.status
        headers = retry_headers(error)
        if status == 401:
            headers += ((b"www-authenticate", b"Bearer"),)
        if status in (408, 413):
            headers += ((b"connection", b"close"),)
        return _reply(status, error.message, headers)

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return _reply(404, f"Unknown route: {call.method} {call.path}.")

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        message = f"{call.path} takes {allowed}, not {call.method}."
        return _reply(405, message, ((b"allow", allowed.encode()),))


def _reply(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return Reply(orjson.dumps({"error": sound(message)}), status, headers=headers)
