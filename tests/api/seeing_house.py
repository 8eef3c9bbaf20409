"""A processor whose images and sounds are their bytes, one token each: what arrived where is plain to see."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Any

import msgspec
import numpy as np

from hilbert.core import EmbedRequest, Input, Media, MediaRef, Modality, ModelSpec, Sequence
from hilbert.errors import MediaError
from hilbert.processors import TextProcessor
from hilbert.testing.runtime import fake_vector


class SeeingProcessor(TextProcessor):
    def __init__(self, spec: ModelSpec, *modalities: Modality) -> None:
        super().__init__(msgspec.structs.replace(spec, modalities=(Modality.TEXT, *modalities)))

    def estimate_tokens(self, inputs: AbstractSequence[Input], *args: Any, **more: Any) -> int:
        texts = [x for x in inputs if not isinstance(x, Media | MediaRef)]
        return super().estimate_tokens(texts, *args, **more) + 10 * (len(inputs) - len(texts))

    def is_small(self, inputs: AbstractSequence[Input], prompt_chars: int = 0) -> bool:
        return False

    def encode(self, request: EmbedRequest, request_id: int) -> tuple[Sequence, ...]:
        found = []
        for index, given in enumerate(request.inputs):
            if isinstance(given, Media):
                if given.data == b"broken":
                    raise MediaError(f"input[{index}]: no image.", param="input", index=index)
                found.append(Sequence(request_id, index, ids_of_bytes(given.data)))
            else:
                alone = super().encode(msgspec.structs.replace(request, inputs=(given,)), request_id)
                found.append(msgspec.structs.replace(alone[0], index=index))
        return tuple(found)


def ids_of_bytes(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8).astype(np.int32)


def seen(data: bytes, dimensions: int) -> Any:
    """The vector of an image that has these bytes."""
    row = fake_vector(ids_of_bytes(data), dimensions)
    return row / np.linalg.norm(row)
