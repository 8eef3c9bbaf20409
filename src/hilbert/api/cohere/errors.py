"""Errors for clients of several makers on one path.

Cohere's clients read ``message`` at the top, OpenAI's and those built on it the object ``error``; the
answer has both.
"""

from __future__ import annotations

from dataclasses import replace

import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.errors import ServingError


class CohereDialect:
    """Words errors as Cohere does, with OpenAI's object beside."""

    def __init__(self) -> None:
        self._openai = OpenAIDialect()

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        return _with_message(self._openai.error(error))

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        return _with_message(self._openai.no_route(call))

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        return _with_message(self._openai.wrong_method(call, allowed))


def _with_message(reply: Reply) -> Reply:
    body = orjson.loads(reply.body)
    return replace(reply, body=orjson.dumps({"message": body["error"]["message"], **body}))
