"""``hilbert v2``: the command line that Infinity's users already have.

Everything that has a meaning here is in the one table; this file holds only what differs: values with
another name, and settings that are accepted and mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hilbert.config.option import Option
from hilbert.config.settings import ServerSettings
from hilbert.config.sources import BadSetting, Given, Source

# Infinity's name of a value → ours, where another word keeps the user's intent.
_VALUES = {
    ("device", "tensorrt"): ("cuda", "TensorRT is not built in"),
}

# Accepted and without effect, with the reason why nothing is lost.
_MEANINGLESS = {
    "model_warmup": "models are always warm before they are ready",
    "vector_disk_cache": "vectors are not cached on disk",
    "lengths_via_tokenize": "lengths and usage are always counted in tokens",
    "compile": "graphs are always compiled",
    "bettertransformer": "batches are packed, which does the same and more",
    "onnx_disable_optimize": "OpenVINO optimises the graph itself",
    "onnx_do_not_prefer_quantized": "quantized files are never taken unasked",
}


def _hidden(name: str, kind: type) -> Option:
    return Option(name=name, kind=kind, default="", help="", infinity=name.upper(), per_model=True)


HIDDEN = (
    *(_hidden(name, bool) for name in _MEANINGLESS),
    _hidden("device_id", str),
)


def translate(source: Source, notes: list[str]) -> Source:
    """Replace Infinity's words for values by ours; `notes` gets one line for each."""
    translated = {}
    for name, given in source.items():
        texts = []
        for text in given.texts:
            ours, why = _VALUES.get((name, text), (text, ""))
            note = f"{given.origin} {text}: {why}; {ours} is used"
            if why and note not in notes:
                notes.append(note)
            texts.append(ours)
        translated[name] = Given(given.origin, tuple(texts))
    return translated


def note_hidden(sources: Sequence[Source], notes: list[str]) -> None:
    """Note every setting that has no meaning here."""
    for name, reason in _MEANINGLESS.items():
        if given := _first(sources, name):
            notes.append(f"{given.origin} has no meaning here: {reason}")


def with_device_ids(settings: ServerSettings, sources: Sequence[Source], notes: list[str]) -> ServerSettings:
    """Fold ``--device cuda --device-id 1`` into ``cuda:1``.

    Raises:
        BadSetting: several GPUs for one model, or a list of the wrong length.
    """
    given = _first(sources, "device_id")
    if given is None or not any(given.texts):
        return settings
    if len(given.texts) not in (1, len(settings.models)):
        expected = f"Expected length {len(settings.models)} but got {len(given.texts)}"
        raise BadSetting(f"{given.origin}: {expected}", 1)
    models = []
    for index, model in enumerate(settings.models):
        ids = given.texts[index % len(given.texts)]
        if not ids or model.device != "cuda":
            note = f"{given.origin} {ids} counts only together with --device cuda"
            if ids and note not in notes:
                notes.append(note)
            models.append(model)
            continue
        if not ids.isdigit():
            raise BadSetting(
                f"{given.origin} {ids!r} cannot be used: give one GPU and start a server for each"
            )
        models.append(dataclasses.replace(model, device=f"cuda:{ids}"))
    return dataclasses.replace(settings, models=tuple(models))


def _first(sources: Sequence[Source], name: str) -> Given | None:
    return next((source[name] for source in sources if name in source), None)
