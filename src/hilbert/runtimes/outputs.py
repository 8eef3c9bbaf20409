"""From what a program returns to `BatchOutput`: rows in the batch's order, only what was asked for.

A program's outputs are named in `programs.heads`. Here their packed rows find their sequences again, and
sparse ones lose their zeros. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hilbert.core import BatchOutput, OutputType, SparseVector
from hilbert.core.request import FloatArray
from hilbert.runtimes.base import OUTPUT_BYTES
from hilbert.runtimes.packing import IndexArray, PackedBatch

# What a program's output is served as.
SERVED_AS = {
    "dense": OutputType.DENSE,
    "logits": OutputType.LOGITS,
    "tokens": OutputType.MULTIVECTOR,
    "vocabulary": OutputType.SPARSE,
    "token_weights": OutputType.SPARSE,
}


def served_outputs(names: Iterable[str]) -> frozenset[OutputType]:
    """What a program with these outputs can serve."""
    return frozenset(SERVED_AS[name] for name in names)


def max_batch_sequences(names: Iterable[str], vocab_size: int) -> int | None:
    """How many sequences' rows fit into `OUTPUT_BYTES`; None where no output is as wide as the vocabulary."""
    if "vocabulary" not in names or not vocab_size:
        return None
    return max(1, OUTPUT_BYTES // (4 * vocab_size))


class OutputBuilder:
    """Collects the parts of one batch.

    Args:
        num_sequences: of the whole batch.
        wanted: what to keep.
        special_ids: token ids that bge-m3's sparse vectors leave out.
    """

    def __init__(
        self, num_sequences: int, wanted: frozenset[OutputType], special_ids: Iterable[int] = ()
    ) -> None:
        self._num_sequences = num_sequences
        self._wanted = wanted
        self._special_ids = np.array(sorted(special_ids), np.int32)
        self._rows: dict[OutputType, FloatArray] = {}
        self._multivector: list[FloatArray | None] = [None] * num_sequences
        self._sparse: list[SparseVector | None] = [None] * num_sequences

    def add(self, part: PackedBatch, outputs: Mapping[str, Any]) -> None:
        """Take the outputs of one run.

        Args:
            part: what was run; its `order` says which sequences.
            outputs: arrays by name, rows in packed order, dummy and rounding rows behind the real ones. They
                are copied.
        """
        num = len(part.order)
        for name, rows in outputs.items():
            kind = SERVED_AS[name]
            if kind not in self._wanted:
                continue
            if kind is OutputType.DENSE:
                self.add_dense(part.order, rows[:num])
            elif kind is OutputType.LOGITS:
                if kind not in self._rows:
                    self._rows[kind] = np.empty((self._num_sequences, rows.shape[1]), np.float32)
                self._rows[kind][part.order] = rows[:num]
            elif name == "vocabulary":
                for place, weights in zip(part.order.tolist(), rows[:num], strict=True):
                    token_ids = np.flatnonzero(weights)
                    self._sparse[place] = SparseVector(token_ids.astype(np.int32), weights[token_ids].copy())
            else:
                borders = np.concatenate([[0], np.cumsum(part.lengths)]).tolist()
                for place, start, end in zip(part.order.tolist(), borders, borders[1:], strict=False):
                    if name == "tokens":
                        self._multivector[place] = np.array(rows[start:end], np.float32)
                    else:
                        self._sparse[place] = self._lexical(part.input_ids[start:end], rows[start:end])

    def add_dense(self, places: IndexArray, rows: FloatArray) -> None:
        """Take dense rows for these places of the batch; they are copied."""
        kind = OutputType.DENSE
        if kind not in self._rows:
            self._rows[kind] = np.empty((self._num_sequences, rows.shape[1]), np.float32)
        self._rows[kind][places] = rows

    def finish(self) -> BatchOutput:
        """The batch's output, every sequence in its place."""
        return BatchOutput(
            dense=self._rows.get(OutputType.DENSE),
            logits=self._rows.get(OutputType.LOGITS),
            multivector=_complete(self._multivector),
            sparse=_complete(self._sparse),
        )

    def _lexical(self, input_ids: Any, weights: FloatArray) -> SparseVector:
        """The largest weight of each token id, special tokens left out."""
        token_ids, place = np.unique(input_ids, return_inverse=True)
        largest = np.zeros(len(token_ids), np.float32)
        with np.errstate(invalid="ignore"):
            np.maximum.at(largest, place, weights)
        kept = ~(largest <= 0) & ~np.isin(token_ids, self._special_ids)  # NaN is kept, and found later
        return SparseVector(token_ids[kept].astype(np.int32), largest[kept])


def _complete(items: list[Any]) -> tuple[Any, ...] | None:
    return None if any(item is None for item in items) else tuple(items)
