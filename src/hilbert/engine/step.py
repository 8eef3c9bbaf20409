"""One step of the engine: take a batch, prepare it, run it, deliver it.

Every slot of the runtime has one thread that does nothing but steps. While one thread has the device's
turn, another prepares the next batch or delivers the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilbert.core import Batch
from hilbert.engine.rows import checked_rows

if TYPE_CHECKING:
    from hilbert.engine.engine import Engine


@dataclass(slots=True)
class Work:
    """A batch on its way, and when it passed each stage.

    Attributes:
        is_retry: part of a batch that failed.
        is_last_try: one sequence whose row was bad in company.
        num_padding_tokens: tokens that the runtime adds to fill it up.
        limit: when the current stage must be over (the engine's clock); infinite where nothing is timed.
    """

    batch: Batch
    taken_at: float
    queue_seconds: float = 0.0
    is_retry: bool = False
    is_last_try: bool = False
    num_padding_tokens: int = 0
    limit: float = math.inf
    turn_at: float = 0.0
    done_at: float = 0.0


def step(engine: Engine[Any]) -> bool:
    """Do one batch; False when there will be no more."""
    work = engine.take()
    if work is None:
        return False
    try:
        prepared = engine.runtime.prepare(work.batch)
        work.num_padding_tokens = engine.runtime.num_padding_tokens(prepared)
        engine.mark_prepared(work)
        with engine.device.turn(engine):
            engine.mark_turn(work)
            output = engine.runtime.run(prepared)
            engine.mark_done(work)
        rows = checked_rows(output, work.batch.outputs, len(work.batch.sequences), engine.info)
    except Exception as error:
        engine.isolate(work, error)
    except BaseException as error:  # a native library's panic, or code of a repository that exits
        engine.isolate(work, RuntimeError(f"the runtime raised {type(error).__name__}: {error}"))
    else:
        engine.deliver(work, rows)
    return True
