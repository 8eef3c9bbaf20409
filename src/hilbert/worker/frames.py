"""What crosses the border between the front and a worker, as bytes. Sans-IO, no pickle.

A frame is a fixed header, a body of raw numbers and msgpack metadata, in this order::

    uint32 body bytes | uint32 metadata bytes | uint8 kind | 3 zero bytes | body | metadata

The body comes first so that its numbers are aligned wherever the frame is received. Token ids travel
as int32, rows as float32, both little-endian as the machine has them: the two sides run on one machine.
A deadline travels as the seconds that are left, as the two sides need not share a clock.

This module knows the layout of frames and nothing of sockets, processes or models.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from collections.abc import Sequence as Many
from enum import IntEnum

import msgspec
import numpy as np

from hilbert import errors
from hilbert.core import Modality, ModelSpec, OutputType, Request, Sequence
from hilbert.core.request import FloatArray
from hilbert.engine.start import EngineLimits
from hilbert.engine.stats import BatchStats
from hilbert.errors import EngineError, ServingError
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings
from hilbert.runtimes.memory import DeviceMemory

# A request of 2048 texts with 8192 tokens each is 64 MiB; so are 32,768 token vectors of 512 numbers.
MAX_FRAME_BYTES = 256 << 20
HEADER = struct.Struct("<IIBxxx")
# What one recv takes at most; a unix stream socket holds about 200 KiB.
_RECEIVE_BYTES = 128 << 10

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame says. F: the front sends it, W: the worker sends it."""

    HELLO = 1  # W: I am here
    LOAD = 2  # F: load this model
    LOADED = 3  # W: loaded, or the error
    UNLOAD = 4  # F: forget this model
    UNLOADED = 5  # W: its memory is given back
    SUBMIT = 6  # F: a request
    RESULT = 7  # W: its answer
    CANCEL = 8  # F: nobody waits for this request any more
    PING = 9  # F: are you there?
    PONG = 10  # W: yes, and how I am
    BATCH = 11  # W: statistics of one batch
    HEALTH = 12  # W: an engine is lost; the worker exits right after
    SHUTDOWN = 13  # F: answer what you have, then exit
    WELCOME = 14  # F: its answer to HELLO


class FrameError(EngineError):
    """The other side sent something that is not a frame, or one over the limit."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The worker's first word. The two versions differ after an upgrade under a running server."""

    pid: int
    version: str


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """What a worker must know that was started before anybody had read the settings."""

    log_level: str
    is_json_log: bool = False


class Load(msgspec.Struct, frozen=True, array_like=True):
    """Load a model; `config` carries `spec.config` as JSON, where numbers have no limit."""

    model: int
    key: str
    spec: ModelSpec
    config: str
    settings: RuntimeSettings
    limits: EngineLimits


class WireError(msgspec.Struct, frozen=True, array_like=True):
    """A `ServingError`; the receiver rebuilds it from `name`."""

    name: str
    message: str
    param: str | None = None
    index: int | None = None
    retry_after_seconds: float | None = None


class Loaded(msgspec.Struct, frozen=True, array_like=True):
    """`info` or `error`; neither while the model steps aside to be traced, and one of them follows.

    `device` is the memory of the worker's device afterwards, where it has its own.
    """

    model: int
    info: RuntimeInfo | None = None
    error: WireError | None = None
    device: DeviceMemory = DeviceMemory()


class Unload(msgspec.Struct, frozen=True, array_like=True):
    """Forget a model."""

    model: int


class Unloaded(msgspec.Struct, frozen=True, array_like=True):
    """It is forgotten; `device` as in `Loaded`."""

    model: int
    device: DeviceMemory = DeviceMemory()


