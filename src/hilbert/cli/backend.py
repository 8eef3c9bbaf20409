"""A server without a socket, on a thread of its own: for a program that brings its own event loop.

The thread has the event loop on which models, gate and routes live; others hand it calls and wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from hilbert.cli.loop import loop_factory
from hilbert.cli.roster import Roster
from hilbert.cli.serve import api_settings, make_fleet
from hilbert.config import ServerSettings
from hilbert.engine.stats import BatchStats
from hilbert.errors import InvalidInput, ShuttingDown
from hilbert.worker.spawn import WorkerProcess

if TYPE_CHECKING:
    from hilbert.api.app import App

T = TypeVar("T")


class Backend:
    """Models, engines and routes, without HTTP.

    Args:
        settings: what is served. Keys and limits of callers are left out: whoever asks is this process.
        worker: a worker process that was started ahead, to be adopted.
    """

    def __init__(self, settings: ServerSettings, worker: WorkerProcess | None) -> None:
        self._settings = dataclasses.replace(
            settings, api_key="", keys_file="", limits_per_key="", limits_overall=""
        )
        self._worker = worker
        self._ready: concurrent.futures.Future[App] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._roster: Roster | None = None
        self._thread = threading.Thread(target=self._run, name="hilbert-backend")

    def start(self) -> None:
        """Begin to load the models."""
        self._thread.start()

    def wait_ready(self) -> App:
        """The routes, once all models that are loaded at start can answer.

        Raises:
            ServingError: a model cannot be served.
        """
        return self._ready.result()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the backend's event loop, and wait for it on this one; a cancelled caller cancels it.

        Raises:
            ShuttingDown: the backend has ended.
        """
        if self._loop is None or self._loop.is_closed():
            work.close()
            raise ShuttingDown("The server has ended.")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Answer whoever waits, and end everything; no thread and no process is left. Harmless twice."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                raise

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        fleet = make_fleet(self._settings, self._worker, self._on_batch)
        try:
            try:
                self._roster = Roster(self._settings, fleet)
            except ValueError as error:
                raise InvalidInput(str(error)) from None
            try:
                await self._until_stopped(self._roster, self._stop)
            finally:
                await self._roster.close()
        finally:
            await fleet.close()

    async def _until_stopped(self, roster: Roster, stop: asyncio.Event) -> None:
        from hilbert.api.app import make_app

        roster.begin()
        app = make_app(roster.registry, api_settings(self._settings))
        coming_up = asyncio.create_task(roster.until_started())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({coming_up, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                coming_up.result()  # raises what went wrong
                self._ready.set_result(app)
            await stopping
        finally:
            coming_up.cancel()
            stopping.cancel()
            roster.registry.is_draining = True

    def _on_batch(self, key: str, stats: BatchStats) -> None:
        if self._roster is not None:
            self._roster.on_batch(key, stats)
