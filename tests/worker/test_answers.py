"""Answers as frames: every output comes back bit by bit, whole or in parts."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from wire_house import PATIENT, one, read, serving_errors

from hilbert import errors
from hilbert.core import Output, SparseVector
from hilbert.worker import frames
from hilbert.worker.answers import PART_BYTES, Parts, decode_result, encode_result
from hilbert.worker.frames import FrameError, Result

float32 = st.floats(width=32)  # NaN, infinities and -0.0 included
int32 = st.integers(-(2**31), 2**31 - 1)


def tables(rows, columns):
    return npst.arrays(np.float32, st.tuples(rows, columns), elements=float32)


@st.composite
def sparse_vectors(draw):
    num = draw(st.integers(0, 5))
    ids = draw(st.lists(int32, min_size=num, max_size=num))
    return SparseVector(np.array(ids, np.int32), draw(npst.arrays(np.float32, num, elements=float32)))


@st.composite
def answers(draw, min_sequences=0):
    num = draw(st.integers(min_sequences, 6))
    width = draw(st.integers(1, 5))
    rows = st.just(num)
    failures = draw(st.dictionaries(st.integers(0, num - 1), serving_errors(), max_size=3)) if num else {}
    return num, Output(
        9,
        draw(st.none() | tables(rows, st.integers(0, 9))),
        draw(st.none() | tables(rows, st.integers(1, 4))),
        draw(st.none() | st.tuples(*[tables(st.integers(0, 7), st.just(width))] * num)),
        draw(st.none() | st.tuples(*[sparse_vectors()] * num)),
        failures,
        0.25,
        0.5,
    )


def check_array(got, sent):
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert got.tobytes() == sent.tobytes()
    assert got.flags.aligned and got.flags.c_contiguous


def check_same(got: Output, sent: Output):
    for name in ("dense", "logits"):
        left, right = getattr(got, name), getattr(sent, name)
        if right is None:
            assert left is None
        else:
            check_array(left, right)
            assert left.flags.writeable
    for name in ("multivector", "sparse"):
        left, right = getattr(got, name), getattr(sent, name)
        if right is None:
            assert left is None
            continue
        assert isinstance(left, tuple) and len(left) == len(right)
        for g, s in zip(left, right, strict=True):
            if name == "multivector":
                check_array(g, s)
            else:
                check_array(g.token_ids, s.token_ids)
                check_array(g.weights, s.weights)
    assert (got.queue_seconds, got.inference_seconds) == (sent.queue_seconds, sent.inference_seconds)
    assert got.errors.keys() == sent.errors.keys()
    for index, error in sent.errors.items():
        back = got.errors[index]
        assert type(back) is type(error)
        assert (back.message, back.param, back.index, back.retry_after_seconds) == (
            error.message,
            error.param,
            error.index,
            error.retry_after_seconds,
        )


def through_parts(frames_of_answer, num_sequences, cuts=()):
    """What the front does with the frames of one answer."""
    parts = Parts(4)
    *earlier, last = read(b"".join(b"".join(frame) for frame in frames_of_answer), cuts)
    for frame in earlier:
        assert frame.meta.num_part_sequences > 0 and frame.meta.errors is None
        parts.add(frame.meta, frame.body)
    assert last.meta.num_part_sequences == 0
    return parts.finish(last.meta, last.body, num_sequences)


@PATIENT
@given(answers())
def test_in_one_frame(answer):
    num, sent = answer
    (frame,) = encode_result(sent)
    frame = one(frame, [7])
    got = decode_result(frame.meta, frame.body, 4, num)
    assert got.request_id == 4
    check_same(got, sent)


@PATIENT
@given(answers(min_sequences=1), st.integers(0, 200), st.lists(st.integers(1, 300), min_size=1, max_size=4))
def test_in_parts(answer, part_bytes, cuts):
    num, sent = answer
    check_same(through_parts(encode_result(sent, part_bytes), num, cuts), sent)


def test_parts_keep_their_size():
    rows = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    encoded = encode_result(Output(1, rows), part_bytes=4000)
    assert len(encoded) == 10
    check_same(through_parts(encoded, 100), Output(1, rows))


def test_2048_sequences_of_100_token_vectors():
    """105 MB: nothing is copied to cut it, and no frame is near the limit."""
    flat = np.random.default_rng(0).standard_normal((2048 * 100, 128), np.float32)
    sent = Output(1, multivector=tuple(flat[i : i + 100] for i in range(0, len(flat), 100)))
    encoded = encode_result(sent)
    sizes = [sum(map(frames.memoryview_bytes, frame)) for frame in encoded]
    assert len(sizes) == 4 and max(sizes) < PART_BYTES + 10_000
    views = [np.frombuffer(b, np.uint8) for frame in encoded for b in frame if isinstance(b, memoryview)]
    assert all(np.shares_memory(view, flat) for view in views[:: len(views) // 50])
    check_same(through_parts(encoded, 2048, [1 << 20]), sent)


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 50])
def test_one_sequence_that_no_frame_can_hold_is_an_error(monkeypatch, part_bytes):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1000)
    sent = Output(1, multivector=tuple(np.ones((n, 4), np.float32) for n in (1, 200, 3)))
    (frame,) = encode_result(sent, part_bytes)
    frame = one(frame)
    back = decode_result(frame.meta, frame.body, 1, 3)
    assert back.multivector is None and sorted(back.errors) == [0, 1, 2]
    assert all(isinstance(e, errors.InputTooLong) and e.index == 1 for e in back.errors.values())
    assert "3200 bytes" in back.errors[0].message


def test_rows_of_any_layout_arrive():
    rows = np.arange(24, dtype=np.float64).reshape(4, 6)[::2, ::3]
    sent = Output(
        1,
        rows,
        rows.T[:2],
        (rows.T, rows[:, :2]),
        (SparseVector(np.arange(6)[::3], rows[0]), SparseVector(np.arange(2), rows[:, 1])),
    )
    (frame,) = encode_result(sent)
    frame = one(frame)
    got = decode_result(frame.meta, frame.body, 1, 2)
    np.testing.assert_array_equal(got.dense, rows)
    np.testing.assert_array_equal(got.logits, rows.T[:2])
    np.testing.assert_array_equal(got.multivector[0], rows.T)
    assert got.sparse[0].token_ids.tolist() == [0, 3]
    np.testing.assert_array_equal(got.sparse[1].weights, rows[:, 1])


def test_one_error_for_a_whole_request_travels_once():
    error = errors.Overloaded("the queue is full " * 20)
    (frame,) = encode_result(Output(1, errors=dict.fromkeys(range(2048), error)))
    assert sum(map(len, frame)) < 8000
    back = decode_result(one(frame).meta, bytearray(), 1, 2048).errors
    assert len(back) == 2048 and len(set(map(id, back.values()))) == 1


class TestBroken:
    @pytest.mark.parametrize(
        ("meta", "body"),
        [
            (Result(1, 8, 0.0, 0.0, None), bytes(28)),
            (Result(1, 8, 0.0, 0.0, None), bytes(31)),
            (Result(1, 8, 0.0, 0.0, None), bytes(36)),
            (Result(1, -1, 0.0, 0.0, None, 3), bytes(8)),
            (Result(1, -1, 0.0, 0.0, None, -1, 2), np.array([2, 0, 0], np.int32).tobytes()),
            (Result(1, -1, 0.0, 0.0, None, -1, 2), np.array([-1], np.int32).tobytes()),
            (Result(1, -1, 0.0, 0.0, None, -1, -1, True), np.array([1, 7], np.int32).tobytes()),
            (Result(1, -1, 0.0, 0.0, None, -1, -1, True), np.array([-2, 7], np.int32).tobytes()),
            (Result(1, -1, 0.0, 0.0, None, -1, -1, True), b""),
        ],
    )
    def test_columns_that_do_not_fit(self, meta, body):
        with pytest.raises(FrameError, match="request 1"):
            decode_result(meta, bytearray(body), 1, 1)

    def test_parts_of_more_sequences_than_were_asked(self):
        with pytest.raises(FrameError, match="too many"):
            through_parts(encode_result(Output(1, np.ones((5, 8), np.float32)), part_bytes=64), 2)

    @PATIENT
    @given(
        st.builds(
            Result,
            st.just(1),
            st.integers(-1, 9),
            st.just(0.0),
            st.just(0.0),
            st.none(),
            st.integers(-1, 3),
            st.integers(-1, 3),
            st.booleans(),
        ),
        npst.arrays(np.int32, st.integers(0, 12), elements=st.integers(-2, 3) | int32),
        st.integers(0, 3),
    )
    def test_noise_is_a_frame_error_or_an_answer(self, meta, numbers, num_sequences):
        with contextlib.suppress(FrameError):
            decode_result(meta, bytearray(numbers.tobytes()), 1, num_sequences)
