"""One configured model, whether it is in memory or not: its names, its counters, what is known of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence as AbstractSequence
from typing import TYPE_CHECKING

from hilbert.core import ModelSpec, OutputType, Task, tasks_of
from hilbert.engine.base import Health
from hilbert.errors import EngineError, ServingError
from hilbert.models.facts import outputs_of, usual_size
from hilbert.models.residency import Resident, State
from hilbert.models.served import ServedModel
from hilbert.observability import ModelMetrics
from hilbert.runtimes.base import RuntimeInfo
from hilbert.scheduler import Admission

if TYPE_CHECKING:
    from hilbert.models.memory import Memory

_HEALTH = {
    State.AVAILABLE: Health.STOPPED,
    State.LOADING: Health.LOADING,
    State.LEAVING: Health.DRAINING,
    State.FAILED: Health.FAILED,
}


class Entry:
    """A model under its names.

    Attributes:
        name: what clients call it, and what answers carry.
        aliases: further names that it answers to.
        prefix: the path that selects it, such as ``/bge``; ``/`` for the default; ``""`` for none.
        metrics: its counters; they outlive each stay in memory.
        admission: how many requests are inside, and how many may be.
        created: unix time at which it was configured.
        served: the model itself, while it answers requests.
        info: what its runtime said of itself when it was last loaded.
        resident: its place in `memory`.
        memory: what it is loaded into; None where it was given loaded and stays so.
        is_retired: no longer configured; whoever still holds it finishes.
    """

    def __init__(
        self,
        name: str,
        admission: Admission,
        metrics: ModelMetrics | None = None,
        *,
        aliases: AbstractSequence[str] = (),
        prefix: str = "",
        resident: Resident | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.prefix = prefix
        self.admission = admission
        self.metrics = metrics or ModelMetrics(name)
        self.created = int(time.time())
        self.served: ServedModel | None = None
        self.spec: ModelSpec | None = None
        self.info: RuntimeInfo | None = None
        self.resident = resident or Resident(name, 0, is_pinned=True)
        self.memory = memory
        self.is_retired = False
        self.observe()

    @staticmethod
    def of(served: ServedModel) -> Entry:
        """An entry for a model that is loaded and stays so."""
        entry = Entry(served.name, served.admission, served.metrics, aliases=served.aliases)
        entry.served, entry.spec, entry.created = served, served.spec, served.created
        entry.resident.state = State.LOADED
        return entry

    def observe(self) -> None:
        """Let the metrics read from here: the model itself comes and goes."""
        metrics, admission = self.metrics, self.admission
        metrics.read_queue_requests = lambda: admission.num_requests
        metrics.read_queue_tokens = lambda: admission.num_queued_tokens
        metrics.read_backlog_seconds = lambda: admission.backlog_seconds
        metrics.read_ready = lambda: float(self.is_ready)
        metrics.read_failed = lambda: float(self.resident.num_failures > 0)
        metrics.read_info = self._info_labels
        metrics.read_memory_bytes = lambda: self.resident.size_bytes if self.served is not None else 0

    @property
    def state(self) -> State:
        """Between the disk and an answer."""
        return self.resident.state

    @property
    def error(self) -> ServingError | None:
        """Why it could not be loaded the last time."""
        return self.resident.error

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        return self.served.engine.health if self.served is not None else _HEALTH[self.state]

    @property
    def is_ready(self) -> bool:
        """Whether it can answer now, without being loaded first."""
        return self.served is not None and self.served.is_ready

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do, its usual task first; nothing while its files have not been seen."""
        if self.spec is None:
            return ()
        return tuple(dict.fromkeys((self.spec.task, *tasks_of(self.spec))))

    @property
    def outputs(self) -> frozenset[OutputType]:
        """What one pass can return, as far as is known."""
        return frozenset() if self.spec is None else outputs_of(self.spec, self.runtime_info)

    @property
    def dimensions(self) -> int | None:
        """Numbers in the vector that it is there for; None where it makes none, or none is known yet."""
        return None if self.spec is None else usual_size(self.spec, self.runtime_info)

    @property
    def runtime_info(self) -> RuntimeInfo | None:
        """What its runtime says of itself, or said when it was last loaded."""
        if self.served is not None:
            with contextlib.suppress(EngineError):  # not loaded yet
                self.info = self.served.engine.info
        return self.info

    def _info_labels(self) -> dict[str, str]:
        if self.served is not None:
            return self.served.info_labels()
        return {} if self.spec is None else {"model_id": self.spec.model_id}
