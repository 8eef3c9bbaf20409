"""Queries and documents of late interaction are encoded as sentence-transformers' MultiVectorEncoder does."""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec
from hilbert.errors import InputTooLong
from hilbert.processors import TextProcessor
from hilbert.processors.sides import kept_rows
from hilbert.testing.models import tiny_model

LONG = "the guest in room one moves to room two, and so on. " * 30
TEXTS = ("where is a free room?", "", "!?", "Zimmer, für Gäste: 空き部屋 🏨.", "(one) " * 11, LONG)
KINDS = {
    "expansion": ({"strategy": "fixed", "attend": True, "length": 24}, None, 40),
    "hidden": ({"strategy": "fixed", "attend": False, "length": 24}, None, 40),
    "lengths": (None, 12, 20),
    "nothing": (None, None, None),
}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(request.param), *KINDS[request.param])


def build(
    root: Path, expansion: dict[str, Any] | None, query_len: int | None, document_len: int | None
) -> Path:
    """A model made with the reference's own API: a projection, a skip list and prompts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.base.modules import Dense, Normalize, Transformer
        from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        body = tiny_model("bert", root / "body", layout="plain")
        transformer = Transformer(
            str(body), query_length=query_len, document_length=document_len, query_expansion=expansion
        )
        import torch

        dense = Dense(64, 24, bias=False, activation_function=torch.nn.Identity(), **names)
        modules = [transformer, dense, MultiVectorMask(list(string.punctuation)), Normalize(**names)]
        prompts = {"query": "query: ", "document": "guest "}
        MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save(str(root / "model"))
    return root / "model"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import MultiVectorEncoder

        return MultiVectorEncoder(str(folder), device="cpu")


@pytest.fixture(scope="module")
def spec(folder: Path) -> ModelSpec:
    spec = hub.resolve(str(folder))
    assert spec.multivector is not None, spec.reason
    return spec


@pytest.mark.parametrize("side", ["query", "document"])
def test_ids_and_kept_rows_are_those_of_the_reference(spec, reference, side):
    found = TextProcessor(spec).encode(EmbedRequest(TEXTS, input_type=side), 3)
    prompt = {"query": "query: ", "document": "guest "}[side]
    for sequence, text in zip(found, TEXTS, strict=True):
        features = reference.preprocess([text], prompt=prompt, task=side)
        assert sequence.input_ids.tolist() == features["input_ids"][0].tolist(), text
        keeps = reference[2](dict(features), task=side)["attention_mask"][0].numpy()
        if side == "query":
            assert keeps.all()
        else:
            assert np.array_equal(kept_rows(sequence.input_ids, spec.multivector.skip_ids), keeps)
            assert keeps.all() == (not any(mark in text[:40] for mark in string.punctuation))


@pytest.mark.parametrize("tasks", [[], None, "document", ["query", "document"]])
def test_what_the_skip_list_applies_to(tmp_path, tasks):
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    folder = tiny_model("bert", tmp_path / "model", head="colbert")
    file = folder / "2_MultiVectorMask" / "config.json"
    config = json.loads(file.read_text()) | {"skiplist_words": ["a", "?"], "skiplist_tasks": tasks}
    file.write_text(json.dumps(config))
    expected = MultiVectorMask(**config).skiplist_tasks
    sides = hub.resolve(str(folder)).multivector
    assert sides is not None
    assert (bool(sides.skip_ids), sides.skips_queries) == ("document" in expected, "query" in expected)


def test_inputs_are_documents_unless_they_are_called_queries(spec):
    processor = TextProcessor(spec)

    def ids(**more: Any) -> list[int]:
        return processor.encode(EmbedRequest(("a free room",), **more), 1)[0].input_ids.tolist()

    assert ids() == ids(input_type="document") != ids(input_type="query")
    assert ids(prompt_name="query") == ids(input_type="query")


def test_too_long_for_its_side_is_an_error_without_truncation(tmp_path):
    processor = TextProcessor(hub.resolve(str(build(tmp_path, None, 12, 20))))
    text = "the guest in room one the guest in room"
    processor.encode(EmbedRequest((text,), input_type="document", truncate=False), 1)
    with pytest.raises(InputTooLong, match="at most 12"):
        processor.encode(EmbedRequest((text,), input_type="query", truncate=False), 1)


def test_the_documents_length_wins_over_the_models(tmp_path):
    folder = build(tmp_path, None, 12, 60)
    file = folder / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_seq_length": 30}))
    processor = TextProcessor(hub.resolve(str(folder)))
    assert processor.spec.max_model_len == 30
    assert [len(s.input_ids) for s in processor.encode(EmbedRequest((LONG,)), 1)] == [60]
