"""Paths to handlers: a dictionary, as there are few routes and all are known at start.

A `Route` also carries what the OpenAPI document says of it, so that the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hilbert.api.call import Call, Dialect, Reply

__all__ = ["ByField", "Claim", "Dialect", "Handler", "Route", "Router"]

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Attributes:
        path: as in the URL; a trailing ``*`` matches the rest, slashes included.
        is_open: needs no key.
        summary: one line for the OpenAPI document; ``""`` leaves the route out of it.
        request, response: msgspec types of the bodies, for the document.
        is_deprecated: the document advises against it.
    """

    method: str
    path: str
    handler: Handler
    dialect: Dialect
    is_open: bool = False
    summary: str = ""
    request: Any = None
    response: Any = None
    is_deprecated: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What makes a body one dialect's own: a member at its top, such as ``texts``."""

    field: str
    handler: Handler
    dialect: Dialect


class ByField:
    """Handles a path that several dialects claim: the members of the body say whose it is.

    Args:
        usual: handles what nobody claims.
        max_bytes: bytes that a body may have.
        claims: of two that fit the first wins.
    """

    def __init__(self, usual: Handler, max_bytes: int, *claims: Claim) -> None:
        self._usual = usual
        self._max_bytes = max_bytes
        self._claims = [(b'"%s"' % claim.field.encode(), claim) for claim in claims]

    async def __call__(self, call: Call) -> Reply:
        """Find out whose the body is, and let them answer in their words."""
        raw = await call.body(self._max_bytes)
        call.unread(raw)
        near = [claim for name, claim in self._claims if name in raw]
        members = _members(raw) if near else frozenset()
        for claim in near:
            if claim.field in members:
                call.dialect = claim.dialect
                return await claim.handler(call)
        return await self._usual(call)


def _members(raw: bytes) -> frozenset[str]:
    """The names of an object's members; none where it is no object, which its handler will say."""
    try:
        return frozenset(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))
    except (ValueError, RecursionError):
        return frozenset()


@dataclass(frozen=True, slots=True)
class Router:
    """Finds the route of a request."""

    routes: tuple[Route, ...]
    exact: dict[str, dict[str, Route]] = field(default_factory=dict)
    prefixes: dict[str, dict[str, Route]] = field(default_factory=dict)

    @staticmethod
    def of(routes: Iterable[Route]) -> Router:
        """Index routes; of two at one place the first wins."""
        router = Router(tuple(routes))
        for route in router.routes:
            if route.path.endswith("*"):
                by_method = router.prefixes.setdefault(route.path[:-1], {})
            else:
                by_method = router.exact.setdefault(route.path, {})
            by_method.setdefault(route.method, route)
            if route.method == "GET":
                by_method.setdefault("HEAD", route)
        return router

    @property
    def paths(self) -> list[str]:
        """Where something lives; of a path with a ``*`` what stands before it."""
        return [*self.exact, *self.prefixes]

    def find(self, path: str) -> tuple[dict[str, Route], str] | None:
        """The methods of a path, and what its ``*`` matched; None where nothing lives."""
        by_method = self.exact.get(path)
        if by_method is not None:
            return by_method, ""
        for prefix, by_method in self.prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return by_method, path[len(prefix) :]
        if len(path) > 1 and path.endswith("/"):
            return self.find(path[:-1])
        return None
