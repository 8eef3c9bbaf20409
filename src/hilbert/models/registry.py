"""Names, prefixes and tasks to models: which one a request means.

A prefix decides first; then the name in the body; then, where none is given, the task. With one model any
name means it, as clients send whatever they were configured with. What is configured may change while
requests are served: the tables below are replaced as a whole, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from hilbert.core import Task
from hilbert.engine.base import Health
from hilbert.errors import InvalidInput, ModelNotFound, ShuttingDown
from hilbert.models.entry import Entry
from hilbert.models.memory import Retired
from hilbert.models.residency import State
from hilbert.models.served import ServedModel


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the server can answer now, and the state of each model by name."""

    is_ready: bool
    health: dict[str, str]


class Registry:
    """All models of this server, under their names and aliases.

    Attributes:
        is_draining: nothing new is taken.
        is_starting: the models that are loaded at start are still on their way.
        by_prefix: the models that a path selects, by prefix; without the one at ``/``.
    """

    def __init__(self, models: Iterable[ServedModel | Entry]) -> None:
        """Index the models.

        Raises:
            ValueError: there is none, or two share a name or a prefix.
        """
        self.is_draining = False
        self.is_starting = False
        self._reserved: frozenset[str] = frozenset()
        self.replace([Entry.of(model) if isinstance(model, ServedModel) else model for model in models])

    def replace(self, entries: Iterable[Entry]) -> None:
        """Serve these from now on.

        Raises:
            ValueError: as at the beginning; then nothing changes.
        """
        found = tuple(entries)
        if not found:
            raise ValueError("no model to serve")
        by_name: dict[str, Entry] = {}
        by_prefix: dict[str, Entry] = {}
        for entry in found:
            for name in (entry.name, *entry.aliases):
                if by_name.setdefault(name, entry) is not entry:
                    raise ValueError(f"two models are named {name!r}; set --served-model-name")
            self._check_prefix(entry)
            if entry.prefix and by_prefix.setdefault(entry.prefix, entry) is not entry:
                raise ValueError(f"two models have the prefix {entry.prefix!r}; give each its own")
        self._entries, self._by_name = found, by_name
        self._default = by_prefix.pop("/", None)
        self.by_prefix = by_prefix
        self._prefix_depth = max((prefix.count("/") for prefix in by_prefix), default=0)
        self._only = found[0] if len(found) == 1 else None

    def reserve(self, segments: Iterable[str]) -> None:
        """Keep models away from the paths of the server's own routes, by their first segment.

        Raises:
            ValueError: one is there already.
        """
        self._reserved = frozenset(segments)
        for entry in self._entries:
            self._check_prefix(entry)

    def split(self, path: str) -> tuple[str, str]:
        """The prefix that a path begins with, or ``""``, and the rest of it."""
        end = 0
        for _ in range(self._prefix_depth):
            end = path.find("/", end + 1)
            head = path if end < 0 else path[:end]
            if head in self.by_prefix:
                return head, path[len(head) :] or "/"
            if end < 0:
                break
        return "", path

    async def take(
        self, name: str | None, task: Task, prefix: str = "", entry: Entry | None = None
    ) -> ServedModel:
        """The model that a request means, loaded.

        The caller makes its request before the next `await`, so that the model does not leave in between.

        Args:
            name: what the body says, if it says anything.
            task: what is asked for.
            prefix: the key of `by_prefix` that the path began with, or ``""``.
            entry: what `choose` has just said, where it was asked.

        Raises:
            ShuttingDown: the server finishes what it has and takes nothing new.
            ModelNotFound: several models are served and none has this name.
            InvalidInput: no model is named, and none can do this.
            ModelLoading: it was not loaded in time.
            ServingError: it cannot be loaded.
        """
        while True:
            entry = entry or self.choose(name, task, prefix)
            entry.resident.last_used = monotonic()
            if entry.served is not None:
                return entry.served
            assert entry.memory is not None, "only what is in a memory can be away"
            try:
                return await entry.memory.hold(entry)
            except Retired:
                entry = None

    def choose(self, name: str | None, task: Task, prefix: str = "") -> Entry:
        """As `take`, without loading. Raises its errors but those of loading."""
        if self.is_draining:
            raise ShuttingDown("The server is shutting down and takes no new requests.")
        if prefix:
            entry = self.by_prefix.get(prefix)
            if entry is None:  # it was there when the path was read
                raise ModelNotFound(f"No model is served at {prefix} any more. {self._known()}")
            return entry
        if self._only is not None:
            return self._only
        if name:
            entry = self._by_name.get(name) or self._default
            if entry is None:
                raise ModelNotFound(f"The model {name!r} is not served here. {self._known()}", param="model")
            return entry
        if self._default is not None and (self._default.spec is None or task in _can(self._default)):
            return self._default
        able = [entry for entry in self._entries if task in _can(entry)]
        if not able:
            raise InvalidInput(
                f"`model` is needed: none of the models that are served is known to do `{task}`. "
                f"{self._known()}",
                param="model",
            )
        return next((entry for entry in able if entry.tasks[0] is task), able[0])

    def certain(self, prefix: str) -> Entry | None:
        """The model that a request means whatever its body says; None where the body decides."""
        return self.by_prefix.get(prefix) if prefix else self._only

    def named(self, name: str | None) -> Entry:
        """The model that an operator means; with one model any name means it, and none.

        Raises:
            InvalidInput: there are several, and no name is given.
            ModelNotFound: none has this name.
        """
        if self._only is None and not name:
            raise InvalidInput(
                f"`model` is missing; name the one that is meant. {self._known()}", param="model"
            )
        entry = self._only or self._by_name.get(name or "")
        if entry is None:
            raise ModelNotFound(f"The model {name!r} is not configured here. {self._known()}", param="model")
        return entry

    def find(self, name: str) -> Entry | None:
        """The model with exactly this name or alias."""
        return self._by_name.get(name)

    def list(self, prefix: str = "") -> tuple[Entry, ...]:
        """All models, in the order in which they were configured; under a prefix only its own."""
        if prefix:
            entry = self.by_prefix.get(prefix)
            return () if entry is None else (entry,)
        return self._entries

    @property
    def readiness(self) -> Readiness:
        """The truth for probes; see `readiness_of`."""
        return self.readiness_of()

    def readiness_of(self, prefix: str = "") -> Readiness:
        """The truth for probes.

        Red while the server starts or drains, while a loaded model cannot answer, while one that is to be
        kept loaded could not be, and when nothing but models that cannot be loaded is left. Any other model
        that is not in memory is as good as there: asking for it loads it.
        """
        entries = self.list(prefix)
        states = {entry.name: self._state(entry) for entry in entries}
        is_good = all(_is_as_it_should_be(entry) for entry in entries)
        is_hopeless = all(entry.served is None and entry.state is State.FAILED for entry in entries)
        return Readiness(
            is_good and not is_hopeless and not self.is_draining and not self.is_starting, states
        )

    def _state(self, entry: Entry) -> str:
        if self.is_draining:
            return Health.DRAINING.value
        return entry.state.value if entry.served is None else entry.health.value

    def _check_prefix(self, entry: Entry) -> None:
        segment = entry.prefix[1:].partition("/")[0]
        if segment in self._reserved:
            raise ValueError(
                f"prefix {entry.prefix!r} of {entry.name}: the server's own routes are at /{segment}; "
                "choose another"
            )

    def _known(self) -> str:
        return "Available: " + ", ".join(_described(entry) for entry in self._entries) + "."


def _is_as_it_should_be(entry: Entry) -> bool:
    if entry.served is not None:
        return entry.is_ready
    return not (entry.resident.is_kept and entry.resident.num_failures)


def _described(entry: Entry) -> str:
    return f"{entry.name} (at {entry.prefix})" if entry.prefix else entry.name


def _can(entry: Entry) -> tuple[Task, ...]:
    """What an entry can do. A late-interaction model answers with its token vectors where others embed."""
    tasks = entry.tasks
    return (*tasks, Task.EMBED) if Task.MULTI_EMBED in tasks else tasks
