"""The jobs of `--runpod-api`: waiting, running, and done ones whose results are kept for a while.

Bounded in number, bytes and time: results are forgotten when their time is over, the oldest earlier where
room is needed, and where all room is taken by jobs that are not done, a new one is refused. What a job does
is not known here. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from hilbert.errors import Overloaded
from hilbert.logs import without_message

logger = logging.getLogger(__name__)

# The platform's own times: half an hour after /run, a minute after /runsync.
KEEP_SECONDS = 1800.0
KEEP_SYNC_SECONDS = 60.0
MAX_JOBS = 10_000
MAX_BYTES = 256 << 20

Work = Callable[[], Awaitable[bytes]]


class State(StrEnum):
    """Where a job stands, in the platform's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (State.IN_QUEUE, State.IN_PROGRESS)


@dataclass(slots=True, eq=False)
class Job:
    """One job.

    Attributes:
        owner: digest of the key that brought it; to others it does not exist.
        keep_seconds: how long its result is kept.
        num_bytes: of its input until it is done, then of its output.
        output: JSON, once it is completed.
        created, started, ended: seconds on the clock.
        is_streamed: its output was fetched as a stream.
    """

    id: str
    owner: bytes
    keep_seconds: float
    num_bytes: int
    created: float
    state: State = State.IN_QUEUE
    output: bytes = b""
    started: float | None = None
    ended: float | None = None
    is_streamed: bool = False
    task: asyncio.Task[None] | None = None
    is_done: asyncio.Event = field(default_factory=asyncio.Event)


class Jobs:
    """All jobs of one server.

    Args:
        max_running: at a time; more wait.
        max_jobs: waiting, running and done together.
        max_bytes: of inputs that wait and of outputs that are kept, together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        max_running: int,
        max_jobs: int = MAX_JOBS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = asyncio.Semaphore(max_running)
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        # Those that are done, in the order in which they ended, by how long they are kept.
        self._done: dict[float, dict[str, Job]] = {}
        self._num_bytes = 0
        self._totals: Counter[State] = Counter()

    def submit(self, owner: bytes, num_bytes: int, work: Work, keep_seconds: float = KEEP_SECONDS) -> Job:
        """Begin a job, or have it wait for its turn.

        Raises:
            Overloaded: as many jobs, or bytes, as may be are waiting or running.
        """
        self._forget()
        while self._is_full(num_bytes) and (oldest := self._oldest()) is not None:
            self._drop(oldest)
        if self._jobs and self._is_full(num_bytes):
            raise Overloaded(
                f"{len(self._jobs)} jobs with {self._num_bytes} bytes are waiting or running; there is room "
                f"for {self._max_jobs} jobs and {self._max_bytes} bytes. Try again when some are done.",
                retry_after_seconds=1.0,
            )
        job = Job(str(uuid.uuid4()), owner, keep_seconds, num_bytes, self._clock())
        self._jobs[job.id] = job
        self._num_bytes += num_bytes
        job.task = asyncio.get_running_loop().create_task(self._run(job, work))
        return job

    def find(self, job_id: str, owner: bytes) -> Job | None:
        """The job with this id; None where there is none, or none of this owner's."""
        self._forget()
        job = self._jobs.get(job_id)
        return job if job is not None and job.owner == owner else None

    def cancel(self, job: Job) -> None:
        """End a job that is not done."""
        if not job.state.is_final:
            self._end(job, State.CANCELLED, b"")
            assert job.task is not None
            job.task.cancel()

    def purge(self, owner: bytes) -> int:
        """Cancel the jobs of an owner that have not begun; how many there were."""
        waiting = [job for job in self._jobs.values() if job.state is State.IN_QUEUE and job.owner == owner]
        for job in waiting:
            self.cancel(job)
        return len(waiting)

    def count(self, state: State) -> int:
        """Jobs that stand so; of final states all since the start."""
        if state.is_final:
            return self._totals[state]
        return sum(job.state is state for job in self._jobs.values())

    def seconds_of(self, job: Job) -> tuple[float, float | None]:
        """How long a job waited, and how long it ran; None where it has not begun."""
        now = self._clock() if job.ended is None else job.ended
        if job.started is None:
            return now - job.created, None
        return job.started - job.created, now - job.started

    async def _run(self, job: Job, work: Work) -> None:
        async with self._slots:
            job.state, job.started = State.IN_PROGRESS, self._clock()
            try:
                output = await work()
            except Exception as error:
                logger.error("job %s failed unexpectedly", job.id, exc_info=without_message(error))
                self._end(job, State.FAILED, b"")
            else:
                self._end(job, State.COMPLETED, output)

    def _end(self, job: Job, state: State, output: bytes) -> None:
        job.state, job.output, job.ended = state, output, self._clock()
        self._num_bytes += len(output) - job.num_bytes
        job.num_bytes = len(output)
        self._totals[state] += 1
        self._done.setdefault(job.keep_seconds, {})[job.id] = job
        while self._num_bytes > self._max_bytes and (oldest := self._oldest()) not in (None, job):
            assert oldest is not None
            self._drop(oldest)
        job.is_done.set()

    def _is_full(self, num_bytes: int) -> bool:
        return len(self._jobs) >= self._max_jobs or self._num_bytes + num_bytes > self._max_bytes

    def _forget(self) -> None:
        """Drop what was kept long enough."""
        now = self._clock()
        for keep_seconds, jobs in self._done.items():
            while jobs and _ended(job := next(iter(jobs.values()))) + keep_seconds <= now:
                self._drop(job)

    def _oldest(self) -> Job | None:
        """The job that ended first, of those that are kept."""
        return min(
            (next(iter(jobs.values())) for jobs in self._done.values() if jobs), key=_ended, default=None
        )

    def _drop(self, job: Job) -> None:
        del self._jobs[job.id], self._done[job.keep_seconds][job.id]
        self._num_bytes -= job.num_bytes


def _ended(job: Job) -> float:
    assert job.ended is not None
    return job.ended
