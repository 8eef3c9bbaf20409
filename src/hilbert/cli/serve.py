"""``hilbert serve``: from settings to a running server, and back to nothing.

The order is for speed: the socket first, then the orders to the worker, and only then the imports that
HTTP needs, while the worker loads. One event loop; what may take long runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hilbert.cli.fleet import Fleet, LocalFleet, OnBatch, WorkerFleet
from hilbert.cli.loader import in_thread
from hilbert.cli.loop import loop_factory
from hilbert.cli.sockets import bind, release, url_of
from hilbert.config import BadSetting, ServerSettings
from hilbert.engine.stats import BatchStats
from hilbert.errors import InvalidInput, ServingError
from hilbert.logs import log_to_stderr
from hilbert.worker.spawn import WorkerProcess

if TYPE_CHECKING:
    from hilbert.api import ApiSettings
    from hilbert.cli.door import Door
    from hilbert.cli.roster import Roster
    from hilbert.cli.watch import ConfigWatch
    from hilbert.observability import Tracer

logger = logging.getLogger(__name__)

# A request is dropped by its own time limit; this is how much longer a shutdown waits for its answer.
_DRAIN_MARGIN_SECONDS = 5.0
# Finding a model that is on this machine takes less; during a download the port opens after so long.
_ORDERS_FIRST_SECONDS = 0.25
_SLOW_START_SECONDS = 2.0
# Each connection is an open file, and shells allow 1024.
_MAX_OPEN_FILES = 65_536
_SLOW_START = (
    "still loading: a first start may trace or convert a model, which takes seconds; "
    "later ones find the result in the cache"
)


def serve(
    settings: ServerSettings, worker: WorkerProcess | None, read: Callable[[], ServerSettings] | None = None
) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: everything.
        read: reads the settings again; asked when the settings file changes.
        worker: a worker process that was started ahead; adopted, or ended here.
    Returns:
        The exit status.
    Raises:
        BadSetting: the address or the certificate cannot be used.
        ServingError: a model cannot be served.
    """
    log_to_stderr(settings.log_level, is_json=settings.json_output)
    _allow_many_files()
    try:
        sock = bind(settings)
    except BadSetting:
        if worker is not None:
            worker.close()
        raise
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_Server(settings, sock, read).run(worker))
    finally:
        release(sock, settings)
    return 0


