"""What is asked of a model that finds spans in a text, and how it travels to the runtime: as numbers.

Such a model reads the text together with the labels, so that a sequence is a question of its own. It rides
in `Sequence.features`, whose bytes nobody between the front and the runtime looks at.
"""

from __future__ import annotations

import msgspec
import numpy as np

from hilbert.core.request import FloatArray

SPAN_COLUMNS = 4
"""Numbers that describe a span: start, stop, the label's place, the score."""


class SpanQuery(msgspec.Struct, frozen=True, array_like=True):
    """One text, and what to look for in it.

    Attributes:
        labels: each once.
        threshold: spans that score no more are left out.
        is_flat: of spans that overlap only the best is kept.
        is_multi_label: the same span may have several labels.
    """

    text: str
    labels: tuple[str, ...]
    threshold: float = 0.5
    is_flat: bool = True
    is_multi_label: bool = False


def as_features(query: SpanQuery) -> FloatArray:
    """The question's bytes under another name: ``[n]`` float32, no numbers to compute with."""
    data = msgspec.json.encode(query)
    return np.frombuffer(data + b" " * (-len(data) % 4), np.float32)


def from_features(features: FloatArray) -> SpanQuery:
    """The question again."""
    return msgspec.json.decode(features.tobytes(), type=SpanQuery)
