"""``hilbert serve``: from settings to a running server, and back to nothing.

The order is for speed: the socket first, then the orders to the worker, and only then the imports that
HTTP needs, while the worker loads. One event loop; what may take long runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hilbert.cli.fleet import Fleet, LocalFleet, WorkerFleet
from hilbert.cli.loop import loop_factory
from hilbert.cli.runtime import resolve_model
from hilbert.cli.sockets import bind, release, url_of
from hilbert.config import BadSetting, ModelSettings, ServerSettings
from hilbert.core import ModelSpec, OutputDtype
from hilbert.engine.base import EngineHandle
from hilbert.engine.stats import BatchStats
from hilbert.logs import log_to_stderr
from hilbert.worker.spawn import WorkerProcess

if TYPE_CHECKING:
    from hilbert.cli.door import Door
    from hilbert.models import Registry, ServedModel
    from hilbert.models.media import MediaLoader

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A request is dropped by its own time limit; this is how much longer a shutdown waits for its answer.
_DRAIN_MARGIN_SECONDS = 5.0
# Finding a model that is on this machine takes less; during a download the port opens after so long.
_ORDERS_FIRST_SECONDS = 0.25
_SLOW_START_SECONDS = 2.0
_SLOW_START = (
    "still loading: the first start traces a model, which takes seconds; later ones find it in the cache"
)


def serve(settings: ServerSettings, worker: WorkerProcess | None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: everything.
        worker: a worker process that was started ahead; adopted, or ended here.
    Returns:
        The exit status.
    Raises:
        ServingError: a model cannot be served.
    """
    if settings.in_process and worker is not None:
        worker.close()
        worker = None
    log_to_stderr(settings.log_level)
    try:
        sock = bind(settings)
    except BadSetting as error:
        if worker is not None:
            worker.close()
        print(f"hilbert: {error}", file=sys.stderr)
        return error.exit_code
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_Server(settings, sock).run(worker))
    finally:
        release(sock, settings)
    return 0


