"""What a runtime returned for a batch: whether it is what was asked for, and which sequences are bad.

After `checked_rows`, exactly the outputs that the batch asked for are there, in the shapes that the
runtime's info promises. Where all is well, looking for bad sequences reads every number once and copies
none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hilbert.core import BatchOutput, OutputType, SparseVector
from hilbert.core.request import FloatArray
from hilbert.errors import EngineError
from hilbert.runtimes.base import RuntimeInfo

# Programs whose dense rows may be zero: the average of a token table, where every token has weight zero.
# From any other, a row of zeros is no vector: OpenVINO was seen to return such rows, and no error, when
# the kernel refused it memory.
_PROGRAMS_WITH_ZEROS = frozenset({"static"})


class WrongShape(EngineError):
    """The runtime broke its contract; splitting the batch would not help."""


def checked_rows(
    output: BatchOutput, outputs: frozenset[OutputType], num_sequences: int, info: RuntimeInfo
) -> BatchOutput:
    """The outputs of a batch that were asked for, float32 and int32, the others None.

    Raises:
        WrongShape: one is missing or has another shape.
    """
    dense = logits = multivector = sparse = None
    if OutputType.DENSE in outputs:
        dense = _table(OutputType.DENSE, output.dense, (num_sequences, info.dimensions))
    if OutputType.LOGITS in outputs:
        logits = _table(OutputType.LOGITS, output.logits, (num_sequences, info.num_labels))
    if OutputType.MULTIVECTOR in outputs:
        multivector = _token_rows(output.multivector, num_sequences, info.token_dimensions)
    if OutputType.SPARSE in outputs:
        sparse = _sparse_vectors(output.sparse, num_sequences)
    return BatchOutput(dense, logits, multivector, sparse)


def bad_sequences(rows: BatchOutput, info: RuntimeInfo) -> list[int]:
    """Which sequences have a NaN or an infinity in any output, or a zero vector where there is none."""
    bad: set[int] = set()
    with np.errstate(all="ignore"):
        if rows.dense is not None:
            bad.update(_not_finite_rows(rows.dense))
            if info.program not in _PROGRAMS_WITH_ZEROS:
                bad.update(_zero_rows(rows.dense))
        if rows.logits is not None:
            bad.update(_not_finite_rows(rows.logits))
        if rows.multivector is not None:
            bad.update(_not_finite_items(rows.multivector))
        if rows.sparse is not None:
            bad.update(_not_finite_items(v.weights for v in rows.sparse))
    return sorted(bad) if bad else []


def picked(rows: BatchOutput, indexes: list[int]) -> BatchOutput:
    """The rows of some of the sequences."""
    return BatchOutput(
        dense=None if rows.dense is None else rows.dense[indexes],
        logits=None if rows.logits is None else rows.logits[indexes],
        multivector=None if rows.multivector is None else tuple(rows.multivector[i] for i in indexes),
        sparse=None if rows.sparse is None else tuple(rows.sparse[i] for i in indexes),
    )


def _table(output: OutputType, rows: FloatArray | None, shape: tuple[int, int]) -> FloatArray:
    if rows is None:
        raise WrongShape(f"the runtime returned no {output} rows")
    table = np.asarray(rows, dtype=np.float32)
    if table.shape != shape:
        raise WrongShape(f"the runtime returned {output} rows {table.shape}, expected {shape}")
    return table


def _token_rows(
    rows: tuple[FloatArray, ...] | None, num_sequences: int, dimensions: int
) -> tuple[FloatArray, ...]:
    if rows is None:
        raise WrongShape("the runtime returned no multivector rows")
    if len(rows) != num_sequences:
        raise WrongShape(f"the runtime returned token vectors of {len(rows)} of {num_sequences} sequences")
    tables = tuple([np.asarray(table, dtype=np.float32) for table in rows])
    for table in tables:
        if table.ndim != 2 or table.shape[1] != dimensions:
            raise WrongShape(
                f"the runtime returned token vectors {table.shape}, expected (tokens, {dimensions})"
            )
    return tables


def _sparse_vectors(rows: tuple[SparseVector, ...] | None, num_sequences: int) -> tuple[SparseVector, ...]:
    if rows is None:
        raise WrongShape("the runtime returned no sparse rows")
    if len(rows) != num_sequences:
        raise WrongShape(f"the runtime returned sparse vectors of {len(rows)} of {num_sequences} sequences")
    vectors = []
    for vector in rows:
        token_ids = np.asarray(vector.token_ids, dtype=np.int32)
        weights = np.asarray(vector.weights, dtype=np.float32)
        if token_ids.ndim != 1 or token_ids.shape != weights.shape:
            raise WrongShape(
                f"the runtime returned token ids {token_ids.shape} with weights {weights.shape}, "
                "expected as many of the one as of the other"
            )
        vectors.append(SparseVector(token_ids, weights))
    return tuple(vectors)


def _not_finite_rows(rows: FloatArray) -> list[int]:
    if math.isfinite(rows.sum()):  # a NaN or an infinity cannot hide in a sum; one that overflows can mislead
        return []
    return np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()


def _not_finite_items(items: Iterable[FloatArray]) -> list[int]:
    return [
        index
        for index, numbers in enumerate(items)
        if not math.isfinite(np.add.reduce(numbers, axis=None)) and not np.isfinite(numbers).all()
    ]


def _zero_rows(rows: FloatArray) -> list[int]:
    suspects = np.flatnonzero(rows[:, 0] == 0)  # one number per row tells for nearly all of them
    if not len(suspects):
        return []
    zeros: list[int] = suspects[~rows[suspects].any(axis=1)].tolist()
    return zeros
