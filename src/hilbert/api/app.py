"""The ASGI application: finds the route, checks the key, and turns every failure into an answer.

One function from request to reply, with no middleware in between (each `BaseHTTPMiddleware` costs
230 µs a request). What a route does is its dialect's business, in the folders beside this file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from hilbert.api.admin import admin_routes
from hilbert.api.call import ANSWER, Call, ClientGone, Receive, Reply, Scope, Send, send_reply
from hilbert.api.cohere import cohere_routes, cohere_v2_routes
from hilbert.api.gate import Gate
from hilbert.api.infinity import infinity_routes
from hilbert.api.infinity.errors import InfinityDialect
from hilbert.api.jina import jina_routes
from hilbert.api.ollama import ollama_routes
from hilbert.api.openai import openai_routes
from hilbert.api.openai.errors import OpenAIDialect
from hilbert.api.records import Records
from hilbert.api.routing import Dialect, Handler, Route, Router
from hilbert.api.runpod import runpod_rerank, runpod_routes
from hilbert.api.service import service_routes
from hilbert.api.settings import ApiSettings
from hilbert.api.sie import sie_routes
from hilbert.api.tei import tei_rerank, tei_routes
from hilbert.api.vllm import vllm_routes
from hilbert.api.voyage import voyage_routes
from hilbert.errors import EngineError, ServingError
from hilbert.logs import without_message
from hilbert.models import Registry
from hilbert.observability import Metrics, Tracer

logger = logging.getLogger(__name__)

OPENAI_BASES = ("/v1", "/openai/v1")


def create_app(
    models: Registry,
    settings: ApiSettings | None = None,
    metrics: Metrics | None = None,
    read_config: Callable[[], Mapping[str, Any]] | None = None,
    tracer: Tracer | None = None,
) -> Any:
    """The application that serves these models.

    Args:
        models: what is served.
        settings: limits, key, prefixes.
        metrics: what `/metrics` shows; without it, what the models have counted themselves.
        read_config: what `/admin/status` says of the settings file.
        tracer: where traces go, if anywhere.
    Returns:
        an ASGI 3 application (typed loosely, as servers type it each in their own way).
    """
    settings = settings or ApiSettings()
    app = make_app(models, settings, metrics, read_config, tracer)
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if not (settings.permissive_cors or origins):
        return app
    from starlette.middleware.cors import CORSMiddleware

    cors = CORSMiddleware(
        app,
        allow_origins=["*"] if settings.permissive_cors else origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=True,
        expose_headers=[
            "x-request-id",
            "retry-after",
            "retry-after-ms",
            "metadata",
            "openai-processing-ms",
            "x-hilbert-warning",
            *(
                f"x-ratelimit-{a}-{b}"
                for a in ("limit", "remaining", "reset")
                for b in ("requests", "tokens")
            ),
        ],
    )

    async def by_send(scope: Scope, receive: Receive, send: Send) -> None:
        scope.pop("extensions", None)  # an answer that goes past the middleware has none of its headers
        await cors(scope, receive, send)

    return by_send


def make_app(
    models: Registry,
    settings: ApiSettings,
    metrics: Metrics | None = None,
    read_config: Callable[[], Mapping[str, Any]] | None = None,
    tracer: Tracer | None = None,
) -> App:
    """As `create_app`, without what concerns web pages of other origins."""
    prefix = settings.url_prefix.rstrip("/")
    bases = tuple(dict.fromkeys(("", prefix)))
    openai_bases = tuple(dict.fromkeys(base + v1 for base in bases for v1 in OPENAI_BASES))
    gate = Gate(settings)
    routes: list[Route] = []

    async def ask(call: Call, dialect: Dialect | None = None) -> Reply | None:
        return await app.inside(call, dialect)

    docs = runpod_rerank(settings, ask)
    if settings.runpod_api:
        routes += runpod_routes(settings, gate, ask)
    # OpenAI's come first: with the prefix /v1 both dialects claim /v1/embeddings, and /v1 is OpenAI's.
    for base in openai_bases:
        routes += openai_routes(models, settings, base)
        routes += cohere_routes(models, settings, base, [docs])
        routes += jina_routes(models, settings, base)
        routes += voyage_routes(models, settings, base)
    for base in bases:
        routes += cohere_v2_routes(models, settings, f"{base}/v2")
        routes += sie_routes(models, settings, base)
        routes += infinity_routes(models, settings, base, [tei_rerank(models, settings), docs])
        routes += tei_routes(models, settings, base)
        routes += vllm_routes(models, settings, base)
        routes += ollama_routes(models, settings, base)
    routes += admin_routes(models, settings, read_config)
    metrics = metrics or Metrics(lambda: [m.metrics for m in models.list()])
    metrics.read_usage = gate.usage.rows
    metrics.read_ready = lambda: models.readiness.is_ready
    routes += service_routes(models, settings, metrics, routes)
    records = Records(metrics, settings.slow_request, tracer)
    app: App = App(models, routes, settings, openai_bases, gate, records)
    return app


class App:
    """An ASGI application over a table of routes."""

    def __init__(
        self,
        models: Registry,
        routes: Iterable[Route],
        settings: ApiSettings,
        openai_bases: tuple[str, ...],
        gate: Gate,
        records: Records,
    ) -> None:
        self._models = models
        self._records = records
        self._is_traced = records.is_tracing
        self._router = Router.of(routes)
        models.reserve({path.split("/")[1] for path in self._router.paths} - {""})
        self._gate = gate
        self._body_seconds = settings.body_timeout
        self._root_path = settings.proxy_root_path.rstrip("/")
        self._openai_bases = openai_bases
        self._openai = OpenAIDialect()
        self._infinity = InfinityDialect()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection event, as ASGI defines it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:  # no websockets here
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self._root_path and path.startswith(self._root_path + "/"):
            path = path[len(self._root_path) :]
        client = scope.get("client")
        peer = client[0] if client else None
        call = Call(scope["method"], path, dict(scope["headers"]), receive, peer, self._body_seconds)
        call.query = scope.get("query_string", b"")
        extensions = scope.get("extensions")
        if extensions and ANSWER in extensions:
            call.answer, call.received_at = extensions[ANSWER]["write"], extensions[ANSWER]["received_at"]
        if self._is_traced:
            self._records.open(call)
        if self._models.by_prefix:
            call.prefix, call.path = self._models.split(path)
        try:
            reply = await self._answer(call)
        except ClientGone:
            self._records.gone(call)
            return
        await send_reply(send, call, reply)
        self._records.close(call, reply.status)

    async def _answer(self, call: Call) -> Reply:
        route = self._route_of(call)
        if isinstance(route, Reply):
            return route
        handler = route.handler if route.is_open else partial(self._admitted, route.handler)
        return await _handled(handler, call, route.dialect)

    async def _admitted(self, handler: Handler, call: Call) -> Reply:
        visit = self._gate.enter(call)
        if visit is None:
            return await handler(call)
        try:
            return await handler(call)
        finally:
            self._gate.leave(visit, call)

    async def inside(self, call: Call, dialect: Dialect | None = None) -> Reply | None:
        """Answer a call that has passed the gate already: one that this server makes to itself.

        Args:
            call: with the key of whoever it is made for.
            dialect: how errors are worded; by default as the route does.
        Returns:
            The reply; None where nothing lives at the path.
        """
        if self._router.find(call.path) is None:
            return None
        route = self._route_of(call)
        if isinstance(route, Reply):
            return route
        reply = await _handled(route.handler, call, dialect or route.dialect)
        self._records.close(call, reply.status)
        return reply

    def _route_of(self, call: Call) -> Route | Reply:
        found = self._router.find(call.path)
        if found is None:
            return self._dialect_of(call.path).no_route(call)
        by_method, call.tail = found
        route = by_method.get(call.method)
        if route is not None:
            call.route = route
            return route
        return next(iter(by_method.values())).dialect.wrong_method(call, ", ".join(sorted(by_method)))

    def _dialect_of(self, path: str) -> Dialect:
        is_openai = any(path == base or path.startswith(base + "/") for base in self._openai_bases)
        return self._openai if is_openai else self._infinity


async def _handled(handler: Handler, call: Call, dialect: Dialect) -> Reply:
    try:
        return await handler(call)
    except ServingError as error:
        # Its traceback holds the frames, which hold the call: garbage that only the collector would find.
        call.error = error.with_traceback(None)
        return (call.dialect or dialect).error(error)
    except (ClientGone, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as unexpected:  # the panic of a native library is no Exception
        request_id = call.request_id.decode()
        logger.error("request %s failed unexpectedly", request_id, exc_info=without_message(unexpected))
        call.error = EngineError(
            f"Internal error. The server's log has the details under request id {request_id}."
        )
        return (call.dialect or dialect).error(call.error)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