class _Server:
    """One server from start to end."""

    def __init__(self, settings: ServerSettings, sock: socket.socket) -> None:
        self._settings = settings
        self._sock = sock
        self._started = time.monotonic()
        self._models: dict[str, ServedModel] = {}
        self._registry: Registry | None = None
        self._media: MediaLoader | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, worker: WorkerProcess | None) -> None:
        """Come up, serve, and leave nothing behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        if self._settings.in_process:
            fleet: Fleet = LocalFleet(self._settings, self._on_batch)
        else:
            fleet = WorkerFleet(self._settings, worker, self._on_batch)
        try:
            await self._serve(fleet)
        finally:
            await fleet.close()

    async def _serve(self, fleet: Fleet) -> None:
        opening = asyncio.create_task(self._open_models(fleet))
        # The worker waits for these orders; importing HTTP at the same time would only delay them. It is
        # imported in a thread, so that the loop can shake hands with the worker meanwhile.
        await asyncio.wait({opening}, timeout=_ORDERS_FIRST_SECONDS)
        await _in_thread(_import_http)
        from hilbert.cli.door import Door
        from hilbert.cli.http import HttpServer, HttpSettings

        door = Door()
        http = HttpServer(door, HttpSettings.of(self._settings))
        serving = asyncio.create_task(http.run_on(self._sock))
        coming_up = asyncio.create_task(self._come_up(fleet, opening, door))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({coming_up, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                coming_up.result()  # raises what went wrong
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(door)
        finally:
            for task in (opening, coming_up, stopping):
                task.cancel()
            http.leave()
            if self._stop_now.is_set():
                await fleet.close()  # whoever still waits is answered now
            await asyncio.gather(opening, coming_up, stopping, serving, return_exceptions=True)
            if self._media is not None:
                await self._media.aclose()

    async def _open_models(self, fleet: Fleet) -> list[tuple[ModelSettings, ModelSpec, EngineHandle]]:
        """Look all models up and give the orders to load them."""
        opened = []
        for model in self._settings.models:
            spec = await _in_thread(partial(resolve_model, model, self._settings))
            opened.append((model, spec, await fleet.open(model, spec)))
        return opened

    async def _come_up(
        self,
        fleet: Fleet,
        opening: asyncio.Task[list[tuple[ModelSettings, ModelSpec, EngineHandle]]],
        door: Door,
    ) -> None:
        from hilbert.api import ApiSettings, create_app
        from hilbert.cli.media import media_loader
        from hilbert.models import Registry

        settings = self._settings
        self._media = media_loader(settings)
        for model, spec, engine in await opening:
            self._models[model.name] = await self._served_model(model, spec, engine)
        self._registry = Registry(self._models.values())
        door.app = create_app(
            self._registry,
            ApiSettings(
                api_key=settings.api_key,
                keys_file=settings.keys_file,
                limits_per_key=settings.limits_per_key,
                limits_overall=settings.limits_overall,
                trusted_proxies=settings.trusted_proxies,
                url_prefix=settings.url_prefix,
                redirect_slash=settings.redirect_slash,
                proxy_root_path=settings.proxy_root_path,
                permissive_cors=settings.permissive_cors,
                cors_origins=settings.cors_origins,
                max_client_batch_size=settings.max_client_batch_size,
                max_body_bytes=settings.max_body_bytes,
                body_timeout=settings.body_timeout,
            ),
        )
        hint = asyncio.get_running_loop().call_later(_SLOW_START_SECONDS, logger.info, _SLOW_START)
        try:
            await fleet.wait_loaded()
        finally:
            hint.cancel()
        self._announce()

    async def _served_model(self, model: ModelSettings, spec: ModelSpec, engine: EngineHandle) -> ServedModel:
        from hilbert.models import ServedModel, load_processor
        from hilbert.scheduler import Admission

        settings = self._settings
        others = {other.name for other in settings.models}
        return ServedModel(
            model.name,
            spec,
            await _in_thread(partial(load_processor, spec, settings.cache_dir)),
            engine,
            Admission(settings.max_queued_tokens, settings.max_concurrent_requests),
            aliases=() if model.model_id in others else (model.model_id,),
            request_timeout_seconds=settings.request_timeout,
            embedding_dtype=OutputDtype(model.embedding_dtype),
            media=self._media,
        )

    def _announce(self) -> None:
        from hilbert.cli.banner import banner

        for name, model in self._models.items():
            info = model.engine.info
            logger.info("%s: %s, %s on %s in %s", name, info.program, info.engine, info.device, info.dtype)
        print(banner(self._settings, url_of(self._sock, self._settings)), flush=True)
        logger.info("ready after %.2f s", time.monotonic() - self._started)

    async def _drain(self, door: Door) -> None:
        """Say that the server is going, and let everybody who is inside finish."""
        if self._registry is None:
            return
        self._registry.is_draining = True
        logger.info("finishing %d requests", door.num_inside)
        leaving = asyncio.create_task(door.wait_until_empty())
        forced = asyncio.create_task(self._stop_now.wait())
        limit = self._settings.request_timeout + _DRAIN_MARGIN_SECONDS
        await asyncio.wait({leaving, forced}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        forced.cancel()

    def _on_signal(self) -> None:
        """The first signal ends the server gently, the second at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _on_batch(self, name: str, stats: BatchStats) -> None:
        model = self._models.get(name)
        if model is not None:
            model.metrics.on_batch(stats)


def _import_http() -> None:
    """Everything that the steps after the first order import; 0.1 s."""
    import hilbert.api
    import hilbert.cli.door
    import hilbert.cli.http
    import hilbert.models  # noqa: F401


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread that a shutdown need not wait for: a download may take minutes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="hilbert-start", daemon=True).start()
    return await future
