"""The operator's routes: load, unload and reload models, and the state of everything.

They need a key that is marked ``admin``, or the server's single key. Where no key is configured at all, they
answer whoever calls from this machine itself and was not passed on by a proxy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from hilbert import __version__
from hilbert.access import ANONYMOUS
from hilbert.api.body import BodyDecoder, about
from hilbert.api.call import Call, Reply
from hilbert.api.cards import Model, card
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.api.routing import Handler, Route
from hilbert.api.settings import ApiSettings
from hilbert.errors import Forbidden
from hilbert.models import Entry, Memory, Registry
from hilbert.models.memory import Retired
from hilbert.models.residency import UNKNOWN_BYTES

_FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


class ModelBody(msgspec.Struct):
    """Which model."""

    model: Annotated[str | None, about("The served model's name or alias.")] = None


class MemoryStatus(msgspec.Struct):
    """What is taken, and what may be; null while a device has not said how much it has."""

    device: str
    used_bytes: int
    budget_bytes: int | None
    floor_bytes: int


class Status(msgspec.Struct):
    """The state of the server."""

    version: str
    pid: int
    uptime_seconds: float
    ready: bool
    memory: MemoryStatus | None
    devices: list[MemoryStatus]
    models: list[Model]
    config: dict[str, Any] | None


_decoder = BodyDecoder(ModelBody)


def check_admin(call: Call) -> None:
    """Let operators pass.

    Raises:
        Forbidden: the key is not one, or none is configured and the call comes from elsewhere.
    """
    if call.key.is_admin:
        return
    if call.key is not ANONYMOUS:
        raise Forbidden("This key may not administer; mark it `admin` in the keys file.")
    is_passed_on = any(name in call.headers for name in _FORWARDED)
    if is_passed_on or not (call.peer is None or _is_within(call.peer, call.headers)):
        raise Forbidden(
            "No key is configured, so only this machine itself may administer, by its own address and "
            "from no web page; set HILBERT_API_KEY or --keys-file."
        )


def _is_within(peer: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a call comes from this machine, to an address of it, and from no web page of elsewhere.

    This machine's own browser calls for pages of any origin, and says which; a page's owner can also let a
    name of his lead here, so that the page counts as of this origin: names are not taken.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    if not ipaddress.ip_address(peer).is_loopback:
        return False
    if headers.get(b"origin", b"").decode("latin-1").rpartition("://")[2] not in ("", host):
        return False
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or "localhost"
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    return False


def _memory_status(memory: Memory) -> MemoryStatus:
    residency = memory.residency
    budget = None if residency.budget_bytes == UNKNOWN_BYTES else residency.budget_bytes
    return MemoryStatus(memory.device, memory.used_bytes, budget, residency.floor_bytes)


def admin_routes(
    models: Registry, settings: ApiSettings, read_config: Callable[[], Mapping[str, Any]] | None
) -> Iterator[Route]:
    """The routes under ``/admin``.

    Args:
        models: what is served.
        settings: limits of bodies.
        read_config: what the last edit of the settings file came to.
    """
    dialect = OpenAIDialect()
    started = time.monotonic()

    def guarded(handler: Handler) -> Handler:
        async def guard(call: Call) -> Reply:
            if call.prefix:  # the operator's routes are at the root only
                return dialect.no_route(call)
            check_admin(call)
            return await handler(call)

        return guard

    def changing(change: Callable[[Memory, Entry], Awaitable[object]]) -> Handler:
        async def handler(call: Call) -> Reply:
            body = _decoder.decode(await call.body(settings.max_body_bytes))
            while True:
                entry = models.named(body.model)
                with contextlib.suppress(Retired):  # an edit has put another in its place: change that one
                    if entry.memory is not None:  # else it was given loaded and stays so
                        await change(entry.memory, entry)
                    return Reply(msgspec.json.encode(card(entry)))

        return handler

    async def status(call: Call) -> Reply:
        found = dict.fromkeys(entry.memory for entry in models.list() if entry.memory is not None)
        memories = {memory.device: _memory_status(memory) for memory in found}
        config = None if read_config is None else read_config()
        body = Status(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=round(time.monotonic() - started, 3),
            ready=models.readiness.is_ready,
            memory=memories.pop("cpu", None),
            devices=list(memories.values()),
            models=[card(entry) for entry in models.list()],
            config=None if config is None else dict(config),
        )
        return Reply(msgspec.json.encode(body))

    changes: tuple[tuple[str, Callable[[Memory, Entry], Awaitable[object]], str], ...] = (
        ("load", Memory.hold, "Load a model into memory"),
        ("unload", Memory.unload, "Give a model's memory back; the next request loads it again"),
        ("reload", Memory.reload, "Unload a model, look at its files again, and load it"),
    )
    for name, change, summary in changes:
        yield Route(
            "POST",
            f"/admin/models/{name}",
            guarded(changing(change)),
            dialect,
            summary=summary,
            request=ModelBody,
            response=Model,
        )
    yield Route(
        "GET",
        "/admin/status",
        guarded(status),
        dialect,
        summary="Memory, models, and what the last edit of the settings file came to",
        response=Status,
    )
