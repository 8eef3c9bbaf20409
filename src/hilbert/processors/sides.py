"""Queries and documents of late-interaction models: their lengths, the filling, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert.core import EmbedRequest, ModelSpec, MultivectorSpec, Sequence, TextTower
from hilbert.core.request import IntArray


def is_query(request: EmbedRequest) -> bool:
    """Whether the inputs are queries. Late interaction takes everything else for documents."""
    if request.input_type is None:
        return request.prompt_name == "query"
    return request.input_type == "query"


def longest_side(spec: ModelSpec) -> int | None:
    """Tokens that any input of this model may have; None for any number.

    A side's own length wins over the model's, in both directions, as in sentence-transformers.
    """
    if spec.multivector is None or spec.max_model_len is None:
        return spec.max_model_len
    sides = spec.multivector
    return max(spec.max_model_len, sides.query_len, sides.document_len)


def side_limit(spec: ModelSpec, sides: MultivectorSpec, request: EmbedRequest) -> int | None:
    """Tokens that an input of this request may have; None for any number."""
    return (sides.query_len if is_query(request) else sides.document_len) or spec.max_model_len


def fill(ids: IntArray, sides: MultivectorSpec) -> IntArray:
    """A query of at least `expansion_len` tokens: the missing ones are expansion tokens.

    Without expansion, as it is.
    """
    if sides.expansion_id is None:
        return ids
    missing = sides.expansion_len - len(ids)
    if missing <= 0:
        return ids
    return np.concatenate([ids, np.full(missing, sides.expansion_id, dtype=np.int32)])


def kept_rows(ids: IntArray, skip_ids: AbstractSequence[int]) -> npt.NDArray[np.bool_]:
    """``[n]``: which token vectors of a document count."""
    return ~np.isin(ids, skip_ids)


def shaped(sequence: Sequence, tower: TextTower) -> Sequence:
    """A dual model's tokens as its text side wants them: cut behind the end, or padded to one length."""
    ids = sequence.input_ids
    if tower.end_id is not None and len(ids):
        is_end = ids == (ids.max() if tower.end_id < 0 else tower.end_id)
        # Without an end transformers looks at the first token.
        ids = ids[: int(is_end.argmax()) + 1]
    missing = tower.length - len(ids)
    if missing > 0:
        filling = np.full(missing, tower.padding_id, dtype=np.int32)
        ids = np.concatenate([filling, ids] if tower.pads_left else [ids, filling])
    return (
        sequence
        if ids is sequence.input_ids
        else msgspec.structs.replace(sequence, input_ids=ids, token_type_ids=None)
    )
