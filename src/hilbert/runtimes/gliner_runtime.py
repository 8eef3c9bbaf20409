"""Spans of texts, found by gliner itself.

A sequence carries a whole question (`core.spans`): the text and the labels, which gliner tokenizes together.
The questions of a batch that ask for the same run in one pass, its texts padded to the longest; its answer
to a text travels as the token vectors of other models do, a row for each span.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from gliner import GLiNER
from gliner.decoding.utils import has_overlapping, has_overlapping_nested

from hilbert.core import SPAN_COLUMNS, Batch, BatchOutput, ModelSpec, OutputType, SpanQuery, from_features
from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput, UnsupportedArchitecture, WeightMismatch, in_short
from hilbert.runtimes.base import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.memory import give_device_memory_back
from hilbert.runtimes.torch_device import bound_threads, device_errors, pick_device

# Of a text that score above the threshold; beyond, the answer is longer than the text many times over.
MAX_CANDIDATES = 20_000


@dataclass(slots=True)
class _Pass:
    """Texts in which the same is looked for, and their places in the batch."""

    query: SpanQuery
    members: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class GlinerRuntime:
    """Runs a GLiNER model in float32."""

    num_slots = 1

    def __init__(self, spec: ModelSpec, settings: RuntimeSettings) -> None:
        """Load the model.

        Raises:
            InvalidInput: numbers of another type are asked for, or a device that is not there.
            WeightMismatch: weights are missing.
            UnsupportedArchitecture: gliner cannot load it.
        """
        if settings.dtype not in ("auto", "float32"):
            raise InvalidInput(
                f"dtype {settings.dtype} is not served for {spec.model_id}, which gliner runs; take --dtype "
                "float32"
            )
        device = pick_device(settings.device)
        bound_threads(device, settings)
        self._model = _load(spec, device).eval()
        self._model.decoder.greedy_search = _chosen
        self.info = RuntimeInfo(
            engine="torch",
            device=str(self._model.device),
            dtype="float32",
            program="gliner",
            reason=spec.reason,
            dimensions=0,
            outputs=frozenset({OutputType.MULTIVECTOR}),
            max_batch_tokens=CPU_BATCH_TOKENS if self._model.device.type == "cpu" else GPU_BATCH_TOKENS,
            token_dimensions=SPAN_COLUMNS,
        )

    def prepare(self, batch: Batch) -> list[_Pass]:
        """Put the questions together that differ in nothing but the text."""
        passes: dict[SpanQuery, _Pass] = {}
        for place, sequence in enumerate(batch.sequences):
            assert sequence.features is not None, "a question has no token ids"
            query = from_features(sequence.features)
            same = msgspec.structs.replace(query, text="")
            found = passes.setdefault(same, _Pass(same))
            found.members.append(place)
            found.texts.append(query.text)
        return list(passes.values())

    def num_padding_tokens(self, prepared: list[_Pass]) -> int:
        """Not known: gliner tokenizes, and pads, while it runs."""
        return 0

    def run(self, prepared: list[_Pass]) -> BatchOutput:
        """See `Runtime.run`."""
        tables: dict[int, FloatArray] = {}
        with device_errors():
            for each in prepared:
                tables |= zip(each.members, self._spans(each), strict=True)
        return BatchOutput(multivector=tuple(tables[place] for place in range(len(tables))))

    def close(self) -> None:
        """Release the model and the device's cached memory."""
        del self._model
        give_device_memory_back()

    def _spans(self, each: _Pass) -> list[FloatArray]:
        query = each.query
        found = self._model.inference(
            each.texts,
            list(query.labels),
            threshold=query.threshold,
            flat_ner=query.is_flat,
            multi_label=query.is_multi_label,
            batch_size=len(each.texts),
        )
        places = {label: place for place, label in enumerate(query.labels)}
        return [
            np.array(
                [(span["start"], span["end"], places[span["label"]], span["score"]) for span in spans],
                np.float32,
            ).reshape(-1, SPAN_COLUMNS)
            for spans in found
        ]


def _chosen(spans: list[Any], flat_ner: bool = True, multi_label: bool = False) -> list[Any]:
    """The spans of a text that gliner keeps: the best first, none that overlaps one before it.

    gliner holds each against every one that is kept, 36 s for twelve thousand. Whether two overlap is
    told by their places alone, so here each place is held against the places that are kept, once.

    Args:
        spans: start, stop, …, score of each.
        flat_ner, multi_label: gliner's; see `SpanQuery`.
    Raises:
        InvalidInput: there are more of them than anybody can have meant.
    """
    if len(spans) > MAX_CANDIDATES:
        raise InvalidInput(
            f"{len(spans):,} spans score above the threshold; at most {MAX_CANDIDATES:,} are chosen from. "
            "Take a higher threshold or fewer labels."
        )
    overlaps = has_overlapping if flat_ner else has_overlapping_nested
    is_kept: dict[Any, bool] = {}
    places: list[Any] = []
    chosen = []
    for span in sorted(spans, key=lambda span: -span[-1]):
        place = span[:2]
        if place not in is_kept:
            is_kept[place] = not any(overlaps(place, other) for other in places)
            if is_kept[place]:
                places.append(place)
                chosen.append(span)
        elif multi_label and is_kept[place]:
            chosen.append(span)
    return sorted(chosen, key=lambda span: span[0])


def _load(spec: ModelSpec, device: str) -> Any:
    """The model with all its weights; what the files hold beyond them is left aside."""
    try:
        return _read(spec, device, is_strict=True)
    except RuntimeError as error:
        missing = next((line for line in str(error).splitlines() if "Missing key" in line), None)
        if missing is not None:
            raise WeightMismatch(
                f"{spec.model_id} has not all the weights of its gliner_config.json: {missing.strip()[:200]}"
            ) from error
    except Exception as error:  # anything: it is the only one asked
        raise _refusal(spec, error) from error
    try:
        return _read(spec, device, is_strict=False)
    except Exception as error:
        raise _refusal(spec, error) from error


def _read(spec: ModelSpec, device: str, *, is_strict: bool) -> Any:
    return GLiNER.from_pretrained(spec.path, local_files_only=True, map_location=device, strict=is_strict)


def _refusal(spec: ModelSpec, error: Exception) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"{spec.model_id} cannot be served: gliner refuses it: {in_short(error)}")
