"""A batch of a dual model, taken apart: texts for the packed program, images and sounds for their towers.

What a tower reads has one size, so its inputs are stacked and nothing is padded. numpy only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from hilbert.core import Modality, Sequence
from hilbert.core.request import FloatArray
from hilbert.errors import EngineError
from hilbert.runtimes.packing import IndexArray, PackedBatch

# Inputs of a tower that run together. More gained nothing on a CPU, and each count is a shape that a
# compiled graph has to know: sixteen shapes in all.
MAX_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Stack:
    """Inputs of one tower.

    Attributes:
        modality: which tower.
        places: ``[n]``: where their rows belong in the batch.
        features: ``[n, *shape]`` float32.
    """

    modality: Modality
    places: IndexArray
    features: FloatArray


def take_apart(
    sequences: tuple[Sequence, ...], modalities: Collection[Modality]
) -> tuple[IndexArray, tuple[Sequence, ...], list[Stack]]:
    """Texts, and what is none.

    Args:
        sequences: of one batch.
        modalities: those that there are towers for.
    Returns:
        The places of the texts in the batch, the texts, and stacks of at most `MAX_TOGETHER` inputs.

    Raises:
        EngineError: an input is for a tower that the model has not.
    """
    is_text = np.fromiter((s.features is None for s in sequences), bool, len(sequences))
    stacks: list[Stack] = []
    places = np.flatnonzero(is_text)
    if len(places) == len(sequences):
        return places, sequences, stacks
    for modality in sorted({s.modality for s in sequences if s.features is not None}):
        if modality not in modalities:
            raise EngineError(f"this runtime has no {modality} tower")
        members = [i for i, s in enumerate(sequences) if s.modality is modality and s.features is not None]
        for start in range(0, len(members), MAX_TOGETHER):
            some = members[start : start + MAX_TOGETHER]
            features = np.stack([_features(sequences[i]) for i in some])
            stacks.append(Stack(modality, np.array(some), features))
    return places, tuple(sequences[i] for i in places.tolist()), stacks


def _features(sequence: Sequence) -> FloatArray:
    assert sequence.features is not None
    return sequence.features


def placed(parts: list[PackedBatch], places: IndexArray) -> list[PackedBatch]:
    """Parts of the texts alone, with orders that mean places of the whole batch."""
    return [replace(part, order=places[part.order]) for part in parts]
