"""Vectors to bytes, in the encodings that clients ask for.

Rows are C-contiguous numpy arrays, so orjson writes them as they are (float32 in its shortest exact
decimal form: 40 % fewer bytes than through Python floats), and base64 is one copy.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Literal

import numpy as np
import orjson

from hilbert.core import OutputDtype, SparseVector, quantize
from hilbert.core.quantize import NumberArray
from hilbert.core.request import FloatArray

Encoding = Literal["float", "base64", "bytes"]
ENCODINGS: tuple[Encoding, ...] = ("float", "base64", "bytes")


def numbers(
    rows: FloatArray, asked: OutputDtype | None, default: OutputDtype, encoding: Encoding
) -> NumberArray:
    """Rows in the type that they are returned in.

    Args:
        rows: ``[N, E]`` float32.
        asked: the type that the request names.
        default: the model's own, where it names none.
        encoding: base64 of a type that nobody asked for carries the same numbers as float32, which is what
            its reader expects (Infinity does so, too).
    """
    values = quantize(rows, asked or default)
    return values.astype("<f4") if asked is None and encoding == "base64" else values


def dense_items(rows: NumberArray, encoding: Encoding) -> bytes:
    """A JSON list ``[{object, index, embedding}, …]``.

    Args:
        rows: ``[N, E]``, C-contiguous, finite.
        encoding: ``"float"`` for numbers, ``"base64"`` for their little-endian bytes.
    """
    if encoding == "base64":
        # Base64 needs no escaping, so the JSON is put together by hand: half the cost for one vector.
        items = b",".join(
            b'{"object":"embedding","index":%d,"embedding":"%s"}' % (i, _base64(row))
            for i, row in enumerate(rows)
        )
        return b"[%s]" % items
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


def token_items(texts: Sequence[NumberArray], encoding: Encoding) -> bytes:
    """A JSON list ``[{object, index, embedding, shape}, …]``: a list of vectors for each text.

    Args:
        texts: N arrays ``[n, E]``, C-contiguous.
        encoding: as for `dense_items`; `shape` says how to fold the bytes.
    """
    if encoding == "base64":
        items = b",".join(
            b'{"object":"embedding","index":%d,"embedding":"%s","shape":[%d,%d]}'
            % (i, _base64(rows), *rows.shape)
            for i, rows in enumerate(texts)
        )
        return b"[%s]" % items
    data = [
        {"object": "embedding", "index": i, "embedding": rows, "shape": rows.shape}
        for i, rows in enumerate(texts)
    ]
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


def vector_lists(texts: Sequence[NumberArray], encoding: Encoding) -> bytes:
    """A JSON list ``[{object, index, embeddings: [vector, …]}, …]``, as Jina writes token vectors.

    Args:
        texts: N arrays ``[n, E]``, C-contiguous.
        encoding: with ``"base64"`` each vector is a text of its own.
    """
    data = [
        {
            "object": "embeddings",
            "index": i,
            "embeddings": base64_rows(rows) if encoding == "base64" else rows,
        }
        for i, rows in enumerate(texts)
    ]
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


def sparse_items(vectors: Sequence[SparseVector]) -> bytes:
    """A JSON list ``[{object, index, embedding: {"<token id>": weight, …}}, …]``, ids ascending."""
    items = b",".join(
        b'{"object":"sparse_embedding","index":%d,"embedding":{%s}}' % (i, _members(vector))
        for i, vector in enumerate(vectors)
    )
    return b"[%s]" % items


def _members(vector: SparseVector) -> bytes:
    """``"<id>":weight,…``: orjson writes all numbers at once, which are then paired."""
    ids = orjson.dumps(np.ascontiguousarray(vector.token_ids), option=orjson.OPT_SERIALIZE_NUMPY)
    weights = orjson.dumps(np.ascontiguousarray(vector.weights), option=orjson.OPT_SERIALIZE_NUMPY)
    if not len(vector.token_ids):
        return b""
    return b",".join(
        map(b'"%s":%s'.__mod__, zip(ids[1:-1].split(b","), weights[1:-1].split(b","), strict=True))
    )


def base64_rows(rows: NumberArray) -> list[str]:
    """Each row's little-endian bytes in base64."""
    return [_base64(row).decode() for row in rows]


def _base64(row: NumberArray) -> bytes:
    little = row.astype(row.dtype.newbyteorder("<"), copy=False)
    return binascii.b2a_base64(np.ascontiguousarray(little).tobytes(), newline=False)
