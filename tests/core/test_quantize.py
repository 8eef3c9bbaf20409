"""Each type against its plain formula, one number at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hilbert.core import OutputDtype, quantize

NUMBERS = st.floats(-4, 4, width=32)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 19)), elements=NUMBERS)


@given(ROWS)
def test_int8_and_uint8(rows):
    small, shifted = quantize(rows, OutputDtype.INT8), quantize(rows, OutputDtype.UINT8)
    assert small.dtype == np.int8 and shifted.dtype == np.uint8 and small.shape == rows.shape
    for i, row in enumerate(rows):
        # Float32 may round the other way where a number lies half-way between two levels.
        for j, value in enumerate(row):
            exact = float(value) / (float(np.abs(row).max()) or 1) * 127
            assert abs(int(small[i, j]) - exact) <= 0.5001
        if np.abs(row).max() > 0:
            assert np.abs(small[i].astype(int)).max() == 127
    assert np.array_equal(shifted.astype(int), small.astype(int) + 128)


@given(ROWS)
def test_bits_are_signs_and_those_of_sentence_transformers(rows):
    packed, signed = quantize(rows, OutputDtype.UBINARY), quantize(rows, OutputDtype.BINARY)
    assert packed.dtype == np.uint8 and signed.dtype == np.int8
    for row, bits in zip(rows, packed, strict=True):
        text = "".join("1" if value > 0 else "0" for value in row)
        text += "0" * (-len(text) % 8)
        assert [int(text[k : k + 8], 2) for k in range(0, len(text), 8)] == bits.tolist()
    assert np.array_equal(signed.astype(int), packed.astype(int) - 128)


@pytest.mark.parametrize("dtype", [OutputDtype.BINARY, OutputDtype.UBINARY])
def test_the_reference_packs_likewise(dtype):
    from sentence_transformers.util.quantization import quantize_embeddings

    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    assert np.array_equal(quantize(rows, dtype), quantize_embeddings(rows, precision=dtype.value))


def test_floats():
    rows = np.array([[0.1, -2, 1e-3]], dtype=np.float32)
    assert quantize(rows, OutputDtype.FLOAT32) is rows
    half = quantize(rows, OutputDtype.FLOAT16)
    assert half.dtype == np.float16 and np.array_equal(half, rows.astype(np.float16))


def test_odd_rows():
    zero = np.zeros((2, 3), np.float32)
    assert not quantize(zero, OutputDtype.INT8).any()
    assert quantize(zero, OutputDtype.UINT8).tolist() == [[128] * 3] * 2
    tiny = np.array([[1e-45, -1e-45, 0]], np.float32)
    assert quantize(tiny, OutputDtype.INT8).tolist() == [[127, -127, 0]]
    assert quantize(np.empty((0, 16), np.float32), OutputDtype.UBINARY).shape == (0, 2)
    assert quantize(np.empty((0, 16), np.float32), OutputDtype.INT8).shape == (0, 16)


def test_int8_keeps_the_cosine():
    rows = np.random.default_rng(1).standard_normal((200, 384)).astype(np.float32)
    small = quantize(rows, OutputDtype.INT8).astype(np.float32)
    cosine = (rows * small).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(small, axis=1)
    assert cosine.min() > 0.9998