class _Server:
    """One server from start to end."""

    def __init__(
        self, settings: ServerSettings, sock: socket.socket, read: Callable[[], ServerSettings] | None
    ) -> None:
        self._settings = settings
        self._read = read
        self._sock = sock
        self._started = time.monotonic()
        self._roster: Roster | None = None
        self._watching: asyncio.Task[None] | None = None
        self._tracer: Tracer | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self, worker: WorkerProcess | None) -> None:
        """Come up, serve, and leave nothing behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        fleet = make_fleet(self._settings, worker, self._on_batch)
        try:
            await self._serve(fleet)
        finally:
            await fleet.close()

    async def _serve(self, fleet: Fleet) -> None:
        from hilbert.cli.roster import Roster

        try:
            roster = self._roster = Roster(self._settings, fleet)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        roster.begin()
        # The worker waits for its first order; importing HTTP at the same time would only delay that. It is
        # imported in a thread, so that the loop can shake hands with the worker meanwhile.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(roster.loader.first_order.wait(), _ORDERS_FIRST_SECONDS)
        self._tracer = await in_thread(partial(_prepare, self._settings))
        from hilbert.api.call import ANSWER
        from hilbert.cli.door import Door
        from hilbert.cli.http import HttpServer, HttpSettings

        watch = None
        if self._settings.config and self._read is not None:
            from hilbert.cli.watch import ConfigWatch

            watch = ConfigWatch(self._settings.config, self._read, roster)
        door = Door(self._make_app(roster, watch))
        http = HttpServer(door, HttpSettings.of(self._settings), answer_name=ANSWER)
        serving = asyncio.create_task(http.run_on(self._sock))
        coming_up = asyncio.create_task(self._come_up(roster, watch))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({coming_up, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                coming_up.result()  # raises what went wrong
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(door, roster)
        finally:
            for task in (coming_up, stopping, self._watching):
                if task is not None:
                    task.cancel()
            http.leave()
            await roster.close()
            if self._stop_now.is_set():
                await fleet.close()  # whoever still waits is answered now
            await asyncio.gather(coming_up, stopping, serving, return_exceptions=True)
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.close)

    def _make_app(self, roster: Roster, watch: ConfigWatch | None) -> Any:
        from hilbert.api import create_app

        metrics = roster.metrics()
        if watch is not None:
            metrics.read_config_edits = watch.edits
        return create_app(
            roster.registry,
            api_settings(self._settings),
            metrics,
            read_config=None if watch is None else watch.status,
            tracer=self._tracer,
        )

    async def _come_up(self, roster: Roster, watch: ConfigWatch | None) -> None:
        hint = asyncio.get_running_loop().call_later(_SLOW_START_SECONDS, logger.info, _SLOW_START)
        try:
            await roster.until_started()
        finally:
            hint.cancel()
        url, seconds = url_of(self._sock, self._settings), time.monotonic() - self._started
        if not self._settings.json_output:
            from hilbert.cli.banner import banner

            print(banner(self._settings, url), flush=True)
        fields = {"url": url, "seconds": round(seconds, 3)}
        logger.info("ready after %.2f s", seconds, extra={"fields": fields})
        # What is here stays; to look through it for garbage would stop the loop for tens of milliseconds.
        gc.freeze()
        if watch is not None:
            self._watching = asyncio.create_task(watch.run())

    async def _drain(self, door: Door, roster: Roster) -> None:
        """Say that the server is going, and let everybody who is inside finish."""
        roster.registry.is_draining = True
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

    def _on_batch(self, key: str, stats: BatchStats) -> None:
        if self._roster is not None:
            self._roster.on_batch(key, stats)


def _allow_many_files() -> None:
    """Raise this process's own limit as far as it may."""
    with contextlib.suppress(ModuleNotFoundError, OSError, ValueError):  # Windows has none; others refuse
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
        if soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def make_fleet(settings: ServerSettings, worker: WorkerProcess | None, on_batch: OnBatch) -> Fleet:
    """Where the engines of this server live.

    Args:
        settings: which says it.
        worker: a worker process that was started ahead, to be adopted.
        on_batch: called on this event loop.
    """
    if not settings.in_process:
        return WorkerFleet(settings, worker, on_batch)
    if worker is not None:
        worker.close()
    loop = asyncio.get_running_loop()
    return LocalFleet(settings, lambda key, stats: _in_loop(loop, partial(on_batch, key, stats)))


def api_settings(settings: ServerSettings) -> ApiSettings:
    """What the HTTP layer is told of them: the fields that have its names."""
    from hilbert.api import ApiSettings

    names = [field.name for field in dataclasses.fields(ApiSettings)]
    return ApiSettings(**{name: getattr(settings, name) for name in names})


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call from another thread; nothing happens once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def _prepare(settings: ServerSettings) -> Tracer | None:
    """Import everything that the steps after the first order need (0.1 s), and whatever traces take.

    Raises:
        MissingDependency: a flag asks for traces, and what makes them is not installed.
        InvalidInput: a flag asks for traces, and they cannot be sent so. Where only the environment asks,
            which may be that of a whole machine, the log says it, and nothing is sent.
    """
    import hilbert.api
    import hilbert.cli.door
    import hilbert.cli.http
    import hilbert.models  # noqa: F401
    from hilbert.observability import Tracer, TraceSettings

    try:
        wanted = TraceSettings.of(settings.otlp_endpoint, settings.otlp_service_name, os.environ)
        return None if wanted is None else Tracer(wanted)
    except ServingError as error:
        if settings.otlp_endpoint:
            raise
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but %s", error.message)
        return None
