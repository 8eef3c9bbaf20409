"""What a supervisor is told about patience, and what it tells about losses."""

from __future__ import annotations

from dataclasses import dataclass

from hilbert.worker.ledger import Loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """How patient to be.

    Attributes:
        worker_timeout_seconds: a worker that gives no sign of life for so long, or computes one batch
            for so long, is replaced.
        first_load_timeout_seconds: the same limit while the first models are loaded and nobody is served
            yet (importing torch from a cold disk holds the GIL).
        recovery_seconds: how long callers wait for the new worker once a hang was noticed.
        drain_seconds: how long `drain` lets requests finish.
        exit_seconds: how long a worker that was told to exit may take before it is killed.
        start_seconds: how long a new process may take to say hello.
        slow_retry_seconds: pause between attempts after `max_fast_failures` in a row.
        max_fast_failures: workers in a row that died while they started, before health is FAILED.
        runtime_factory: ``"module:function"``, see `spawn.prestart`; for tests and for measuring.
        preload: modules that a worker imports at its start.
        log_level, is_json_log: of the workers, see `logs.log_to_stderr`.
    """

    worker_timeout_seconds: float = 30.0
    first_load_timeout_seconds: float = 300.0
    recovery_seconds: float = 4.0
    drain_seconds: float = 30.0
    exit_seconds: float = 5.0
    start_seconds: float = 60.0
    slow_retry_seconds: float = 10.0
    max_fast_failures: int = 5
    runtime_factory: str | None = None
    preload: tuple[str, ...] = ()
    log_level: str = "info"
    is_json_log: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """A worker was lost.

    Attributes:
        loss: how.
        reason: in words, for the log.
        num_suspects: requests that were being computed.
        num_convicted: requests that are blamed for it, and answered with an error.
        num_waiting: requests that wait for the next worker.
    """

    loss: Loss
    reason: str
    num_suspects: int
    num_convicted: int
    num_waiting: int
