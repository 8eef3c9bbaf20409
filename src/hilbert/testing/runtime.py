"""A runtime without a model: exact, predictable outputs, and every kind of failure on demand.

What a sequence gets depends on its token ids and their order and on nothing else, so a test can tell
whether the right row reached the right place, whatever the batches were. `fake_vector`, `fake_logits`,
`fake_token_vectors` and `fake_sparse` say what that is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from hilbert.core import Batch, BatchOutput, Output, OutputType, Request, SparseVector
from hilbert.core.request import DENSE_ONLY, FloatArray, IntArray
from hilbert.errors import OutOfMemory, WorkerLost
from hilbert.runtimes.base import RuntimeInfo

_MODULUS = 65_521  # the largest prime below 2**16: sums and products stay exact in int64


def fake_vectors(input_ids: list[IntArray], dimensions: int) -> FloatArray:
    """What `FakeRuntime` returns for these sequences: ``[B, dimensions]`` float32 in [-0.5, 0.5)."""
    lengths = np.fromiter(map(len, input_ids), np.int64, len(input_ids))
    starts = np.cumsum(lengths) - lengths
    ids = np.concatenate(input_ids).astype(np.int64)
    positions = np.arange(1, len(ids) + 1) - np.repeat(starts, lengths)
    sums = np.add.reduceat((ids + 1) * positions % _MODULUS, starts) % _MODULUS
    factors = np.arange(1, dimensions + 1, dtype=np.int64) ** 2
    rows: FloatArray = (sums[:, None] * factors % _MODULUS / _MODULUS - 0.5).astype(np.float32)
    return rows


def fake_vector(input_ids: IntArray, dimensions: int = 8) -> FloatArray:
    """The vector of one sequence, ``[dimensions]`` float32."""
    row: FloatArray = fake_vectors([input_ids], dimensions)[0]
    return row


def fake_logits(input_ids: IntArray, num_labels: int = 3) -> FloatArray:
    """The logits of one sequence, ``[num_labels]`` float32 in [-8, 8)."""
    row: FloatArray = 16 * fake_vector(input_ids[::-1], num_labels)
    return row


def fake_token_vectors(input_ids: IntArray, token_dimensions: int = 4) -> FloatArray:
    """The token vectors of one sequence, ``[n, token_dimensions]`` float32: each row by its id alone."""
    factors = np.arange(1, token_dimensions + 1, dtype=np.int64) ** 3
    ids = input_ids.astype(np.int64)[:, None] + 1
    rows: FloatArray = (ids * factors % _MODULUS / _MODULUS - 0.5).astype(np.float32)
    return rows


def fake_sparse(input_ids: IntArray) -> SparseVector:
    """The weights of one sequence over the vocabulary: how often each token occurs, and a quarter."""
    token_ids, counts = np.unique(input_ids, return_counts=True)
    return SparseVector(token_ids.astype(np.int32), (counts + 0.25).astype(np.float32))


def check_fake_output(output: Output, request: Request, info: RuntimeInfo, bad: Collection[int] = ()) -> None:
    """Assert that an answer is what a `FakeRuntime` says, and holds nothing that was not asked for.

    Args:
        output: the answer.
        request: what was asked.
        info: the runtime's.
        bad: indexes that must have an error, rows of zeros and empty lists.
    """
    inputs = [s.input_ids for s in request.sequences]
    is_bad = np.isin(np.arange(len(inputs)), list(bad))
    assert np.flatnonzero(is_bad).tolist() == sorted(output.errors), output.errors
    assert all(error.index == i for i, error in output.errors.items())
    answered = {kind for kind in OutputType if getattr(output, kind) is not None}
    assert answered == request.outputs, f"asked for {set(request.outputs)}, got {answered}"
    if output.dense is not None:
        _check_array(output.dense, np.where(is_bad[:, None], 0, fake_vectors(inputs, info.dimensions)))
    if output.logits is not None:
        logits = np.stack([fake_logits(ids, info.num_labels) for ids in inputs])
        _check_array(output.logits, np.where(is_bad[:, None], 0, logits))
    if output.multivector is not None:
        for rows, ids, is_empty in zip(output.multivector, inputs, is_bad, strict=True):
            _check_array(rows, fake_token_vectors(ids[:0] if is_empty else ids, info.token_dimensions))
    if output.sparse is not None:
        for vector, ids, is_empty in zip(output.sparse, inputs, is_bad, strict=True):
            expected = fake_sparse(ids[:0] if is_empty else ids)
            _check_array(vector.token_ids, expected.token_ids)
            _check_array(vector.weights, expected.weights)


def _check_array(got: FloatArray | IntArray, expected: FloatArray | IntArray) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


@dataclass(frozen=True, slots=True)
class _Prepared:
    batch: Batch
    input_ids: IntArray


class FakeRuntime:
    """Implements `runtimes.base.Runtime`.

    A marker is a token id; the runtime looks for it anywhere in a batch.

    Args:
        dimensions: ``E``.
        outputs: what `info` reports. A run returns those of them that its batch asks for.
        num_labels: ``L``, where logits are among the outputs.
        token_dimensions: width of the token vectors, where they are among the outputs.
        program: what `info` reports.
        num_slots: batches in flight.
        max_batch_tokens: what `info` reports.
        seconds_per_batch: how long a run keeps the device, beside
        seconds_per_token: the same per token.
        raise_on_token: a batch with this marker raises ValueError.
        nan_on_token: the rows of sequences with this marker are NaN.
        nan_once_on_token: likewise, but infinite, and only in company of other sequences.
        nan_output: the one output that the two concern; None means all.
        zero_on_token: the dense rows of sequences with this marker are zero.
        oom_above_tokens: larger batches raise OutOfMemory.
        oom_on_token: a batch with this marker raises OutOfMemory.
        lose_device_on_token: a batch with this marker raises WorkerLost.
        hang_on_token: a batch with this marker waits for `let_go`.
        wrong_shape_on_token: a batch with this marker returns one row too few of each output.
        padding_tokens: how many each batch is said to be filled up with.

    Attributes:
        batches: all batches that were run, in order, when `record` is true.
        num_runs: how many there were.
    """

    def __init__(
        self,
        dimensions: int = 8,
        *,
        outputs: frozenset[OutputType] = DENSE_ONLY,
        num_labels: int = 3,
        token_dimensions: int = 4,
        program: str = "fake",
        num_slots: int = 2,
        max_batch_tokens: int = 2048,
        seconds_per_batch: float = 0.0,
        seconds_per_token: float = 0.0,
        raise_on_token: int | None = None,
        nan_on_token: int | None = None,
        nan_once_on_token: int | None = None,
        nan_output: OutputType | None = None,
        zero_on_token: int | None = None,
        oom_above_tokens: int | None = None,
        oom_on_token: int | None = None,
        lose_device_on_token: int | None = None,
        hang_on_token: int | None = None,
        wrong_shape_on_token: int | None = None,
        padding_tokens: int = 0,
        record: bool = False,
    ) -> None:
        self.seconds_per_batch = seconds_per_batch
        self.seconds_per_token = seconds_per_token
        self.raise_on_token = raise_on_token
        self.nan_on_token = nan_on_token
        self.nan_once_on_token = nan_once_on_token
        self.nan_output = nan_output
        self.zero_on_token = zero_on_token
        self.oom_above_tokens = oom_above_tokens
        self.oom_on_token = oom_on_token
        self.lose_device_on_token = lose_device_on_token
        self.hang_on_token = hang_on_token
        self.wrong_shape_on_token = wrong_shape_on_token
        self.padding_tokens = padding_tokens
        self.record = record
        self.batches: list[Batch] = []
        self.num_runs = 0
        self.is_closed = False
        self._num_slots = num_slots
        self._is_free = threading.Event()
        self._is_free.set()
        self._has_let_go = threading.Event()
        self._entered = threading.Semaphore(0)
        self._one_at_a_time = threading.Lock()
        self._info = RuntimeInfo(
            engine="fake",
            device="none",
            dtype="float32",
            program=program,
            reason="a test asked for it",
            dimensions=dimensions,
            outputs=outputs,
            max_batch_tokens=max_batch_tokens,
            num_labels=num_labels if OutputType.LOGITS in outputs else 0,
            token_dimensions=token_dimensions if OutputType.MULTIVECTOR in outputs else 0,
        )

    @property
    def info(self) -> RuntimeInfo:
        """What a real runtime would say of itself."""
        return self._info

    @property
    def num_slots(self) -> int:
        """Batches that may be in flight."""
        return self._num_slots

    def hold(self) -> None:
        """Make every run from now on wait at its start until `release`."""
        self._is_free.clear()

    def release(self) -> None:
        """End `hold`."""
        self._is_free.set()

    def let_go(self) -> None:
        """Wake the batches that `hang_on_token` stopped, now and later."""
        self._has_let_go.set()

    def wait_for_run(self, timeout: float = 10.0) -> None:
        """Block until one more run has begun than calls of this method have returned."""
        if not self._entered.acquire(timeout=timeout):
            raise TimeoutError(f"no batch was run within {timeout} s")

    def prepare(self, batch: Batch) -> _Prepared:
        """Put the tokens side by side."""
        return _Prepared(batch, np.concatenate([s.input_ids for s in batch.sequences]))

    def num_padding_tokens(self, prepared: _Prepared) -> int:
        """As many as it was told."""
        return self.padding_tokens

    def run(self, prepared: _Prepared) -> BatchOutput:
        """Compute the vectors, or fail as told."""
        assert self._one_at_a_time.acquire(blocking=False), "two runs at once: nobody asked for the turn"
        try:
            return self._run(prepared)
        finally:
            self._one_at_a_time.release()

    def close(self) -> None:
        """Remember that it was called."""
        self.is_closed = True

    def _run(self, prepared: _Prepared) -> BatchOutput:
        batch, ids = prepared.batch, prepared.input_ids
        self.num_runs += 1
        if self.record:
            self.batches.append(batch)
        self._entered.release()
        self._is_free.wait()
        if self._contains(ids, self.hang_on_token):
            self._has_let_go.wait()
        if seconds := self.seconds_per_batch + self.seconds_per_token * len(ids):
            time.sleep(seconds)
        if self._contains(ids, self.lose_device_on_token):
            raise WorkerLost("the fake device is gone")
        if self._contains(ids, self.oom_on_token) or (
            self.oom_above_tokens is not None and len(ids) > self.oom_above_tokens
        ):
            raise OutOfMemory(f"a batch of {len(ids)} tokens does not fit the fake device")
        if self._contains(ids, self.raise_on_token):
            raise ValueError(f"token {self.raise_on_token} in the batch")
        is_short = self._contains(ids, self.wrong_shape_on_token)
        return self._outputs(batch, slice(0, len(batch.sequences) - is_short))

    def _outputs(self, batch: Batch, kept: slice) -> BatchOutput:
        """What the batch asks for, of the sequences `kept`."""
        info, inputs = self._info, [s.input_ids for s in batch.sequences]
        dense = logits = multivector = sparse = None
        if OutputType.DENSE in batch.outputs:
            dense = fake_vectors(inputs, info.dimensions)
            self._spoil(OutputType.DENSE, dense, inputs)
            if self.zero_on_token is not None:
                dense[[self.zero_on_token in ids for ids in inputs]] = 0
            dense = dense[kept]
        if OutputType.LOGITS in batch.outputs:
            logits = np.stack([fake_logits(ids, info.num_labels) for ids in inputs])
            self._spoil(OutputType.LOGITS, logits, inputs)
            logits = logits[kept]
        if OutputType.MULTIVECTOR in batch.outputs:
            rows = [fake_token_vectors(ids, info.token_dimensions) for ids in inputs]
            self._spoil(OutputType.MULTIVECTOR, rows, inputs)
            multivector = tuple(rows[kept])
        if OutputType.SPARSE in batch.outputs:
            vectors = [fake_sparse(ids) for ids in inputs]
            self._spoil(OutputType.SPARSE, [v.weights for v in vectors], inputs)
            sparse = tuple(vectors[kept])
        return BatchOutput(dense, logits, multivector, sparse)

    def _spoil(self, output: OutputType, rows: FloatArray | list[FloatArray], inputs: list[IntArray]) -> None:
        """Put NaN or infinity into the last number of the sequences that have the marker for it."""
        if self.nan_output not in (None, output):
            return
        for row, ids in zip(rows, inputs, strict=True):
            if self._contains(ids, self.nan_on_token):
                row[..., -1] = np.nan
            elif len(inputs) > 1 and self._contains(ids, self.nan_once_on_token):
                row[..., -1] = np.inf

    @staticmethod
    def _contains(ids: IntArray, marker: int | None) -> bool:
        return marker is not None and bool((ids == marker).any())


def tokens(*ids: int, repeat: int = 1) -> IntArray:
    """Token ids as the core types want them: int32."""
    return np.tile(np.array(ids, dtype=np.int32), repeat)
