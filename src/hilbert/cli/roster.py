"""The configured models of a server: made from the settings, and kept in step when these change."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import count

from hilbert.cli.fleet import Fleet
from hilbert.cli.loader import ModelLoader
from hilbert.config import ModelSettings, ServerSettings, available_memory_bytes
from hilbert.config.sizes import size_bytes
from hilbert.engine.stats import BatchStats
from hilbert.errors import ServingError
from hilbert.models import Entry, Memory, Registry, Residency, Resident, State
from hilbert.scheduler import Admission

logger = logging.getLogger(__name__)

_numbers = count(2)


class Roster:
    """All models of one server.

    Args:
        settings: what is served, and how.
        fleet: where engines live.

    Attributes:
        registry: the models by name.
        loader: brings them up.
        memory: what those on the CPU share; GPUs have one each.
    """

    def __init__(self, settings: ServerSettings, fleet: Fleet) -> None:
        """Make the models known; nothing is loaded.

        Raises:
            ValueError: two models have one name or prefix.
        """
        self.settings = settings
        self.loader = ModelLoader(settings, fleet)
        self._entries: dict[str, Entry] = {}
        budget = size_bytes(settings.memory, available_memory_bytes() + self.loader.used_bytes())
        self.memory = Memory(
            Residency(budget, settings.idle_unload_seconds), self.loader, settings.load_timeout
        )
        self.registry = Registry([self._entry(model) for model in settings.models])

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every model, in the order of the settings."""
        return self.registry.list()

    def begin(self) -> None:
        """Load what is to be loaded at start, as far as there is room."""
        self.registry.is_starting = True
        self.memory.begin(self._kept(self.entries))

    async def until_started(self) -> None:
        """Return when everything that is loaded at start is there, or is known to stay away.

        Raises:
            ServingError: no model can be served at all.
        """
        kept = list(self._kept(self.entries))
        await self.memory.until_settled(kept)
        failed = [entry for entry in self.entries if entry.state is State.FAILED]
        if len(failed) == len(self.entries) and isinstance(failed[0].error, ServingError):
            raise failed[0].error
        for entry in kept:
            if entry.state is State.AVAILABLE:
                logger.warning(
                    "%s does not fit into memory beside the others; it is loaded on first use", entry.name
                )
        self.registry.is_starting = False

    def on_batch(self, key: str, stats: BatchStats) -> None:
        """An engine has run a batch."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.metrics.on_batch(stats)
            self.memory.look()

    async def close(self) -> None:
        """Answer whoever waits for a model."""
        await self.memory.close()
        await self.loader.close()

    def _kept(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        return (entry for entry in entries if self.loader.models[entry.resident.key].preload)

    def _entry(self, model: ModelSettings) -> Entry:
        key = model.name if model.name not in self._entries else f"{model.name} ({next(_numbers)})"
        settings = self.settings
        entry = Entry(
            model.name,
            Admission(settings.max_queued_tokens, settings.max_concurrent_requests),
            aliases=_aliases(model, settings),
            prefix=model.prefix,
            resident=Resident(key, 0, is_pinned=model.pin, is_kept=model.preload),
            memory=self.memory,
        )
        self.loader.models[key] = model
        self._entries[key] = entry
        self.memory.add(entry)
        return entry


def _aliases(model: ModelSettings, settings: ServerSettings) -> tuple[str, ...]:
    """Those that were given, and the id where no other model has it as a name or came first with it."""
    taken = {other.name for other in settings.models} | {a for m in settings.models for a in m.aliases}
    first = next(other for other in settings.models if other.model_id == model.model_id)
    is_free = first is model and model.model_id not in taken
    return (*model.aliases, model.model_id) if is_free else model.aliases
