"""What goes over the wire: one request's body, one answer's vectors, one error. No I/O.

Vectors travel as base64 of little-endian float32: a fifth of the time and less than half of the bytes
of JSON numbers.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert import errors
from hilbert.core import SparseVector
from hilbert.errors import ServingError, UnsupportedTask

FloatArray = npt.NDArray[np.float32]
Input = str | bytes | Path
DEFAULT_URL = "http://127.0.0.1:7997"
_SOUNDS = {".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".mp3": "mpeg"}


class _Indexed(msgspec.Struct):
    index: int


AnyRow = TypeVar("AnyRow", bound=_Indexed)


class _Row(_Indexed):
    embedding: str
    shape: tuple[int, int] | None = None


class _Answer(msgspec.Struct):
    data: list[_Row]
    model: str | None = None


class _SparseRow(_Indexed):
    embedding: dict[int, float]


class _SparseAnswer(msgspec.Struct):
    data: list[_SparseRow]


class _Problem(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Refusal(msgspec.Struct):
    error: _Problem | str | None = None
    detail: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was ranked: its place in the request, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A class and its score."""

    label: str
    score: float


class _Ranked(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: list[_Ranked]


class _Classes(msgspec.Struct):
    data: list[list[LabelScore]]


def v1_url(base_url: str) -> str:
    """Where the routes are; `base_url` may end in ``/v1``, as OpenAI's clients want it, or not."""
    base = base_url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    fixed = {"content-type": "application/json", "accept": "application/json"}
    return {**fixed, "authorization": f"Bearer {api_key}"} if api_key else fixed


def embed_body(
    inputs: Input | Sequence[Input],
    *,
    model: str | None,
    dimensions: int | None,
    prompt_name: str | None,
    prompt: str | None,
    input_type: str | None,
    truncate: bool,
    modality: str | None,
) -> bytes:
    """The JSON of one request for vectors; what is not asked for is not sent. Reads the files named."""
    given = [inputs] if isinstance(inputs, str | bytes | Path) else list(inputs)
    fields = {
        "input": [_written(item, modality) for item in given],
        "encoding_format": "base64",
        "model": model,
        "dimensions": dimensions,
        "prompt_name": prompt_name,
        "prompt": prompt,
        "input_type": input_type,
        "truncate": None if truncate else False,
        "modality": modality,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _written(item: Input, modality: str | None) -> str | dict[str, str]:
    if isinstance(item, str):
        return item
    data = item.read_bytes() if isinstance(item, Path) else item
    text = binascii.b2a_base64(data, newline=False).decode()
    if modality:
        return text
    sound = _SOUNDS.get(item.suffix.lower()) if isinstance(item, Path) else None
    return {"audio_url": f"data:audio/{sound};base64,{text}"} if sound else {"image": text}


def sparse_body(
    inputs: str | Sequence[str],
    *,
    model: str | None,
    prompt_name: str | None,
    prompt: str | None,
    input_type: str | None,
    truncate: bool,
) -> bytes:
    """The JSON of one request for sparse vectors."""
    fields = {
        "input": [inputs] if isinstance(inputs, str) else list(inputs),
        "model": model,
        "prompt_name": prompt_name,
        "prompt": prompt,
        "input_type": input_type,
        "truncate": None if truncate else False,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def rerank_body(
    query: str,
    documents: Sequence[str],
    *,
    model: str | None,
    top_n: int | None,
    raw_scores: bool,
    truncate: bool,
    prompt: str | None,
) -> bytes:
    """The JSON of one rerank request."""
    fields = {
        "query": query,
        "documents": list(documents),
        "model": model,
        "top_n": top_n,
        "raw_scores": raw_scores or None,
        "truncate": None if truncate else False,
        "prompt": prompt,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def classify_body(
    texts: str | Sequence[str], *, model: str | None, raw_scores: bool, truncate: bool
) -> bytes:
    """The JSON of one classify request."""
    fields = {
        "input": [texts] if isinstance(texts, str) else list(texts),
        "model": model,
        "raw_scores": raw_scores or None,
        "truncate": None if truncate else False,
    }
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def read_ranking(content: bytes) -> list[Hit]:
    """The documents, best first.

    Raises:
        ServingError: this is not the answer of a reranker.
    """
    try:
        results = msgspec.json.decode(content, type=_Ranking).results
    except msgspec.DecodeError as error:
        raise ServingError(f"The server's answer is not a ranking: {error}") from None
    return [Hit(result.index, result.relevance_score) for result in results]


def read_classes(content: bytes) -> list[list[LabelScore]]:
    """All classes of each text, best first.

    Raises:
        ServingError: this is not the answer of a classifier.
    """
    try:
        return msgspec.json.decode(content, type=_Classes).data
    except msgspec.DecodeError as error:
        raise ServingError(f"The server's answer is not a classification: {error}") from None


def read_vectors(content: bytes) -> FloatArray:
    """``[N, E]`` float32 in the order of the inputs.

    Raises:
        UnsupportedTask: the model has a vector for each token, which do not stack.
        ServingError: this is not the answer of an embedding server.
    """
    try:
        answer = msgspec.json.decode(content, type=_Answer)
        rows = _in_order(answer.data)
        if any(row.shape is not None for row in rows):
            raise UnsupportedTask(
                f"The model {answer.model or 'asked'} answers with a vector for each token, not with one for "
                "each input; call embed_multivector instead of embed.",
                param="model",
            )
        vectors = [np.frombuffer(binascii.a2b_base64(row.embedding), "<f4") for row in rows]
        table = np.empty((len(rows), len(vectors[0]) if vectors else 0), np.float32)
        for index, vector in enumerate(vectors):
            table[index] = vector
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise ServingError(f"The server's answer is not a list of vectors: {error}") from None
    return table


def read_token_vectors(content: bytes) -> list[FloatArray]:
    """``[n, E]`` float32 for each input, in their order.

    Raises:
        ServingError: this is not the answer of a server of token vectors.
    """
    try:
        rows = _in_order(msgspec.json.decode(content, type=_Answer).data)
        return [_folded(row) for row in rows]
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise ServingError(f"The server's answer is not a list of token vectors: {error}") from None


def _folded(row: _Row) -> FloatArray:
    if row.shape is None:
        raise ValueError("an item has no `shape`")
    flat = np.frombuffer(binascii.a2b_base64(row.embedding), "<f4")
    return flat.reshape(row.shape).astype(np.float32)


def read_sparse_vectors(content: bytes) -> list[SparseVector]:
    """The ids, ascending, and weights of each input, in their order.

    Raises:
        ServingError: this is not the answer of a server of sparse vectors.
    """
    try:
        rows = _in_order(msgspec.json.decode(content, type=_SparseAnswer).data)
        return [_sparse(row.embedding) for row in rows]
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise ServingError(f"The server's answer is not a list of sparse vectors: {error}") from None


def _sparse(weights: dict[int, float]) -> SparseVector:
    ids = sorted(weights)
    return SparseVector(np.array(ids, np.int32), np.array([weights[i] for i in ids], np.float32))


def _in_order(rows: list[AnyRow]) -> list[AnyRow]:
    ordered = sorted(rows, key=lambda row: row.index)
    if [row.index for row in ordered] != list(range(len(rows))):
        raise ValueError("the indexes are not 0 to N - 1")
    return ordered


def read_error(status: int, reason: str, content: bytes, retry_after: str | None) -> ServingError:
    """The exception that an answer with this status stands for.

    The class is the one that the server raised where it says so (`hilbert.errors`), else one that fits
    the status. `status` and `message` are the server's.
    """
    message, code, param = reason or f"status {status}", None, None
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except msgspec.DecodeError:
        refusal = _Refusal()
    if isinstance(refusal.error, _Problem):
        message = refusal.error.message or message
        code, param = refusal.error.code, refusal.error.param
    elif refusal.error:
        message = refusal.error
    elif bytes(refusal.detail):
        message = bytes(refusal.detail).decode().strip('"')
    kind = _class_for(status, code)
    error = kind(message, param=param, retry_after_seconds=_seconds(retry_after))
    error.status = status
    return error


def _class_for(status: int, code: str | int | None) -> type[ServingError]:
    kinds = _all_kinds(ServingError)
    named = [kind for kind in kinds if kind.code == code]
    if named:
        return named[0]
    by_status = {
        401: errors.Unauthorized,
        403: errors.Forbidden,
        404: errors.ModelNotFound,
        413: errors.PayloadTooLarge,
        429: errors.Overloaded,
        503: errors.CapacityError,
    }
    if status in by_status:
        return by_status[status]
    return errors.ClientError if 400 <= status < 500 else ServingError


def _all_kinds(kind: type[ServingError]) -> list[type[ServingError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _all_kinds(child))]


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # an HTTP date, as a proxy may send
        return None
