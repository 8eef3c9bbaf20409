"""One job: from its input to its output, through the very routes that HTTP has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hilbert.access import ANONYMOUS, Key
from hilbert.api.call import JSON, Call, Reply, inner_call
from hilbert.api.routing import Dialect
from hilbert.api.runpod.errors import RunpodDialect
from hilbert.api.runpod.protocol import Errand, invalid_route, to_errand
from hilbert.errors import InvalidInput, ServingError
from hilbert.models.offload import offload

_DIALECT = RunpodDialect()
# Reading a job's input of this size takes about half a millisecond.
_INLINE_BYTES = 256 * 1024


class Ask(Protocol):
    """How a call of this server to itself is made: `App.inside`."""

    async def __call__(self, call: Call, dialect: Dialect | None = None, /) -> Reply | None:
        """The reply; None where nothing lives at the path."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a job.

    Attributes:
        output: JSON: what was asked for, or an error object.
        num_tokens: what it took.
    """

    output: bytes
    num_tokens: int = 0


async def answer(ask: Ask, raw: bytes, key: Key = ANONYMOUS, prefix: str = "") -> Answer:
    """Do a job; what goes wrong is its output.

    Args:
        ask: makes calls to this server.
        raw: the job's input, as JSON.
        key: on whose behalf.
        prefix: what selected the model, where the caller's path did.
    """
    try:
        errand = to_errand(raw) if len(raw) < _INLINE_BYTES else await offload(to_errand, raw)
        return await _run(ask, errand, key, prefix)
    except ServingError as error:
        return Answer(_DIALECT.error(error).body)


async def _run(ask: Ask, errand: Errand, key: Key, prefix: str) -> Answer:
    call = inner_call(errand.method, errand.path, errand.body, key, prefix)
    reply = await ask(call, _DIALECT)
    if reply is None or reply.status == 405:
        raise invalid_route(errand.path)
    if reply.status >= 400:
        return Answer(renamed(reply.body, errand), call.num_tokens)
    if reply.media_type != JSON:
        raise InvalidInput(
            "encoding_format 'bytes' cannot travel in a job's output, which is JSON; use 'base64'.",
            param="encoding_format",
        )
    return Answer(errand.to_output(reply.body), call.num_tokens)


def renamed(body: bytes, errand: Errand) -> bytes:
    """An error in the words of whoever made the request."""
    for theirs, ours in errand.renames:
        body = body.replace(theirs, ours)
    return body
