"""From a loaded runtime to a running engine: the same in a worker, in the server and for `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from hilbert.engine.device import Device
from hilbert.engine.engine import Engine
from hilbert.engine.stats import BatchStats
from hilbert.errors import ServingError
from hilbert.runtimes.base import Runtime
from hilbert.scheduler import Scheduler

Prepared = TypeVar("Prepared")


class EngineLimits(msgspec.Struct, frozen=True, array_like=True):
    """What one batch may hold and how long it may take.

    Attributes:
        max_batch_tokens: tokens; None takes what the runtime recommends.
        max_batch_sequences: texts; None takes what the runtime recommends.
        batch_timeout_seconds: a batch that runs longer means that the device hangs.
    """

    max_batch_tokens: int | None = None
    max_batch_sequences: int | None = None
    batch_timeout_seconds: float = 120.0


def start_engine(
    runtime: Runtime[Prepared],
    limits: EngineLimits,
    devices: dict[str, Device],
    name: str,
    on_batch: Callable[[BatchStats], None] | None = None,
    on_failed: Callable[[ServingError], None] | None = None,
) -> Engine[Prepared]:
    """An engine whose threads run.

    Args:
        runtime: what computes.
        limits: of its batches.
        devices: by name; engines on the same one take turns. A missing one is added.
        name, on_batch, on_failed: see `Engine`.
    """
    info = runtime.info
    engine = Engine(
        runtime,
        Scheduler(
            limits.max_batch_tokens or info.max_batch_tokens,
            limits.max_batch_sequences or info.max_batch_sequences,
        ),
        devices.setdefault(info.device, Device(info.device)),
        batch_timeout_seconds=limits.batch_timeout_seconds,
        name=name,
        on_batch=on_batch,
        on_failed=on_failed,
    )
    engine.start()
    return engine
