"""An answer on its way from a worker to the front: one frame, or several when it is large. Sans-IO.

The body of a frame holds consecutive sequences of one request, in columns of int32 and float32. Each is
there when the request asked for it::

    dense [n, E] | logits [n, L] | token vectors: lengths [n], rows [sum, E]
                                 | sparse: counts [n], token ids [sum], weights [sum]

An answer is cut between sequences, so nothing is copied to cut it and nearly nothing to join it; the
errors travel with the last frame. This module knows nothing of sockets, processes or models.
"""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np

from hilbert.core import Output, SparseVector
from hilbert.core.request import FloatArray, IntArray
from hilbert.errors import InputTooLong, ServingError
from hilbert.worker.frames import (
    Buffer,
    FrameError,
    Kind,
    Result,
    WireError,
    decode_error,
    encode,
    encode_error,
)

# A larger answer leaves in frames of this size, so that pongs and other answers pass between them. 2048
# vectors of 4096 numbers still are one frame.
PART_BYTES = 32 << 20


def encode_result(output: Output, part_bytes: int = PART_BYTES) -> list[list[Buffer]]:
    """An answer as frames, at least one.

    Args:
        output: its arrays are sent from where they are, so they must not change before that.
        part_bytes: where to begin a new frame. A single sequence may take more than that; one that
            exceeds the frame limit makes the answer an error.
    """
    try:
        if _num_bytes(output) <= part_bytes:
            return [_encode_part(output)]
        cuts = _cuts(_bytes_per_sequence(output), part_bytes)
        last = len(cuts) - 2
        return [
            _encode_part(_part_of(output, start, stop), 0 if number == last else stop - start)
            for number, (start, stop) in enumerate(pairwise(cuts))
        ]
    except FrameError:
        sizes = _bytes_per_sequence(output)
        index = sizes.index(max(sizes))
        error = InputTooLong(
            f"what was asked for this input takes {sizes[index]} bytes, more than can be sent at once; "
            "send a shorter input, or ask for fewer outputs",
            index=index,
        )
        errors = [(encode_error(error), list(range(len(sizes))))]
        return [encode(Kind.RESULT, Result(output.request_id, -1, 0.0, 0.0, errors))]


def decode_result(meta: Result, body: bytearray | memoryview, request_id: int, num_sequences: int) -> Output:
    """What one frame says.

    Args:
        meta: the frame's metadata.
        body: the frame's body; the arrays are writable views of it.
        request_id: the caller's id of the request.
        num_sequences: how many sequences the frame is about.

    Raises:
        FrameError: the columns do not fit the body.
    """
    columns = _Columns(body, num_sequences, meta.request)
    dense = logits = multivector = sparse = None
    if meta.dimensions >= 0:
        dense = columns.table(num_sequences, meta.dimensions)
    if meta.num_labels >= 0:
        logits = columns.table(num_sequences, meta.num_labels)
    if meta.token_dimensions >= 0:
        multivector = columns.token_vectors(meta.token_dimensions)
    if meta.has_sparse:
        sparse = columns.sparse_vectors()
    columns.check_end()
    failures: dict[int, ServingError] = {}
    for wire_error, indexes in meta.errors or ():
        failure = decode_error(wire_error)
        failures.update(dict.fromkeys(indexes, failure))
    return Output(
        request_id,
        dense,
        logits,
        multivector,
        sparse,
        failures,
        meta.queue_seconds,
        meta.inference_seconds,
    )


class Parts:
    """What has arrived of an answer that comes in several frames."""

    def __init__(self, request_id: int) -> None:
        self._request_id = request_id
        self._outputs: list[Output] = []
        self._num_sequences = 0

    def add(self, meta: Result, body: bytearray | memoryview) -> None:
        """Take a frame that is not the last one.

        Raises:
            FrameError: the columns do not fit the body.
        """
        self._outputs.append(decode_result(meta, body, self._request_id, meta.num_part_sequences))
        self._num_sequences += meta.num_part_sequences

    def finish(self, meta: Result, body: bytearray | memoryview, num_sequences: int) -> Output:
        """Take the last frame; the whole answer.

        Raises:
            FrameError: the columns do not fit the body, or the frames not the request.
        """
        num_left = num_sequences - self._num_sequences
        if num_left < 0:
            raise FrameError(f"request {meta.request}: rows of {-num_left} sequences too many")
        last = decode_result(meta, body, self._request_id, num_left)
        parts = [*self._outputs, last]
        return Output(
            self._request_id,
            _stacked([part.dense for part in parts]),
            _stacked([part.logits for part in parts]),
            None
            if last.multivector is None
            else tuple(chain.from_iterable(p.multivector or () for p in parts)),
            None if last.sparse is None else tuple(chain.from_iterable(p.sparse or () for p in parts)),
            last.errors,
            last.queue_seconds,
            last.inference_seconds,
        )


