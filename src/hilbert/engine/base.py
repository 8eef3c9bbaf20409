"""The seam between whoever has a tokenized request and whatever engine answers it.

A caller does not know whether the engine lives in this process (`engine.local`) or in a worker
process (`worker.client`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from hilbert.core import Output, Request
from hilbert.runtimes.base import RuntimeInfo


class Health(StrEnum):
    """The state of an engine. Only `READY` takes requests without delay."""

    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineHandle(Protocol):
    """One loaded model, wherever it runs."""

    @property
    def health(self) -> Health:
        """Whether it can answer now."""
        ...

    @property
    def info(self) -> RuntimeInfo:
        """What the loaded runtime says of itself."""
        ...

    async def run(self, request: Request) -> Output:
        """Answer a request; cancelling the awaiting task cancels the request.

        Per-sequence failures come inside `Output.errors`.

        Raises:
            CapacityError: draining, or the deadline passed.
            EngineError: the device or the worker is lost for good.
        """
        ...


def has_rows(output: Output) -> bool:
    """Whether the request was answered, its bad inputs apart; one that failed as a whole has no rows."""
    return (
        output.dense is not None
        or output.logits is not None
        or output.multivector is not None
        or output.sparse is not None
    )


def raise_if_failed(output: Output) -> Output:
    """Tell a request that failed as a whole from one with bad inputs.

    Returns:
        The output, unless it has no rows of any kind: then the request failed as a whole (deadline,
        shutdown, lost device) and carries the same error at every index.

    Raises:
        ServingError: that error.
    """
    if output.errors and not has_rows(output):
        raise next(iter(output.errors.values()))
    return output
