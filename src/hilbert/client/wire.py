"""What comes over the wire: one answer's vectors, scores or classes; one error. No I/O."""

from __future__ import annotations

import binascii
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert import errors
from hilbert.core import SparseVector
from hilbert.errors import ServingError, UnsupportedTask

FloatArray = npt.NDArray[np.float32]
DEFAULT_URL = "http://127.0.0.1:7997"
# What a proxy says when the server behind it is away.
_OF_PROXIES = (502, 504)


class _Indexed(msgspec.Struct):
    index: int


AnyRow = TypeVar("AnyRow", bound=_Indexed)


class _Row(_Indexed):
    embedding: str
    shape: tuple[int, int] | None = None


class _Answer(msgspec.Struct):
    data: list[_Row]
    model: str | None = None


class _Array(msgspec.Struct):
    values: dict[bytes, Any]


class _SparseArrays(msgspec.Struct):
    indices: dict[bytes, Any]
    values: dict[bytes, Any]


class _Item(msgspec.Struct):
    dense: _Array | None = None
    sparse: _SparseArrays | None = None
    multivector: _Array | None = None


class _Items(msgspec.Struct):
    model: str
    items: list[_Item]


class _Problem(msgspec.Struct):
    message: str | None = None
    code: str | int | None = None
    param: str | None = None
    reason: str | None = None


class _Refusal(msgspec.Struct):
    error: _Problem | str | None = None
    detail: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of every kind that was asked for, in the order of the inputs; None for the others.

    Attributes:
        model: which one made them.
        dense: ``[N, E]`` float32.
        sparse: the weights of each input over the vocabulary.
        multivector: ``[n, E]`` float32 for each input: a vector for each token.
    """

    model: str
    dense: FloatArray | None = None
    sparse: list[SparseVector] | None = None
    multivector: list[FloatArray] | None = None


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


def _in_order(rows: list[AnyRow]) -> list[AnyRow]:
    ordered = sorted(rows, key=lambda row: row.index)
    if [row.index for row in ordered] != list(range(len(rows))):
        raise ValueError("the indexes are not 0 to N - 1")
    return ordered


def read_encoded(content: bytes) -> Encoded:
    """Vectors of one or several kinds.

    Raises:
        ServingError: this is not the answer of a server that encodes, or one of its items lacks a vector.
    """
    try:
        answer = msgspec.msgpack.decode(content, type=_Items)
        dense = [_array(item.dense.values) for item in answer.items if item.dense]
        sparse = [_sparse(item.sparse) for item in answer.items if item.sparse]
        tokens = [_array(item.multivector.values) for item in answer.items if item.multivector]
        if any(len(found) not in (0, len(answer.items)) for found in (dense, sparse, tokens)):
            raise ValueError("not every item has what the others have")
        return Encoded(answer.model, np.stack(dense) if dense else None, sparse or None, tokens or None)
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise ServingError(f"The server's answer is not a list of encoded items: {error}") from None


def _array(value: dict[bytes, Any], dtype: type[np.generic] = np.float32) -> Any:
    # Source: the format of msgpack-numpy 0.4.8.
    return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"]).astype(dtype)


def _sparse(arrays: _SparseArrays) -> SparseVector:
    ids, weights = _array(arrays.indices, np.int32), _array(arrays.values)
    if ids.shape != weights.shape:
        raise ValueError(f"{len(ids)} indices and {len(weights)} values")
    return SparseVector(ids, weights)


def sparse_of(answer: Encoded) -> list[SparseVector]:
    """The sparse vectors.

    Raises:
        ServingError: there are none.
    """
    if answer.sparse is None:
        raise ServingError("The server's answer has no sparse vectors, which were asked for.")
    return answer.sparse


def multivector_of(answer: Encoded) -> list[FloatArray]:
    """The token vectors.

    Raises:
        ServingError: there are none.
    """
    if answer.multivector is None:
        raise ServingError("The server's answer has no token vectors, which were asked for.")
    return answer.multivector


def read_error(status: int, reason: str, content: bytes, headers: Mapping[str, str]) -> ServingError:
    """The exception that an answer with this status stands for.

    The class is the one that the server raised where it says so (`hilbert.errors`), else one that fits
    the status. `status` and `message` are the server's; `retryable` says whether it, or a proxy before it,
    was away for a moment.
    """
    message, code, param = reason or f"status {status}", None, None
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except msgspec.DecodeError:
        refusal = _Refusal()
    problem = refusal.error or _detail(refusal.detail)
    if isinstance(problem, _Problem):
        message = problem.message or message
        code, param = problem.reason or problem.code, problem.param
    elif problem:
        message = problem
    kind = _class_for(status, code)
    error = kind(message, param=param, retry_after_seconds=_retry_after(headers))
    error.status = status
    error.retryable = headers.get("x-should-retry") != "false" and (
        kind.retryable or (status in _OF_PROXIES and not problem)
    )
    return error


def _detail(raw: msgspec.Raw) -> _Problem | str | None:
    """What stands in `detail`: an object with code and message, a text, or a list of complaints."""
    try:
        return msgspec.json.decode(raw, type=_Problem)
    except msgspec.DecodeError:
        return bytes(raw).decode().strip('"') or None


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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until another try is worth it: ``retry-after-ms``, else ``retry-after`` as number or date."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        return float(headers["retry-after"]) if "retry-after" in headers else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
