"""The front's handle on one model in a worker process."""

from __future__ import annotations

import asyncio
from typing import Protocol

from hilbert.core import ModelSpec, Output, Request
from hilbert.engine import EngineLimits, Health, raise_if_failed
from hilbert.errors import EngineError
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings
from hilbert.worker.answers import Parts


class Pending:
    """A request that has not been answered, in the front.

    Attributes:
        id: its id on the wire.
        give_up_at: when to stop hoping for a new worker (`time.monotonic`); None while all is well.
        parts: what has arrived of a large answer; None while nothing has.
    """

    __slots__ = ("future", "give_up_at", "id", "model", "parts", "request")

    def __init__(
        self, id: int, model: WorkerEngine, request: Request, future: asyncio.Future[Output]
    ) -> None:
        self.id = id
        self.model = model
        self.request = request
        self.future = future
        self.give_up_at: float | None = None
        self.parts: Parts | None = None


class Post(Protocol):
    """Whoever carries requests to the worker."""

    def post(self, model: WorkerEngine, request: Request) -> Pending:
        """Send a request, now or when there is a worker for it."""
        ...

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        ...

    def health_of(self, model: WorkerEngine) -> Health:
        """Whether the model can answer now."""
        ...


class WorkerEngine:
    """Implements `EngineHandle` over the socket to a worker. Made by `Supervisor.load`.

    All its methods belong to the event loop of the supervisor.

    Attributes:
        key: the name under which it was loaded.
        number: its number on the wire.
        state: LOADING, READY, FAILED or STOPPED, as far as this model alone is concerned.
        failure: why the state is FAILED.
        longest_batch_seconds: the longest that a batch has taken so far.
        queued_tokens: tokens that waited in the worker at the last ping.
        queued_sequences: sequences likewise.
    """

    def __init__(
        self,
        post: Post,
        key: str,
        number: int,
        spec: ModelSpec,
        settings: RuntimeSettings,
        limits: EngineLimits,
    ) -> None:
        self._post = post
        self.key = key
        self.number = number
        self.spec = spec
        self.settings = settings
        self.limits = limits
        self.state = Health.LOADING
        self.failure: Exception | None = None
        self.longest_batch_seconds = 0.0
        self.num_lost_loads = 0
        self.queued_tokens = 0
        self.queued_sequences = 0
        self.loaded_info: RuntimeInfo | None = None

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        return self._post.health_of(self)

    @property
    def info(self) -> RuntimeInfo:
        """What the runtime said of itself when it was last loaded.

        Raises:
            EngineError: it has never been loaded.
        """
        if self.loaded_info is None:
            raise EngineError(f"model {self.key} has not been loaded yet")
        return self.loaded_info

    async def run(self, request: Request) -> Output:
        """Answer a request; cancelling the awaiting task cancels the request.

        It outlives the worker: when that is lost, the request goes to the next one.

        Raises:
            CapacityError: loading, draining, or the deadline passed.
            WorkerLost: no new worker was ready in time.
            EngineError: this very request brought the worker down.
        """
        pending = self._post.post(self, request)
        try:
            return raise_if_failed(await pending.future)
        except asyncio.CancelledError:
            self._post.abandon(pending)
            raise
