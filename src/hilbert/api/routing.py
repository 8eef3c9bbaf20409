"""Paths to handlers: a dictionary, as there are few routes and all are known at start.

A `Route` also carries what the OpenAPI document says of it, so that the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from hilbert.api.call import Call, Reply
from hilbert.errors import ServingError

Handler = Callable[[Call], Awaitable[Reply]]


class Dialect(Protocol):
    """How one family of routes words its errors."""

    def error(self, error: ServingError) -> Reply:
        """An error that was raised on purpose."""
        ...

    def no_route(self, call: Call) -> Reply:
        """404: nothing lives at this path."""
        ...

    def wrong_method(self, call: Call, allowed: str) -> Reply:
        """405: the path exists, but not for this method."""
        ...


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
