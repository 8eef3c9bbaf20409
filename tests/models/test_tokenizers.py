"""Repositories without tokenizer.json: converted once, or refused with a remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec
from hilbert.errors import ModelUnavailable
from hilbert.models import load_processor
from hilbert.models import tokenizers as module
from hilbert.processors import TextProcessor


@pytest.fixture
def old(tmp_path) -> ModelSpec:
    """The real model as older repositories ship it: vocab.txt and no tokenizer.json."""
    source = hub.resolve("bundled").path
    folder = tmp_path / "old"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    return hub.resolve(str(folder))


def test_an_old_repository_is_converted_once(old, tmp_path, monkeypatch):
    wanted = TextProcessor(hub.resolve("bundled"))
    text = "Hilbert's hotel, été 🌍 " + "word " * 400
    for _ in range(2):
        processor = load_processor(old, tmp_path / "cache")
        for request in (EmbedRequest((text,)), EmbedRequest(("",))):
            ours, theirs = (p.encode(request, 0)[0].input_ids for p in (processor, wanted))
            assert ours.tolist() == theirs.tolist()
        monkeypatch.setattr(module, "_convert", None)  # the second time there is nothing to convert


def test_what_cannot_be_converted_is_refused_with_a_remedy(old, tmp_path):
    (Path(old.path) / "vocab.txt").unlink()
    with pytest.raises(ModelUnavailable, match=r"5 tokens of 30522.*save_pretrained"):
        load_processor(old, tmp_path / "cache")


def test_a_repository_with_its_own_needs_no_cache(tmp_path):
    load_processor(hub.resolve("bundled"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
