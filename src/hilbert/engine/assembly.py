"""Puts rows back where they belong: from batches to requests.

A batch holds runs: consecutive sequences of one request. Rows of a table (dense, logits) are copied run
by run, never one by one, so a request of 2048 texts costs a few array writes. What has its own length for
each sequence (multivector, sparse) is kept in lists, by index. Nothing here locks or knows threads: the
engine says who may call what (`Pending.put` of disjoint runs may run in two threads at once; all the
rest happens under the engine's lock).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hilbert.core import BatchOutput, Output, OutputType, Request, Sequence, SparseVector
from hilbert.core.request import FloatArray
from hilbert.errors import ServingError
from hilbert.runtimes.base import RuntimeInfo

Deliver = Callable[[Output], None]
Item = TypeVar("Item")


class Pending:
    """A request that has not been answered yet.

    Attributes:
        num_left: sequences that have neither a row nor an error yet.
        is_answered: somebody has taken it upon himself to answer; nobody else may.
    """

    __slots__ = (
        "_dense",
        "_errors",
        "_has_room",
        "_logits",
        "_multivector",
        "_sparse",
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
        self._has_room = False
        self._dense: FloatArray | None = None
        self._logits: FloatArray | None = None
        self._multivector: list[FloatArray] | None = None
        self._sparse: list[SparseVector] | None = None
        self._errors: dict[int, ServingError] | None = None

    def owns(self, sequence: Sequence) -> bool:
        """Whether this very object is one of the request's sequences."""
        sequences = self.request.sequences
        return sequence.index < len(sequences) and sequences[sequence.index] is sequence

    def make_room(self, info: RuntimeInfo) -> None:
        """Allocate what the request asks for, zero and empty, unless that has been done."""
        if self._has_room:
            return
        self._has_room = True
        num_sequences, outputs = len(self.request.sequences), self.request.outputs
        if OutputType.DENSE in outputs:
            self._dense = np.zeros((num_sequences, info.dimensions), np.float32)
        if OutputType.LOGITS in outputs:
            self._logits = np.zeros((num_sequences, info.num_labels), np.float32)
        if OutputType.MULTIVECTOR in outputs:
            self._multivector = [np.zeros((0, info.token_dimensions), np.float32)] * num_sequences
        if OutputType.SPARSE in outputs:
            nothing = SparseVector(np.zeros(0, np.int32), np.zeros(0, np.float32))
            self._sparse = [nothing] * num_sequences

    def put(self, run: Run, rows: BatchOutput) -> None:
        """Copy a run's rows out of its batch.

        `make_room` comes first, unless the run is the whole request. It is a copy in any case: a
        slice would keep the whole batch in memory, and the runtime may use its buffer again.
        """
        first, start, stop = run.first, run.start, run.start + run.length
        if rows.dense is not None:
            self._dense = _put_rows(self._dense, first, rows.dense[start:stop])
        if rows.logits is not None:
            self._logits = _put_rows(self._logits, first, rows.logits[start:stop])
        if rows.multivector is not None:
            tables = [table.copy() for table in rows.multivector[start:stop]]
            self._multivector = _put_items(self._multivector, first, tables)
        if rows.sparse is not None:
            vectors = [SparseVector(v.token_ids.copy(), v.weights.copy()) for v in rows.sparse[start:stop]]
            self._sparse = _put_items(self._sparse, first, vectors)

    def fail(self, index: int, error: ServingError) -> None:
        """Note that one sequence has failed; its row stays zero."""
        if self._errors is None:
            self._errors = {}
        self._errors[index] = error

    def output(self) -> Output:
        """The answer, when no sequence is left."""
        return Output(
            request_id=self.request.id,
            dense=self._dense,
            logits=self._logits,
            multivector=None if self._multivector is None else tuple(self._multivector),
            sparse=None if self._sparse is None else tuple(self._sparse),
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


def _put_rows(room: FloatArray | None, first: int, rows: FloatArray) -> FloatArray:
    """Write rows from `first` on; without room, they are all there will be."""
    if room is None:
        return rows.copy()
    room[first : first + len(rows)] = rows
    return room


def _put_items(room: list[Item] | None, first: int, items: list[Item]) -> list[Item]:
    """Likewise for a list."""
    if room is None:
        return items
    room[first : first + len(items)] = items
    return room


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
