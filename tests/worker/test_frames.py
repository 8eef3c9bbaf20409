"""The wire format: what goes in comes out, in whatever pieces it arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_house import PATIENT, SERVING_ERRORS, one, read
from worker_house import spec

from hilbert import errors
from hilbert.core import NO_IDS, Modality, OutputType, Request, Sequence
from hilbert.engine import EngineLimits
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings
from hilbert.worker import frames
from hilbert.worker.connection import Connection
from hilbert.worker.frames import (
    HEADER,
    FrameError,
    FrameReader,
    Kind,
    Loaded,
    Ping,
    Pong,
    Result,
    Submit,
    WorkerStats,
)

int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def requests(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    sequences = []
    for index, length in enumerate(lengths):
        ids = np.array(draw(st.lists(int32, min_size=length, max_size=length)), np.int32)
        types = draw(st.none() | st.lists(st.integers(0, 1), min_size=length, max_size=length))
        types = None if types is None else np.array(types, np.int32)
        if draw(st.integers(0, 3)) == 0:
            features = np.arange(length * 6, dtype=np.float32).reshape(2, length, 3)
            modality = draw(st.sampled_from([Modality.IMAGE, Modality.AUDIO]))
            sequence = Sequence(5, index, NO_IDS, features=features, modality=modality)
            sequences.append(msgspec.structs.replace(sequence, num_feature_tokens=draw(st.integers(1, 9))))
            continue
        sequences.append(Sequence(5, index, ids, types, draw(st.integers(0, 3))))
    outputs = draw(st.sets(st.sampled_from(list(OutputType)), min_size=1))
    deadline = draw(st.none() | st.floats(-10, 1e6))
    return Request(5, tuple(sequences), frozenset(outputs), deadline)


def same_array(left, right):
    return left is right is None or (left.dtype == right.dtype and np.array_equal(left, right))


@PATIENT
@given(requests(), st.lists(st.integers(1, 50), max_size=4))
def test_requests(request, cuts):
    frame = one(frames.encode_submit(3, 77, request, 100.0), cuts)
    assert (frame.kind, frame.meta.model) == (Kind.SUBMIT, 3)
    back = frames.decode_submit(frame.meta, frame.body, 500.0)
    assert back.id == 77
    assert back.outputs == request.outputs
    if request.deadline is None:
        assert back.deadline is None
    else:  # the seconds that are left, on another clock
        assert back.deadline - 500.0 == pytest.approx(request.deadline - 100.0, abs=1e-6)
    assert len(back.sequences) == len(request.sequences)
    for got, sent in zip(back.sequences, request.sequences, strict=True):
        assert (got.request_id, got.index, got.prompt_len) == (77, sent.index, sent.prompt_len)
        assert same_array(got.input_ids, sent.input_ids)
        # All zero means the same as none.
        types = sent.token_type_ids
        assert same_array(got.token_type_ids, None if types is None or not types.any() else types)
        assert same_array(got.features, sent.features)
        assert (got.modality, got.num_tokens) == (sent.modality, sent.num_tokens)


def test_features_that_are_not_all_there_are_refused():
    sequence = Sequence(5, 0, NO_IDS, features=np.ones((1, 2, 2), np.float32), num_feature_tokens=3)
    frame = one(frames.encode_submit(3, 77, Request(5, (sequence,)), 0.0), [])
    with pytest.raises(FrameError, match="4 features"):
        frames.decode_submit(frame.meta, frame.body[:8], 0.0)


@pytest.mark.parametrize("kind", SERVING_ERRORS)
def test_every_error_keeps_its_class(kind):
    back = frames.decode_error(frames.encode_error(kind("why")))
    assert type(back) is kind and back.message == "why"


@pytest.mark.parametrize(
    "error", [ValueError("broken"), KeyError(), MemoryError(), type("Strange", (Exception,), {})("x")]
)
def test_unknown_errors_become_engine_errors(error):
    back = frames.decode_error(frames.encode_error(error))
    assert type(back) is errors.EngineError
    assert type(error).__name__ in back.message


def test_nothing_but_our_errors_can_be_built():
    back = frames.decode_error(frames.WireError("annotations", "x"))
    assert type(back) is errors.EngineError
    back = frames.decode_error(frames.WireError("SystemExit", "x"))
    assert type(back) is errors.EngineError


def test_load():
    config = {"big": 10**30, "inf": float("inf"), "nested": {"list": [1, None, "ü"]}, "float": 0.1}
    sent = spec(**config)
    settings = RuntimeSettings(dtype="float32", threads=2)
    limits = EngineLimits(4096, None, 30.0)
    frame = one(frames.encode_load(2, "name", sent, settings, limits), [100])
    meta = frame.meta
    assert (meta.model, meta.key, meta.settings, meta.limits) == (2, "name", settings, limits)
    assert frames.decode_spec(meta) == sent


def test_loaded():
    info = RuntimeInfo(
        "openvino", "cpu", "bfloat16", "packed", "why", 384, frozenset({OutputType.DENSE}), 2048
    )
    meta = one(frames.encode(Kind.LOADED, Loaded(1, info))).meta
    assert meta.info == info and meta.error is None


@PATIENT
@given(
    st.lists(st.integers(0, 300_000), min_size=1, max_size=6),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=8),
)
def test_any_frames_in_any_pieces(sizes, cuts):
    """Also frames that are larger than the receive buffer, between small ones."""
    data = b""
    bodies = []
    for number, size in enumerate(sizes):
        body = np.random.default_rng(number).bytes(size)
        bodies.append(body)
        data += b"".join(frames.encode(Kind.RESULT, Result(number, -1, 0.0, 0.0, None), [body]))
        data += b"".join(frames.encode(Kind.PING, Ping(number)))
    received = read(data, cuts)
    assert [f.kind for f in received] == [Kind.RESULT, Kind.PING] * len(sizes)
    assert [bytes(f.body) for f in received[::2]] == bodies
    assert [f.meta.number for f in received[1::2]] == list(range(len(sizes)))


def test_frames_do_not_share_memory():
    data = b"".join(frames.encode(Kind.RESULT, Result(1, -1, 0.0, 0.0, None), [b"abcd"]))
    reader = FrameReader()
    (first,) = read(data, reader=reader)
    read(data.replace(b"abcd", b"wxyz"), reader=reader)
    assert bytes(first.body) == b"abcd"


class TestBroken:
    def test_too_large_is_refused_before_memory_is_taken(self):
        with pytest.raises(FrameError, match="exceeds the limit"):
            read(HEADER.pack(2**32 - 1, 0, Kind.RESULT))

    def test_too_large_is_not_sent(self):
        class Huge(bytes):
            def __len__(self):
                return frames.MAX_FRAME_BYTES

        with pytest.raises(FrameError, match="fewer inputs"):
            frames.encode(Kind.SUBMIT, Submit(1, 1, 1, 1, False, False, None), [Huge()])

    def test_unknown_kind(self):
        with pytest.raises(FrameError, match="kind 200"):
            read(HEADER.pack(0, 0, 200))

    @pytest.mark.parametrize("meta", [b"", b"\xc1", msgspec.msgpack.encode(["x"]), b"\x01\x02"])
    def test_broken_metadata(self, meta):
        with pytest.raises(FrameError, match="PONG"):
            read(HEADER.pack(0, len(meta), Kind.PONG) + meta)

    def test_columns_that_do_not_fit(self):
        meta = Submit(1, 1, 1, 1, False, False, None)
        with pytest.raises(FrameError, match="tokens"):
            frames.decode_submit(meta, np.array([5, 1, 2], np.int32).tobytes(), 0.0)

    def test_ids_of_the_wrong_type(self):
        request = Request(1, (Sequence(1, 0, np.array([1, 2])),))  # int64
        with pytest.raises(FrameError, match="int32"):
            frames.encode_submit(1, 1, request, 0.0)

    @PATIENT
    @given(st.binary(max_size=200))
    def test_noise_is_never_more_than_a_frame_error(self, noise):
        with contextlib.suppress(FrameError):
            read(noise, [13])


def test_no_pickle():
    """What is decoded is data of declared types; nothing names code to run."""
    assert "pickle" not in vars(frames)
    pong = one(frames.encode(Kind.PONG, Pong(1, WorkerStats(5, {1: 2}, {1: 1})))).meta
    assert json.dumps(msgspec.to_builtins(pong))


@pytest.mark.anyio
async def test_small_buffers_leave_together_and_large_ones_uncopied() -> None:
    written: list[object] = []
    transport = SimpleNamespace(write=written.append, is_closing=lambda: False)
    connection = Connection(lambda frame: None, lambda error: None)
    connection.connection_made(transport)  # type: ignore[arg-type]  # what is used of it
    large = memoryview(bytes(100_000))
    for frame in ([b"a", b"b"], [b"c", large, b"d"], [b"e"]):
        connection.write(frame)
    assert written == []
    await asyncio.sleep(0)
    assert written == [b"abc", large, b"de"] and written[1] is large
