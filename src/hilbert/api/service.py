"""The routes that serve operators and the curious: health, metrics, the API's own description."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import msgspec
import orjson

from hilbert.api.call import Call, Reply
from hilbert.api.infinity.errors import InfinityDialect
from hilbert.api.openapi import document
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.models import Registry
from hilbert.models.offload import offload
from hilbert.observability import Metrics


class Health(msgspec.Struct):
    """Whether the server can answer, and the health of each model."""

    unix: float
    status: str
    models: dict[str, str]


def service_routes(
    models: Registry, settings: ApiSettings, metrics: Metrics, api: Sequence[Route]
) -> Iterator[Route]:
    """Health and metrics, never prefixed and never behind a key; documents, at the prefix as well.

    Args:
        models: what is served.
        settings: prefix, redirect and the proxy's path.
        metrics: what `/metrics` shows.
        api: the routes that the OpenAPI document describes beside these.
    """
    dialect = InfinityDialect()

    async def ready(call: Call) -> Reply:
        readiness = models.readiness_of(call.prefix)
        body = {
            "unix": time.time(),
            "status": "ready" if readiness.is_ready else "not ready",
            "models": readiness.health,
        }
        headers = () if readiness.is_ready else ((b"retry-after", b"1"),)
        return Reply(orjson.dumps(body), 200 if readiness.is_ready else 503, headers=headers)

    async def alive(call: Call) -> Reply:
        return Reply(orjson.dumps({"unix": time.time()}))

    async def expose(call: Call) -> Reply:
        return Reply(await offload(metrics.expose), 200, b"text/plain; version=0.0.4; charset=utf-8")

    routes = [
        Route("GET", "/health", ready, dialect, True, "Whether all models can answer now", response=Health),
        Route("GET", "/readyz", ready, dialect, True, "Whether all models can answer now", response=Health),
        Route("GET", "/healthz", alive, dialect, True, "Whether the server process is alive"),
        Route("GET", "/metrics", expose, dialect, True, "Metrics in Prometheus' text format"),
    ]
    yield from routes

    @lru_cache(maxsize=16)
    def description(prefix: str) -> bytes:
        return orjson.dumps(document([*api, *routes], settings, prefix))

    async def openapi(call: Call) -> Reply:
        return Reply(description(call.prefix))

    async def docs(call: Call) -> Reply:
        return Reply(docs_page(), 200, b"text/html; charset=utf-8")

    for base in dict.fromkeys(("", settings.url_prefix.rstrip("/"))):
        yield Route("GET", f"{base}/openapi.json", openapi, dialect, True)
        yield Route("GET", f"{base}/docs", docs, dialect, True)
    if settings.redirect_slash:
        target = settings.proxy_root_path.rstrip("/") + settings.redirect_slash

        async def redirect(call: Call) -> Reply:
            return Reply(b"", 307, b"text/plain", ((b"location", target.encode("ascii", "replace")),))

        yield Route("GET", "/", redirect, dialect, True)


@cache
def docs_page() -> bytes:
    """The page at `/docs`: self-contained, so that it works without the internet."""
    return (Path(__file__).parent / "static" / "docs.html").read_bytes()