class FeatureColumn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Features of sequence `index`: their shape, and what is said of them in `Sequence`."""

    index: int
    modality: Modality
    num_tokens: int
    shape: tuple[int, ...]


class Submit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request. The body holds columns of int32, each present when its flag is set, then features.

    ``lengths [N] | prompt_lens [N]? | input_ids [T] | token_type_ids [T]? | float32 of each of `features```
    """

    model: int
    request: int
    num_sequences: int
    outputs: int
    has_prompt_lens: bool
    has_token_types: bool
    timeout_seconds: float | None
    features: list[FeatureColumn] | None = None


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An answer, or a part of a large one; `answers` says what the body holds.

    Attributes:
        request: the id on the wire.
        dimensions: width of the dense rows; -1 where there are none.
        queue_seconds: see `Output`.
        inference_seconds: see `Output`.
        errors: each error once, with the sequences that it concerns.
        num_labels: width of the logits; -1 where there are none.
        token_dimensions: width of the token vectors; -1 where there are none.
        has_sparse: whether there are sparse vectors.
        num_part_sequences: how many sequences this frame is about when more frames follow; 0 in the
            last one, which nearly always is the only one.
    """

    request: int
    dimensions: int
    queue_seconds: float
    inference_seconds: float
    errors: list[tuple[WireError, list[int]]] | None
    num_labels: int = -1
    token_dimensions: int = -1
    has_sparse: bool = False
    num_part_sequences: int = 0


class Cancel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Nobody waits for this request any more."""

    model: int
    request: int


