"""Pairs are what the reference makes of them: the same ids, the same token types, the same cuts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hilbert import hub
from hilbert.errors import InputTooLong, InvalidInput
from hilbert.processors import PairProcessor, PairProcessors, TextProcessor, pair_processor
from hilbert.processors.frame import longest_first
from hilbert.testing.models import PAIR_TEMPLATE, tiny_model

# Electra's tiny model has a tokenizer class without token types; the repositories on the hub have one with.
FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2", "electra", "electra-with-types")
LONG = "the guest in room one moves to room two, and so on. " * 30
MIDDLE = "every guest moves one room up " * 9
QUERIES = ("where is a free room?", "", "Zimmer für Gäste? 空き部屋 🏨", MIDDLE, LONG)
DOCUMENTS = ("A hotel with infinitely many rooms.", "", " ", "one", "été 🌍 空き部屋", MIDDLE, LONG, LONG * 2)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param.removesuffix("-with-types")
    folder = tiny_model(family, tmp_path_factory.mktemp(request.param), head="classifier", num_labels=1)
    if family != request.param:
        change(folder / "tokenizer_config.json", tokenizer_class="ElectraTokenizerFast")
    return folder


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> PairProcessor:
    return pair_processor(TextProcessor(hub.resolve(str(folder))))


@pytest.mark.parametrize(("family", "head"), [("bert", "classifier"), ("qwen3", "logit_score")])
def test_tokens_without_an_embedding_are_refused(family: str, head: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path, head=head)
    if head == "logit_score":
        (folder / "chat_template.jinja").write_text(PAIR_TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<extra>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    pairs = pair_processor(TextProcessor(hub.resolve(str(folder))))
    with pytest.raises(InvalidInput, match=r"^query holds token ids outside the model's vocabulary"):
        pairs.encode("a <extra>", ("b", "c"), True, 1)
    with pytest.raises(InvalidInput, match=r"^documents\[1\] holds token ids outside"):
        pairs.encode("a", ("b", "<extra>"), True, 1)
    assert len(pairs.encode("a", ("b", "c"), True, 1).sequences) == 2


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_ids_and_types_are_those_of_the_reference(folder, reference, pairs, query):
    found = pairs.encode(query, DOCUMENTS, True, 7)
    num_types = hub.resolve(str(folder)).config.get("type_vocab_size") or 0
    for index, (sequence, document) in enumerate(zip(found.sequences, DOCUMENTS, strict=True)):
        features = reference.preprocess([(query, document)])
        expected = features["input_ids"][0].tolist()
        assert sequence.input_ids.tolist() == expected, (query, document)
        assert sequence.index == index and sequence.request_id == 7
        assert sequence.input_ids.dtype == np.int32
        if num_types > 1 and "token_type_ids" in features:
            types = features["token_type_ids"][0].tolist()
            assert max(types) == 1
            got = sequence.token_type_ids
            assert (got.tolist() if got is not None else [0] * len(expected)) == types
        else:
            assert sequence.token_type_ids is None


def test_cut_on_the_other_side(folder, reference):
    pairs = PairProcessors(TextProcessor(hub.resolve(str(folder))))
    assert pairs.cutting("right") is pairs.cutting(None)
    reference.tokenizer.truncation_side = "left"
    try:
        found = pairs.cutting("left").encode(MIDDLE, DOCUMENTS, True, 7)
        for sequence, document in zip(found.sequences, DOCUMENTS, strict=True):
            expected = reference.preprocess([(MIDDLE, document)])["input_ids"][0].tolist()
            assert sequence.input_ids.tolist() == expected, document
    finally:
        reference.tokenizer.truncation_side = "right"


def test_a_query_that_was_cut_is_reported(pairs):
    whole = pairs.encode("short", DOCUMENTS, True, 1)
    assert whole.query_cut is None
    cut = pairs.encode(LONG, DOCUMENTS, True, 1)
    assert cut.query_cut is not None
    num_query, num_kept = cut.query_cut
    assert 0 < num_kept < num_query


def test_without_truncation_a_long_pair_is_refused_by_its_document(pairs):
    pairs.encode("short", DOCUMENTS[:3], False, 1)
    with pytest.raises(InputTooLong, match=r"^documents\[6\] and the query have \d+ tokens") as refused:
        pairs.encode("short", (*DOCUMENTS[:6], LONG), False, 1)
    assert refused.value.param == "documents" and refused.value.index == 6


def test_invalid_unicode_is_named(pairs):
    with pytest.raises(InvalidInput, match=r"^query is not valid Unicode") as refused:
        pairs.encode("\ud800", DOCUMENTS, True, 1)
    assert refused.value.param == "query" and refused.value.index is None
    with pytest.raises(InvalidInput, match=r"^documents\[2\] is not valid Unicode") as refused:
        pairs.encode("a", ("a", "b", "\ud800"), True, 1)
    assert refused.value.param == "documents" and refused.value.index == 2


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(4, 40))
def test_longest_first_is_the_librarys(num_query, num_document, limit):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"a": 1, "b": 2}, "a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(limit, strategy="longest_first")
    ids = tokenizer.encode("a " * num_query, "b " * num_document).ids
    assert longest_first(num_query, num_document, limit) == (ids.count(1), ids.count(2))


def test_the_left_is_cut_where_the_tokenizer_says_so(tmp_path):
    folder = tiny_model("bert", tmp_path / "m", head="classifier", num_labels=1)
    change(folder / "tokenizer_config.json", truncation_side="left")
    from sentence_transformers import CrossEncoder

    reference = CrossEncoder(str(folder), device="cpu")
    found = pair_processor(TextProcessor(hub.resolve(str(folder)))).encode(MIDDLE, DOCUMENTS, True, 1)
    for sequence, document in zip(found.sequences, DOCUMENTS, strict=True):
        expected = reference.preprocess([(MIDDLE, document)])["input_ids"][0].tolist()
        assert sequence.input_ids.tolist() == expected
