"""GLiNER's layout to a `ModelSpec`: gliner_config.json, the weights and a tokenizer in one folder.

Decides which of these repositories are served: those that hold all that they need. gliner would fetch the
rest from the hub while it loads, or run code that the repository names, and does not ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilbert.core import ExtractorSpec, ModelSpec, Task
from hilbert.errors import ModelUnavailable, UnsupportedArchitecture
from hilbert.hub.files import read_object
from hilbert.hub.lengths import max_model_len, position_limit
from hilbert.hub.weights import WHOLE_FILES, weight_files

CONFIG = "gliner_config.json"
# Parts of the library that do more than find spans, or take a second repository.
_OTHER_PARTS = {
    "labels_encoder": "it encodes labels with a model of another repository",
    "labels_decoder": "it writes labels of its own",
    "relations_layer": "it finds relations, too",
}
# gliner's own default of `max_len`.
_MAX_WORDS = 384


def is_extractor(snapshot: Path) -> bool:
    """Whether gliner wrote this folder."""
    return (snapshot / CONFIG).is_file()


def read_extractor(snapshot: Path, model_id: str, commit: str, tokenizer_max: Any) -> ModelSpec:
    """Describe a GLiNER model. `digest` is left empty.

    Args:
        snapshot: the repository's files.
        model_id: what the user typed.
        commit: the hub commit, ``""`` for a plain folder.
        tokenizer_max: `model_max_length` of tokenizer_config.json.

    Raises:
        ModelUnavailable: it lacks weights, its tokenizer or the encoder's configuration.
        UnsupportedArchitecture: it does something else than find spans, or brings code of its own.
    """
    config = read_object(snapshot / CONFIG)
    encoder = config.get("encoder_config")
    weights = weight_files(snapshot)
    _check_files(snapshot, config, weights)
    assert isinstance(encoder, dict)
    _check_kind(model_id, config, encoder, snapshot)
    max_words = config.get("max_len")
    return ModelSpec(
        model_id=model_id,
        path=str(snapshot),
        commit=commit,
        digest="",
        kind="extractor",
        reason="gliner itself finds the spans",
        family=str(encoder.get("model_type", "deberta-v2")),
        architecture="GLiNER",
        config=config,
        modules=(),
        normalize=False,
        hidden_size=int(encoder.get("hidden_size") or 0),
        dimensions=0,
        max_model_len=max_model_len(_without_loose_positions(encoder), tokenizer_max),
        vocab_size=0,
        weights=weights,
        task=Task.EXTRACT,
        extractor=ExtractorSpec(
            max_words if isinstance(max_words, int) and max_words > 0 else _MAX_WORDS,
            str(config.get("ent_token") or "<<ENT>>"),
            str(config.get("sep_token") or "<<SEP>>"),
        ),
    )


def _without_loose_positions(encoder: dict[str, Any]) -> dict[str, Any]:
    """The encoder's configuration where its positions are a hard wall; gliner minds no others."""
    return encoder if position_limit(encoder) else {}


def _check_files(snapshot: Path, config: dict[str, Any], weights: tuple[str, ...]) -> None:
    if weights not in {(name,) for name in WHOLE_FILES[:2]}:
        raise ModelUnavailable(
            f"{snapshot} holds neither {' nor '.join(WHOLE_FILES[:2])}; download the model again "
            "(`hilbert models pull`)."
        )
    lacking = [
        name for name in ("tokenizer.json", "tokenizer_config.json") if not (snapshot / name).is_file()
    ]
    if not isinstance(config.get("encoder_config"), dict):
        lacking.append(f"the encoder_config of {CONFIG}")
    if lacking:
        raise ModelUnavailable(
            f"{snapshot} lacks {' and '.join(lacking)}: this GLiNER model was saved without its base, "
            f"{config.get('model_name')}. Load it with the newest gliner, in an environment of its "
            "own and with a connection, write it with save_pretrained(FOLDER), and serve that folder."
        )


def _check_kind(model_id: str, config: dict[str, Any], encoder: dict[str, Any], snapshot: Path) -> None:
    reasons = [reason for part, reason in _OTHER_PARTS.items() if config.get(part) is not None]
    splitter = config.get("words_splitter_type", "whitespace")
    if splitter != "whitespace":
        reasons.append(f"it splits words with {splitter!r}")
    if "auto_map" in encoder or "auto_map" in read_object(snapshot / "tokenizer_config.json"):
        reasons.append("it brings Python code of its own, which gliner would run unasked")
    if reasons:
        raise UnsupportedArchitecture(f"{model_id}: this kind of GLiNER model is not served: {reasons[0]}.")
