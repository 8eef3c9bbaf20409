"""What every route does around its model: read the body, and write the answer, off the loop when large."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hilbert.api.call import Call
from hilbert.core import EmbedRequest, EncodeResult, Task
from hilbert.errors import Forbidden, Overloaded
from hilbert.models import Registry, ServedModel
from hilbert.models.offload import offload

Parsed = TypeVar("Parsed")
P = ParamSpec("P")

# Parsing a body of this size takes about half a millisecond.
_INLINE_BODY_BYTES = 256 * 1024
# Above this many numbers the answer is written in a thread: 2048 vectors of 384 as JSON take 15 ms.
_INLINE_NUMBERS = 65_536


async def parsed(call: Call, max_bytes: int, parse: Callable[[bytes], Parsed]) -> Parsed:
    """The body as `parse` reads it.

    Raises:
        ClientError: the body is too large, or `parse` refused it.
    """
    return await read(await call.body(max_bytes), parse)


async def ordered(call: Call, models: Registry, max_bytes: int, parse: Callable[[bytes], Parsed]) -> Parsed:
    """The body of a request for a model as `parse` reads it; a full model has none parsed in vain.

    Raises:
        ClientError: as `parsed`.
        Overloaded: as `check_room`.
    """
    raw = await call.body(max_bytes)
    check_room(call, models)
    return await read(raw, parse)


def check_room(call: Call, models: Registry) -> None:
    """Refuse a request before anybody has read what it asks, where that cannot matter.

    It does where several models are served at one path, or the key is for some of them only. With ten times
    too much load nine requests of ten end here, and each costs those that are computed (bench/overload.py).

    Raises:
        Overloaded: the one model that it can mean is full.
    """
    entry = models.certain(call.prefix)
    if entry is None or entry.served is None or call.key.models is not None or models.is_draining:
        return
    try:
        entry.served.check_room()
    except Overloaded:
        call.entry = entry
        raise


async def read(raw: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
    """A body that is here already, likewise."""
    return parse(raw) if len(raw) < _INLINE_BODY_BYTES else await offload(parse, raw)


def known_name(models: Registry, name: str | None) -> str | None:
    """A model's name without the tag or the profile behind a colon, where only so it is known here."""
    if name is None or models.find(name) is not None:
        return name
    bare = name.rpartition(":")[0]
    return bare if models.find(bare) is not None else name


async def model_for(call: Call, models: Registry, name: str | None, task: Task) -> ServedModel:
    """The model that a request means, loaded, if its key may use it; see `Registry.take`.

    Raises:
        ServingError: as `Registry.take`.
        Forbidden: the key is for other models only.
    """
    entry = call.entry = models.choose(name, task, call.prefix)
    if call.asked is not None:
        call.asked.model, call.asked.task = name or "", task
    if (allowed := call.key.models) is not None:
        model_id = "" if entry.spec is None else entry.spec.model_id
        if allowed.isdisjoint((entry.name, *entry.aliases, model_id)):
            raise Forbidden(
                f"This key is for {', '.join(sorted(allowed))} and not {entry.name} "
                "(models= in the keys file).",
                param="model",
            )
    if entry.served is not None:
        return await models.take(name, task, call.prefix, entry)
    call.waited_at = time.perf_counter()
    try:
        return await models.take(name, task, call.prefix, entry)
    finally:
        call.wait_seconds = time.perf_counter() - call.waited_at


async def embedded(
    call: Call, models: Registry, name: str | None, request: EmbedRequest, task: Task = Task.EMBED
) -> tuple[ServedModel, EncodeResult]:
    """The model that a request means, and what it makes of inputs which say themselves what they are.

    Raises:
        ServingError: as `model_for`, or the model refused an input.
    """
    model = await model_for(call, models, name, task)
    return model, await call.unless_gone(model.encode(request))


async def written(num_numbers: int, write: Callable[P, Parsed], *args: P.args, **kwargs: P.kwargs) -> Parsed:
    """What `write` returns, given how many numbers (or words) there are to write."""
    if num_numbers <= _INLINE_NUMBERS:
        return write(*args, **kwargs)
    return await offload(write, *args, **kwargs)
