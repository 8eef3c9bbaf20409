"""What brings a configured model up and takes it down: files, an engine of the fleet, a tokenizer.

Implements `models.Loader`. Knows where engines live (the fleet) and how a model is configured; when one
comes and goes is `models.memory`'s affair.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hilbert.cli.fleet import Fleet, device_of
from hilbert.cli.runtime import is_on_this_machine, resolve_model
from hilbert.config import ModelSettings, ServerSettings
from hilbert.config.machine import give_memory_back, resident_bytes
from hilbert.core import ModelSpec, OutputDtype
from hilbert.errors import ServingError

if TYPE_CHECKING:
    from hilbert.models import Entry, ServedModel
    from hilbert.models.media import MediaLoader

T = TypeVar("T")


class ModelLoader:
    """Loads the models of one server.

    Args:
        settings: of the server.
        fleet: where engines live.

    Attributes:
        models: how each entry is configured, by its key.
        first_order: set once the first engine was ordered.
    """

    def __init__(self, settings: ServerSettings, fleet: Fleet) -> None:
        from hilbert.models.sizes import SizeBook

        self._settings = settings
        self._fleet = fleet
        self._sizes = SizeBook(settings.cache_dir)
        self._media: MediaLoader | None = None
        self.models: dict[str, ModelSettings] = {}
        self.first_order = asyncio.Event()

    async def resolve(self, entry: Entry) -> ModelSpec:
        """See `models.Loader`."""
        return await in_thread(partial(resolve_model, self.models[entry.resident.key], self._settings))

    async def look(self, entry: Entry) -> None:
        """Read what a model is, where its files are on this machine. What is wrong is told who wants it."""
        model = self.models[entry.resident.key]

        def read() -> ModelSpec | None:
            here = is_on_this_machine(model, self._settings)
            return resolve_model(model, self._settings) if here else None

        with suppress(ServingError, OSError):
            spec = await in_thread(read)
            if spec is not None and entry.spec is None:
                entry.resident.size_bytes = self.size_of(entry, spec)
                entry.spec = spec

    async def load(self, entry: Entry, spec: ModelSpec) -> ServedModel:
        """See `models.Loader`. The tokenizer is read while the engine is built."""
        from hilbert.cli.media import media_loader
        from hilbert.models import ServedModel, load_processor

        key = entry.resident.key
        model = self.models[key]
        engine = await self._fleet.open(key, model, spec)
        self.first_order.set()
        try:
            if self._media is None:
                self._media = media_loader(self._settings)
            processor = await in_thread(partial(load_processor, spec, self._settings.cache_dir))
            await self._fleet.wait_loaded(key)
            # In a thread, as it may read further tables and tokenizers.
            return await in_thread(
                partial(
                    ServedModel,
                    entry.name,
                    spec,
                    processor,
                    engine,
                    entry.admission,
                    entry.metrics,
                    aliases=entry.aliases,
                    request_timeout_seconds=self._settings.request_timeout,
                    embedding_dtype=OutputDtype(model.embedding_dtype),
                    truncates=self._settings.auto_truncate,
                    media=self._media,
                )
            )
        except BaseException:
            await self._fleet.unload(key)
            raise

    async def close(self) -> None:
        """Close the connections to where images and sounds are fetched from."""
        if self._media is not None:
            await self._media.aclose()

    async def unload(self, entry: Entry) -> None:
        """See `models.Loader`."""
        await self._fleet.unload(entry.resident.key)
        give_memory_back()  # the tokenizer's

    def used_bytes(self) -> int:
        """See `models.Loader`: this process and the workers."""
        return resident_bytes() + self._fleet.used_bytes()

    def epoch(self) -> int | None:
        """See `models.Loader`."""
        return self._fleet.epoch()

    def size_of(self, entry: Entry, spec: ModelSpec) -> int:
        """See `models.Loader`."""
        from hilbert.models.sizes import estimated_bytes

        model = self.models[entry.resident.key]
        return self._sizes.find(spec, _how(model)) or estimated_bytes(spec, model.dtype)

    def remember_size(self, entry: Entry, spec: ModelSpec, size_bytes: int) -> None:
        """See `models.Loader`."""
        self._sizes.note(spec, _how(self.models[entry.resident.key]), size_bytes)


def _how(model: ModelSettings) -> str:
    """What else the size depends on."""
    return (
        f"{model.engine} {model.dtype} {device_of(model)} {model.max_batch_tokens} {model.max_batch_requests}"
    )


async def in_thread(function: Callable[[], T]) -> T:
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
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="hilbert-start", daemon=True).start()
    return await future
