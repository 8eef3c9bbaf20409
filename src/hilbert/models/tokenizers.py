"""Where a model's tokenizer comes from: its repository, or a conversion that is cached beside the graphs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from hilbert.core import ModelSpec
from hilbert.errors import ModelUnavailable
from hilbert.processors import TextProcessor
from hilbert.processors.text import find_tokenizer_file

_CONVERT_SECONDS = 120


def load_processor(spec: ModelSpec, cache_dir: str | Path | None = None) -> TextProcessor:
    """The text processor of a model. May take seconds the first time that an old repository is served.

    Args:
        spec: the model.
        cache_dir: folder of the artifact cache; None or ``""`` takes the default.

    Raises:
        ModelUnavailable: there is no tokenizer.json and none can be made; the message says what to do.
    """
    return TextProcessor(spec, tokenizer_file(spec, cache_dir))


def tokenizer_file(spec: ModelSpec, cache_dir: str | Path | None = None) -> Path:
    """The model's tokenizer.json: the repository's own, or one that is converted once and cached.

    Raises:
        ModelUnavailable: there is none and none can be made.
    """
    shipped = find_tokenizer_file(spec)
    return _converted(spec, cache_dir) if shipped is None else shipped


def _converted(spec: ModelSpec, cache_dir: str | Path | None) -> Path:
    from hilbert.hub.artifacts import ArtifactStore

    store = ArtifactStore(cache_dir or None)
    identity = f"{spec.path if not spec.digest else ''}\n{spec.commit}\n{spec.digest}"
    key = "tokenizer-" + hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = store.open(key)
    if folder is None:
        with store.building(key) as work:
            _convert(spec, work / "tokenizer.json")
            folder = store.commit(key, work, spec, {"program": "tokenizer"})
    return folder / "tokenizer.json"


def _convert(spec: ModelSpec, file: Path) -> None:
    root = Path(spec.path)
    source = root / spec.transformer_folder if spec.transformer_folder else root
    arguments = [str(source), str(file), str(spec.vocab_size)]
    command = [sys.executable, "-m", "hilbert.processors.convert", *arguments]
    try:
        run = subprocess.run(command, capture_output=True, timeout=_CONVERT_SECONDS, text=True)
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        run, reason = None, f"it took more than {_CONVERT_SECONDS} s"
    if run is None or run.returncode != 0 or not file.is_file():
        raise ModelUnavailable(
            f"{spec.model_id} has no tokenizer.json, and none could be made from its files ({reason}). "
            "Where it can be loaded, convert it once: transformers.AutoTokenizer.from_pretrained(MODEL)"
            ".save_pretrained(FOLDER), and serve that folder."
        )