class Ping(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The number comes back in the pong."""

    number: int


class WorkerStats(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a worker is, once per ping.

    Attributes:
        resident_bytes: physical memory of the process; 0 where unknown.
        queued_tokens: tokens that wait for a batch, by model number.
        queued_sequences: sequences that wait for a batch, by model number.
        device: its memory, where it has its own.
    """

    resident_bytes: int
    queued_tokens: dict[int, int]
    queued_sequences: dict[int, int]
    device: DeviceMemory = DeviceMemory()


class Pong(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to a ping."""

    number: int
    stats: WorkerStats


class BatchReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A batch that ran, for metrics."""

    model: int
    stats: BatchStats


class HealthReport(msgspec.Struct, frozen=True, array_like=True):
    """An engine is lost: its device, or (`is_hung`) a batch that does not end."""

    model: int
    reason: str
    is_hung: bool


class Shutdown(msgspec.Struct, frozen=True, array_like=True):
    """Answer what is queued for at most so long, then exit."""

    drain_seconds: float


_encoder = msgspec.msgpack.Encoder()
_DECODERS: dict[int, msgspec.msgpack.Decoder[msgspec.Struct]] = {
    kind: msgspec.msgpack.Decoder(struct_type)
    for kind, struct_type in {
        Kind.HELLO: Hello,
        Kind.LOAD: Load,
        Kind.LOADED: Loaded,
        Kind.UNLOAD: Unload,
        Kind.UNLOADED: Unloaded,
        Kind.SUBMIT: Submit,
        Kind.RESULT: Result,
        Kind.CANCEL: Cancel,
        Kind.PING: Ping,
        Kind.PONG: Pong,
        Kind.BATCH: BatchReport,
        Kind.HEALTH: HealthReport,
        Kind.SHUTDOWN: Shutdown,
        Kind.WELCOME: Welcome,
    }.items()
}


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One received frame; `body` belongs to it alone."""

    kind: int
    meta: msgspec.Struct
    body: bytearray | memoryview


class FrameReader:
    """Cuts a stream of bytes into frames. Receive into `get_buffer()`, then call `received`.

    A frame larger than what is left of the buffer gets memory of its own and is received in place.

    Args:
        max_frame_bytes: a larger frame raises `FrameError` before memory is taken for it.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0  # of what has been received and not yet cut
        self._end = 0
        self._large: bytearray | None = None  # body and metadata of a frame that is received in place
        self._large_header = (0, 0, 0)
        self._large_end = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._large_end :]
        return self._view[self._end :]

    def received(self, num_bytes: int) -> list[Frame]:
        """Say how many bytes were put into `get_buffer()`; get the frames that are complete.

        Raises:
            FrameError: over the limit, or not a frame. The stream is useless from here on.
        """
        frames: list[Frame] = []
        if self._large is not None:
            self._large_end += num_bytes
            if self._large_end < len(self._large):
                return frames
            body_bytes, _, kind = self._large_header
            whole = memoryview(self._large)
            frames.append(_frame(kind, whole[body_bytes:], whole[:body_bytes]))
            self._large = None
            return frames
        self._end += num_bytes
        view, start, end = self._view, self._start, self._end
        while end - start >= HEADER.size:
            body_bytes, meta_bytes, kind = HEADER.unpack_from(view, start)
            size = body_bytes + meta_bytes
            if size > self._max_frame_bytes:
                raise FrameError(
                    f"a frame of {size} bytes exceeds the limit of {self._max_frame_bytes} bytes"
                )
            body_start = start + HEADER.size
            if end - body_start < size:
                if HEADER.size + size > len(view):
                    self._large = bytearray(size)
                    self._large_header = (body_bytes, meta_bytes, kind)
                    self._large_end = end - body_start
                    self._large[: self._large_end] = view[body_start:end]
                    start = end
                break
            meta_start = body_start + body_bytes
            start = meta_start + meta_bytes
            frames.append(_frame(kind, view[meta_start:start], bytearray(view[body_start:meta_start])))
        if start == end:
            start = end = 0
        elif start:
            # What is left is a piece of one frame; move it so that the rest fits behind it.
            self._buffer[: end - start] = self._buffer[start:end]
            start, end = 0, end - start
        self._start, self._end = start, end
        return frames


def _frame(kind: int, meta: memoryview, body: bytearray | memoryview) -> Frame:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise FrameError(f"no frame has kind {kind}")
    try:
        return Frame(kind, decoder.decode(meta), body)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise FrameError(f"the metadata of a {Kind(kind).name} frame is broken: {error}") from error


def encode(kind: Kind, meta: msgspec.Struct, body: Many[Buffer] = ()) -> list[Buffer]:
    """A frame as buffers to be written one after the other.

    Raises:
        FrameError: over `MAX_FRAME_BYTES`; the other side would refuse it.
    """
    packed = _encoder.encode(meta)
    body_bytes = sum(map(memoryview_bytes, body)) if body else 0
    if body_bytes + len(packed) > MAX_FRAME_BYTES:
        raise FrameError(
            f"a {kind.name} frame of {body_bytes + len(packed)} bytes exceeds the limit of "
            f"{MAX_FRAME_BYTES} bytes; send fewer inputs per request"
        )
    return [HEADER.pack(body_bytes, len(packed), kind), *body, packed]


def memoryview_bytes(buffer: Buffer) -> int:
    """Size of a buffer in bytes; ``len`` counts the items of a view."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def encode_submit(model: int, request_id: int, request: Request, now: float) -> list[Buffer]:
    """A request as a frame.

    Args:
        model: number of the model.
        request_id: the id on the wire; replaces `request.id`.
        request: its sequences hold int32 arrays, C-contiguous.
        now: the time on the clock of `request.deadline`.
    """
    sequences = request.sequences
    num_sequences = len(sequences)
    has_prompt_lens = has_token_types = False
    if num_sequences == 1:
        only = sequences[0]
        ids = only.input_ids.tobytes()
        lengths = struct.pack("<i", len(only.input_ids))
        has_prompt_lens, has_token_types = only.prompt_len != 0, only.token_type_ids is not None
        num_tokens = len(only.input_ids)
    else:
        counts = np.fromiter((len(s.input_ids) for s in sequences), np.int32, num_sequences)
        lengths = counts.tobytes()
        num_tokens = int(counts.sum())
        ids = b"".join([s.input_ids.data for s in sequences])
        has_prompt_lens = any(s.prompt_len for s in sequences)
        has_token_types = any(s.token_type_ids is not None for s in sequences)
    if len(ids) != 4 * num_tokens:
        raise FrameError(f"{num_tokens} token ids take {len(ids)} bytes: they are not int32")
    body: list[Buffer] = [lengths]
    if has_prompt_lens:
        body.append(np.array([s.prompt_len for s in sequences], np.int32).tobytes())
    body.append(ids)
    if has_token_types:
        body.append(
            b"".join(
                bytes(4 * len(s.input_ids)) if s.token_type_ids is None else s.token_type_ids.tobytes()
                for s in sequences
            )
        )
    features = None
    if any(s.features is not None for s in sequences):
        features = []
        for index, sequence in enumerate(sequences):
            if sequence.features is None:
                continue
            rows = np.ascontiguousarray(sequence.features, np.float32)
            body.append(rows.data.cast("B"))
            about = (sequence.modality, sequence.num_feature_tokens, rows.shape)
            features.append(FeatureColumn(index, *about))
    deadline = request.deadline
    meta = Submit(
        model,
        request_id,
        num_sequences,
        _outputs_to_bits(request.outputs),
        has_prompt_lens,
        has_token_types,
        None if deadline is None else deadline - now,
        features,
    )
    return encode(Kind.SUBMIT, meta, body)


def decode_submit(meta: Submit, body: Buffer, now: float) -> Request:
    """The request of a frame; its arrays are views of `body`.

    Args:
        meta: the frame's metadata.
        body: the frame's body.
        now: the time on the clock that the deadline shall be on.

    Raises:
        FrameError: the columns do not fit the body.
    """
    numbers = np.frombuffer(body, np.int32)
    columns = meta.features or []
    num_features = sum(math.prod(column.shape) for column in columns)
    if num_features > len(numbers):
        raise FrameError(
            f"request {meta.request}: {num_features} features in a body of {len(numbers)} numbers"
        )
    numbers, tail = numbers[: len(numbers) - num_features], numbers[len(numbers) - num_features :]
    num_sequences = meta.num_sequences
    lengths = numbers[:num_sequences].tolist()
    num_tokens = sum(lengths)
    start = num_sequences
    prompt_lens = None
    if meta.has_prompt_lens:
        prompt_lens = numbers[start : start + num_sequences].tolist()
        start += num_sequences
    token_types = numbers[start + num_tokens :] if meta.has_token_types else None
    if start + num_tokens + (0 if token_types is None else num_tokens) != len(numbers):
        raise FrameError(f"request {meta.request}: {num_tokens} tokens in a body of {len(numbers)} numbers")
    request_id = meta.request
    if num_sequences == 1 and prompt_lens is None and token_types is None and not columns:
        sequences: tuple[Sequence, ...] = (Sequence(request_id, 0, numbers[1:]),)
    else:
        built = []
        end = start
        for index, length in enumerate(lengths):
            begin, end = end, end + length
            types = None if token_types is None else token_types[begin - start : end - start]
            built.append(
                Sequence(
                    request_id,
                    index,
                    numbers[begin:end],
                    None if types is None or not types.any() else types,
                    0 if prompt_lens is None else prompt_lens[index],
                )
            )
        _attach(built, columns, tail.view(np.float32))
        sequences = tuple(built)
    timeout = meta.timeout_seconds
    return Request(
        request_id,
        sequences,
        _bits_to_outputs(meta.outputs),
        None if timeout is None else now + timeout,
    )


def _attach(sequences: list[Sequence], columns: Many[FeatureColumn], numbers: FloatArray) -> None:
    """Give sequences their features, which are views of the frame's body."""
    end = 0
    for column in columns:
        begin, end = end, end + math.prod(column.shape)
        sequences[column.index] = msgspec.structs.replace(
            sequences[column.index],
            features=numbers[begin:end].reshape(column.shape),
            modality=column.modality,
            num_feature_tokens=column.num_tokens,
        )


def encode_load(
    model: int, key: str, spec: ModelSpec, settings: RuntimeSettings, limits: EngineLimits
) -> list[Buffer]:
    """A model to load, as a frame."""
    bare = msgspec.structs.replace(spec, config={})
    return encode(Kind.LOAD, Load(model, key, bare, json.dumps(spec.config), settings, limits))


def decode_spec(load: Load) -> ModelSpec:
    """The spec of a load frame, complete with its config."""
    return msgspec.structs.replace(load.spec, config=json.loads(load.config))


def encode_error(error: BaseException) -> WireError:
    """An error as data. What is not a `ServingError` travels under its own class name."""
    if isinstance(error, ServingError):
        return WireError(
            type(error).__name__, error.message, error.param, error.index, error.retry_after_seconds
        )
    return WireError(type(error).__name__, str(error) or "no message")


def decode_error(wire: WireError) -> ServingError:
    """The error again; a class that `errors` does not define becomes `EngineError`."""
    known = _ERRORS.get(wire.name)
    if known is None:
        return EngineError(f"{wire.name}: {wire.message}", param=wire.param, index=wire.index)
    return known(
        wire.message, param=wire.param, index=wire.index, retry_after_seconds=wire.retry_after_seconds
    )


_ERRORS: dict[str, type[ServingError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, ServingError)
}

_OUTPUT_BITS = {output: 1 << position for position, output in enumerate(OutputType)}
_OUTPUT_SETS: dict[int, frozenset[OutputType]] = {}


def _outputs_to_bits(outputs: Iterable[OutputType]) -> int:
    return sum(_OUTPUT_BITS[output] for output in outputs)


def _bits_to_outputs(bits: int) -> frozenset[OutputType]:
    # One object per set: the scheduler compares them for every batch.
    outputs = _OUTPUT_SETS.get(bits)
    if outputs is None:
        outputs = frozenset(output for output, bit in _OUTPUT_BITS.items() if bits & bit)
        _OUTPUT_SETS[bits] = outputs
    return outputs