class _Columns:
    """The columns of a body, read one after the other."""

    __slots__ = ("_num_sequences", "_numbers", "_position", "_request")

    def __init__(self, body: bytearray | memoryview, num_sequences: int, request: int) -> None:
        if len(body) % 4:
            raise FrameError(f"request {request}: a body of {len(body)} bytes holds no whole numbers")
        self._numbers: FloatArray = np.frombuffer(body, np.float32)
        self._num_sequences = num_sequences
        self._position = 0
        self._request = request

    def table(self, num_rows: int, width: int) -> FloatArray:
        """The next ``[num_rows, width]`` float32."""
        return self._take(num_rows * width).reshape(num_rows, width)

    def token_vectors(self, dimensions: int) -> tuple[FloatArray, ...]:
        """A table for each sequence."""
        ends = self._ends()
        rows = self.table(ends[-1], dimensions)
        return tuple([rows[start:end] for start, end in pairwise(ends)])

    def sparse_vectors(self) -> tuple[SparseVector, ...]:
        """A sparse vector for each sequence."""
        ends = self._ends()
        token_ids: IntArray = self._take(ends[-1]).view(np.int32)
        weights = self._take(ends[-1])
        return tuple(
            [SparseVector(token_ids[start:end], weights[start:end]) for start, end in pairwise(ends)]
        )

    def check_end(self) -> None:
        """Nothing may be left."""
        if self._position != len(self._numbers):
            self._raise()

    def _ends(self) -> list[int]:
        """From a column of lengths: where each sequence begins, and the end of the last one."""
        lengths = self._take(self._num_sequences).view(np.int32)
        if (lengths < 0).any():
            self._raise()
        return [0, *np.cumsum(lengths, dtype=np.int64).tolist()]

    def _take(self, num: int) -> FloatArray:
        start, self._position = self._position, self._position + num
        if self._position > len(self._numbers):
            self._raise()
        return self._numbers[start : self._position]

    def _raise(self) -> None:
        raise FrameError(
            f"request {self._request}: the rows of {self._num_sequences} sequences do not fit a body of "
            f"{4 * len(self._numbers)} bytes"
        )


def _encode_part(output: Output, num_part_sequences: int = 0) -> list[Buffer]:
    body: list[Buffer] = []
    dimensions = num_labels = token_dimensions = -1
    if output.dense is not None:
        dimensions = output.dense.shape[1]
        _add(body, output.dense)
    if output.logits is not None:
        num_labels = output.logits.shape[1]
        _add(body, output.logits)
    if output.multivector is not None:
        tables = output.multivector
        token_dimensions = tables[0].shape[1] if tables else 0
        body.append(np.fromiter(map(len, tables), np.int32, len(tables)).tobytes())
        for table in tables:
            _add(body, table)
    if output.sparse is not None:
        vectors = output.sparse
        body.append(np.fromiter((len(v.weights) for v in vectors), np.int32, len(vectors)).tobytes())
        # Short arrays, many of them: one copy costs less than a buffer for each.
        body.append(b"".join([np.ascontiguousarray(v.token_ids, np.int32).tobytes() for v in vectors]))
        body.append(b"".join([np.ascontiguousarray(v.weights, np.float32).tobytes() for v in vectors]))
    meta = Result(
        output.request_id,
        dimensions,
        output.queue_seconds,
        output.inference_seconds,
        _group_errors(output.errors) if output.errors else None,
        num_labels,
        token_dimensions,
        output.sparse is not None,
        num_part_sequences,
    )
    return encode(Kind.RESULT, meta, body)


def _part_of(output: Output, start: int, stop: int) -> Output:
    """Some consecutive sequences; the errors are left for the last part."""
    dense, logits = output.dense, output.logits
    multivector, sparse = output.multivector, output.sparse
    is_last = stop == _num_sequences(output)
    return Output(
        output.request_id,
        None if dense is None else dense[start:stop],
        None if logits is None else logits[start:stop],
        None if multivector is None else multivector[start:stop],
        None if sparse is None else sparse[start:stop],
        output.errors if is_last else {},
        output.queue_seconds,
        output.inference_seconds,
    )


def _add(body: list[Buffer], rows: FloatArray) -> None:
    if rows.size:
        body.append(np.ascontiguousarray(rows, np.float32).data.cast("B"))


def _num_sequences(output: Output) -> int:
    for rows in (output.dense, output.logits, output.multivector, output.sparse):
        if rows is not None:
            return len(rows)
    return 0


def _num_bytes(output: Output) -> int:
    """Size of the numbers, lengths not counted."""
    num_bytes = 0
    if output.dense is not None:
        num_bytes = output.dense.nbytes
    if output.logits is not None:
        num_bytes += output.logits.nbytes
    if output.multivector is not None:
        num_bytes += sum([table.nbytes for table in output.multivector])
    if output.sparse is not None:
        num_bytes += 8 * sum([len(v.weights) for v in output.sparse])
    return num_bytes


def _bytes_per_sequence(output: Output) -> list[int]:
    sizes = [0] * _num_sequences(output)
    for table in (output.dense, output.logits):
        if table is not None:
            sizes = [size + 4 * table.shape[1] for size in sizes]
    if output.multivector is not None:
        sizes = [size + 4 * rows.size for size, rows in zip(sizes, output.multivector, strict=True)]
    if output.sparse is not None:
        sizes = [size + 8 * len(v.weights) for size, v in zip(sizes, output.sparse, strict=True)]
    return sizes


def _cuts(sizes: list[int], part_bytes: int) -> list[int]:
    """Where the parts begin, and the end of the last one; no part is empty."""
    cuts = [0]
    part = 0
    for index, size in enumerate(sizes):
        if part + size > part_bytes and index > cuts[-1]:
            cuts.append(index)
            part = 0
        part += size
    return [*cuts, len(sizes)]


def _stacked(tables: list[FloatArray | None]) -> FloatArray | None:
    present = [table for table in tables if table is not None]
    return np.concatenate(present) if present else None


def _group_errors(failures: dict[int, ServingError]) -> list[tuple[WireError, list[int]]]:
    # A request-wide failure is one object under every index: send it once.
    groups: dict[int, tuple[WireError, list[int]]] = {}
    for index, failure in failures.items():
        group = groups.get(id(failure))
        if group is None:
            group = groups[id(failure)] = (encode_error(failure), [])
        group[1].append(index)
    return list(groups.values())
