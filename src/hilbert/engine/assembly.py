"""Puts rows back where they belong: from batches to requests.

A batch holds runs: consecutive sequences of one request. Rows are copied run by run, never one by one,
so a request of 2048 texts costs a few array writes. Nothing here locks or knows threads: the engine
says who may call what (`Pending.put` of disjoint runs may run in two threads at once; all the rest
happens under the engine's lock).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hilbert.core import Output, Request, Sequence
from hilbert.core.request import FloatArray
from hilbert.errors import ServingError

Deliver = Callable[[Output], None]


class Pending:
    """A request that has not been answered yet.

    Attributes:
        num_left: sequences that have neither a row nor an error yet.
        is_answered: somebody has taken it upon himself to answer; nobody else may.
    """

    __slots__ = (
        "_errors",
        "_rows",
        "deliver",
        "inference_seconds",
        "is_answered",
        "num_left",
        "queue_seconds",
        "request",
        "submitted_at",
    )

    def __init__(self, request: Request, deliver: Deliver, submitted_at: float) -> None:
        self.request = request
        self.deliver = deliver
        self.submitted_at = submitted_at
        self.num_left = len(request.sequences)
        self.is_answered = False
        self.queue_seconds = 0.0
        self.inference_seconds = 0.0
        self._rows: FloatArray | None = None
        self._errors: dict[int, ServingError] | None = None

    def owns(self, sequence: Sequence) -> bool:
        """Whether this very object is one of the request's sequences."""
        sequences = self.request.sequences
        return sequence.index < len(sequences) and sequences[sequence.index] is sequence

    def make_room(self, dimensions: int) -> None:
        """Allocate ``[N, dimensions]`` zeros, unless that has been done."""
        if self._rows is None:
            self._rows = np.zeros((len(self.request.sequences), dimensions), dtype=np.float32)

    def put(self, first: int, rows: FloatArray) -> None:
        """Copy rows to the sequences from index `first` on.

        `make_room` comes first, unless the run is the whole request. It is a copy in any case: a
        slice would keep the whole batch in memory, and the runtime may use its buffer again.
        """
        if self._rows is not None:
            self._rows[first : first + len(rows)] = rows
        else:
            self._rows = rows.copy()

    def fail(self, index: int, error: ServingError) -> None:
        """Note that one sequence has failed; its row stays zero."""
        if self._errors is None:
            self._errors = {}
        self._errors[index] = error

    def output(self) -> Output:
        """The answer, when no sequence is left."""
        return Output(
            request_id=self.request.id,
            dense=self._rows,
            errors=self._errors or {},
            queue_seconds=self.queue_seconds,
            inference_seconds=self.inference_seconds,
        )

    def failure(self, error: ServingError) -> Output:
        """The answer when the request failed as a whole: no rows, the same error for every sequence."""
        return Output(
            request_id=self.request.id,
            errors=dict.fromkeys(range(len(self.request.sequences)), copy_of(error)),
            queue_seconds=self.queue_seconds,
            inference_seconds=self.inference_seconds,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Rows ``[start : start + length]`` of a batch: sequences ``[first : first + length]`` of a request."""

    request_id: int
    first: int
    start: int
    length: int


def runs_of(sequences: Iterable[Sequence]) -> list[Run]:
    """Group sequences into runs, in order."""
    runs: list[Run] = []
    request_id = first = expected = -1
    start = position = 0
    for position, sequence in enumerate(sequences):
        if sequence.request_id != request_id or sequence.index != expected:
            if position > start:
                runs.append(Run(request_id, first, start, position - start))
            request_id, first, start = sequence.request_id, sequence.index, position
            expected = first
        expected += 1
    if first >= 0:
        runs.append(Run(request_id, first, start, position + 1 - start))
    return runs


def copy_of(error: ServingError, index: int | None = None) -> ServingError:
    """The same error for one more caller: a raised exception collects tracebacks, so none is shared."""
    return type(error)(
        error.message, param=error.param, index=index, retry_after_seconds=error.retry_after_seconds
    )
