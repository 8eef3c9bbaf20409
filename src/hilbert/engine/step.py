"""One step of the engine: take a batch, prepare it, run it, deliver it.

Every slot of the runtime has one thread that does nothing but steps. While one thread has the device's
turn, another prepares the next batch or delivers the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilbert.core import Batch, BatchOutput
from hilbert.core.request import FloatArray
from hilbert.errors import EngineError

if TYPE_CHECKING:
    from hilbert.engine.engine import Engine


@dataclass(slots=True)
class Work:
    """A batch on its way, and when it passed each stage.

    Attributes:
        is_retry: part of a batch that failed.
        is_last_try: one sequence whose row was not finite in company.
        is_open: not yet through `run`; the engine counts these.
        limit: when the current stage must be over (the engine's clock); infinite where nothing is timed.
    """

    batch: Batch
    taken_at: float
    queue_seconds: float = 0.0
    is_retry: bool = False
    is_last_try: bool = False
    is_open: bool = field(default=True)
    limit: float = math.inf
    prepared_at: float = 0.0
    turn_at: float = 0.0
    done_at: float = 0.0


def step(engine: Engine[Any]) -> bool:
    """Do one batch; False when there will be no more."""
    work = engine.take()
    if work is None:
        return False
    try:
        prepared = engine.runtime.prepare(work.batch)
        engine.mark_prepared(work)
        with engine.device.turn(engine):
            engine.mark_turn(work)
            output = engine.runtime.run(prepared)
            engine.mark_done(work)
        rows = checked_rows(output, len(work.batch.sequences), engine.info.dimensions)
    except Exception as error:
        engine.isolate(work, error)
    else:
        engine.deliver(work, rows)
    return True


class WrongShape(EngineError):
    """The runtime broke its contract; splitting the batch would not help."""


def checked_rows(output: BatchOutput, num_sequences: int, dimensions: int) -> FloatArray:
    """The dense rows of a batch, ``[B, E]`` float32.

    Raises:
        WrongShape: they have another shape.
    """
    if output.dense is None:
        raise WrongShape("the runtime returned no dense rows")
    rows = np.asarray(output.dense, dtype=np.float32)
    if rows.shape != (num_sequences, dimensions):
        raise WrongShape(f"the runtime returned rows {rows.shape}, expected {(num_sequences, dimensions)}")
    return rows


def bad_rows(rows: FloatArray) -> list[int]:
    """Which rows have a NaN or an infinity. One pass and no temporary where all is well."""
    with np.errstate(all="ignore"):
        if math.isfinite(rows.sum()):
            return []
    return [int(i) for i in np.flatnonzero(~np.isfinite(rows).all(axis=1))]
