"""Vectors in fewer bytes: what `output_dtype` means. Pure numpy.

It comes last, after `dimensions` and normalisation. The whole numbers are scaled row by row, so that no
sample of the collection is needed: cosines between int8 rows are those of the float rows to about 0.001.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from hilbert.core.request import FloatArray

NumberArray = npt.NDArray[Any]


class OutputDtype(StrEnum):
    """The types that vectors can be returned in.

    ``int8`` is symmetric: 127 stands for the row's largest absolute value. ``uint8`` is the same plus
    128. ``ubinary`` holds one bit per dimension, set where the number is positive, the first dimension
    in the highest bit; ``binary`` is the same bytes less 128, as int8.
    """

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"

    @property
    def is_packed(self) -> bool:
        """Whether eight dimensions share a byte."""
        return self in (OutputDtype.BINARY, OutputDtype.UBINARY)


def quantize(rows: FloatArray, dtype: OutputDtype) -> NumberArray:
    """Rows in another type.

    Args:
        rows: ``[N, E]`` float32, finite.
        dtype: the type wanted.
    Returns:
        ``[N, E]`` of that type, C-contiguous; ``[N, ceil(E / 8)]`` where bits are packed. A zero row stays
        zero (128 for uint8).
    Source: the packed types are those of sentence-transformers' `quantize_embeddings`.
    """
    if dtype is OutputDtype.FLOAT32:
        return np.ascontiguousarray(rows)
    if dtype is OutputDtype.FLOAT16:
        return np.ascontiguousarray(rows, dtype=np.float16)
    if dtype.is_packed:
        bits = np.packbits(rows > 0, axis=-1)
        return bits if dtype is OutputDtype.UBINARY else (bits ^ np.uint8(128)).view(np.int8)
    largest = np.abs(rows).max(axis=-1, keepdims=True, initial=0)
    # Dividing first keeps a row of denormal numbers finite; the clip catches rounding at the very edge.
    scaled = np.rint(rows / np.where(largest > 0, largest, 1) * np.float32(127))
    levels = np.clip(scaled, -127, 127).astype(np.int8)
    return levels if dtype is OutputDtype.INT8 else levels.view(np.uint8) ^ np.uint8(128)
