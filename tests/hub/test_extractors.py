"""Which GLiNER repositories are served, told from their JSON; what is said where gliner is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hilbert.core import ExtractorSpec, Task, tasks_of
from hilbert.errors import MissingDependency, ModelUnavailable, UnsupportedArchitecture
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime

ENCODER = {
    "model_type": "deberta-v2",
    "hidden_size": 32,
    "max_position_embeddings": 512,
    "position_biased_input": False,
}
CONFIG = {"model_name": "org/base", "max_len": 100, "ent_token": "<<E>>", "encoder_config": ENCODER}


def repository(folder: Path, tokenizer: Any = None, **changes: Any) -> Path:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "gliner_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    return folder


def test_a_whole_repository(tmp_path):
    spec = resolve(str(repository(tmp_path)))
    assert (spec.kind, spec.task, spec.family) == ("extractor", Task.EXTRACT, "deberta-v2")
    assert tasks_of(spec) == (Task.EXTRACT,) and spec.weights == ("pytorch_model.bin",)
    assert spec.extractor == ExtractorSpec(100, "<<E>>", "<<SEP>>")
    assert spec.max_model_len is None  # positions are relative, and the tokenizer names no limit
    (tmp_path / "pytorch_model.bin").write_bytes(b"others")
    assert resolve(str(tmp_path)).digest != spec.digest


@pytest.mark.parametrize(
    ("encoder", "tokenizer", "limit"),
    [
        (ENCODER, {"model_max_length": 200}, 200),
        (ENCODER, {"model_max_length": 10**30}, None),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 10**30}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 200}, 200),
    ],
)
def test_how_many_tokens_it_takes(tmp_path, encoder, tokenizer, limit):
    assert resolve(str(repository(tmp_path, tokenizer, encoder_config=encoder))).max_model_len == limit


@pytest.mark.parametrize(
    ("changes", "tokenizer", "words"),
    [
        ({"labels_encoder": "org/labels"}, None, "encodes labels with a model of another repository"),
        ({"labels_decoder": "org/words"}, None, "writes labels"),
        ({"relations_layer": "biaffine"}, None, "relations"),
        ({"words_splitter_type": "spacy"}, None, "'spacy'"),
        ({"encoder_config": ENCODER | {"auto_map": {"AutoModel": "a.B"}}}, None, "Python code"),
        ({}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "Python code"),
    ],
)
def test_what_is_not_served(tmp_path, changes, tokenizer, words):
    with pytest.raises(UnsupportedArchitecture, match=words):
        resolve(str(repository(tmp_path, tokenizer, **changes)))


def test_what_leans_on_its_base(tmp_path):
    repository(tmp_path, encoder_config=None)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        ModelUnavailable, match=r"lacks tokenizer\.json and the encoder_config.*org/base.*save_pre"
    ):
        resolve(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelUnavailable, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        resolve(str(tmp_path))


def test_without_gliner(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gliner", None)
    monkeypatch.delitem(sys.modules, "hilbert.runtimes.gliner_runtime", raising=False)
    with pytest.raises(MissingDependency, match=r"pip install 'hilbert\[gliner\]'"):
        load_runtime(resolve(str(repository(tmp_path))), RuntimeSettings(device="cpu"))
