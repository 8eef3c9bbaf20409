"""What a chat template makes of pairs is what the reference makes of them: rendered, cut, ended alike."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert import hub
from hilbert.core import ChatSpec, EmbedRequest, Side
from hilbert.errors import InputTooLong, InvalidInput, ModelUnavailable
from hilbert.processors import TextProcessor, pair_processor
from hilbert.processors.chat import ChatTemplate, common_suffix
from hilbert.testing.models import PAIR_TEMPLATE, tiny_model

LONG = "the guest in room one moves to room two, and so on. " * 30
QUERIES = ("where is a free room?", "", "Zimmer für Gäste? 空き部屋 🏨", LONG)
DOCUMENTS = ("A hotel with rooms.", "", "<|im_end|> inside", "{{ 7 * 7 }}", " été 🌍 ", LONG)
INSTRUCTION = "a room with a view"
DOCUMENT_FIRST = "".join(
    sorted(PAIR_TEMPLATE.splitlines(keepends=True), key=lambda line: line.startswith("Query"))
)
STRUCTURED = PAIR_TEMPLATE.replace('map(attribute="content") | first', "first).content[0].text").replace(
    "{{ messages |", "{{ (messages |"
)


def written(root: Path, template: str = PAIR_TEMPLATE, side: str = "right") -> Path:
    folder = tiny_model("qwen3", root / "m", head="logit_score", prompts={"view": INSTRUCTION})
    (folder / "chat_template.jinja").write_text(template)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": side}))
    if template == STRUCTURED:
        file = folder / "sentence_bert_config.json"
        file.write_text(file.read_text().replace('"flat"', '"structured"'))
    return folder


def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("template", [PAIR_TEMPLATE, DOCUMENT_FIRST, STRUCTURED], ids=range(3))
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_are_those_of_the_reference(template: str, side: str, tmp_path: Path) -> None:
    folder = written(tmp_path, template, side)
    pairs, theirs = pair_processor(TextProcessor(hub.resolve(str(folder)))), reference(folder)
    for prompt in (None, INSTRUCTION):
        for query in QUERIES:
            found = pairs.encode(query, DOCUMENTS, True, 7, prompt)
            for index, (sequence, document) in enumerate(zip(found.sequences, DOCUMENTS, strict=True)):
                expected = theirs.preprocess([(query, document)], prompt=prompt)["input_ids"][0].tolist()
                assert sequence.input_ids.tolist() == expected, (query, document, prompt)
                assert (sequence.index, sequence.request_id) == (index, 7)
                assert sequence.input_ids.dtype == np.int32


@pytest.mark.parametrize("template", [PAIR_TEMPLATE, DOCUMENT_FIRST], ids=range(2))
def test_a_query_that_was_cut_is_reported(template: str, tmp_path: Path) -> None:
    pairs = pair_processor(TextProcessor(hub.resolve(str(written(tmp_path, template)))))
    whole = pairs.encode("short", DOCUMENTS[:5], True, 1)
    assert whole.query_cut is None
    cut = pairs.encode(LONG, DOCUMENTS[:1], True, 1)
    assert cut.query_cut is not None
    num_query, num_kept = cut.query_cut
    assert 0 < num_kept < num_query > 128
    beside = pairs.encode("short", DOCUMENTS, True, 1)
    # A long document costs a query that stands behind it, not one that stands before it.
    assert (beside.query_cut is None) == (template == PAIR_TEMPLATE)


def test_without_truncation_a_long_pair_is_refused_by_its_document(tmp_path: Path) -> None:
    pairs = pair_processor(TextProcessor(hub.resolve(str(written(tmp_path)))))
    pairs.encode("short", DOCUMENTS[:5], False, 1)
    with pytest.raises(InputTooLong, match=r"^documents\[5\] and the query have \d+ tokens") as refused:
        pairs.encode("short", DOCUMENTS, False, 1)
    assert refused.value.index == 5
    with pytest.raises(InvalidInput, match=r"^query is not valid Unicode"):
        pairs.encode("\ud800", DOCUMENTS, True, 1)
    with pytest.raises(InvalidInput, match=r"^documents\[1\] is not valid Unicode"):
        pairs.encode("a", ("b", "\ud800"), True, 1)


def test_what_is_too_long_together_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pair_processor(TextProcessor(hub.resolve(str(written(tmp_path)))))
    num_written = 0

    def write(self: ChatTemplate, query: str, document: str, prompt: str = "") -> str:
        nonlocal num_written
        num_written += 1
        return query + document

    monkeypatch.setattr(ChatTemplate, "pair", write)
    with pytest.raises(InputTooLong, match="The 100 inputs have 99,000,100 characters"):
        pairs.encode("q" * 990_000, ("d",) * 100, True, 1, "")
    assert num_written == 0


def test_a_template_may_be_told_not_to_keep_its_end(tmp_path: Path) -> None:
    folder = written(tmp_path)
    file = folder / "sentence_bert_config.json"
    options = {
        "processing_kwargs": {"chat_template": {"restore_suffix": False, "add_generation_prompt": True}}
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    (folder / "chat_template.jinja").write_text(PAIR_TEMPLATE + "{% if add_generation_prompt %}go{% endif %}")
    pairs, theirs = pair_processor(TextProcessor(hub.resolve(str(folder)))), reference(folder)
    for document, sequence in zip(DOCUMENTS, pairs.encode("a", DOCUMENTS, True, 1).sequences, strict=True):
        expected = theirs.preprocess([("a", document)])["input_ids"][0].tolist()
        assert sequence.input_ids.tolist() == expected


@pytest.mark.parametrize("side", ["right", "left"])
def test_max_tokens_cuts_behind_any_template(side: Side, tmp_path: Path) -> None:
    spec = hub.resolve(str(written(tmp_path)))
    bare = "{{ messages[-1].content }}"
    for chat in (
        ChatSpec(bare),
        ChatSpec(bare + "<|im_end|>", restores_suffix=False),
        ChatSpec(bare, restores_suffix=False, is_framed=True),
        ChatSpec(bare + "<|im_end|>"),
    ):
        texts = TextProcessor(msgspec.structs.replace(spec, chat=chat), truncation_side=side)
        (whole,) = texts.encode(EmbedRequest((LONG,)), 1)
        (cut,) = texts.encode(EmbedRequest((LONG,), max_tokens=20), 1)
        assert len(whole.input_ids) == texts.max_len and len(cut.input_ids) == 20, chat
        if chat.is_framed:
            assert cut.input_ids[-1] == whole.input_ids[-1] == texts.frame.after[-1]


class Counting:
    """A tokenizer that remembers what it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.given: list[str] = []

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.given += texts
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("template", [PAIR_TEMPLATE, DOCUMENT_FIRST], ids=range(2))
def test_the_query_is_tokenized_once(template: str, tmp_path: Path) -> None:
    texts = TextProcessor(hub.resolve(str(written(tmp_path, template))))
    pairs = pair_processor(texts)
    pairs.encode("warm", DOCUMENTS, True, 1)  # the template's end is measured once
    texts.tokenizer = counting = Counting(texts.tokenizer)  # type: ignore[assignment]
    query = "where is a free room?"
    documents = ("", "A hotel.", "A house.", "été")
    apart = pairs.encode(query, documents, True, 1).sequences
    assert sum(text.count(query) for text in counting.given) == 1
    assert sum(text.count("Find one that answers") for text in counting.given) == 1
    for document, sequence in zip(documents, apart, strict=True):
        (alone,) = pairs.encode(query, (document,), True, 1).sequences
        assert alone.input_ids.tolist() == sequence.input_ids.tolist()


def test_templates_run_in_a_sandbox() -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}"):
        with pytest.raises(InvalidInput, match="chat template refuses this request"):
            ChatTemplate(ChatSpec(source)).lone("a")
    with pytest.raises(ModelUnavailable, match="cannot be compiled"):
        ChatTemplate(ChatSpec("{% if %}"))


def test_what_two_renderings_end_in() -> None:
    def suffix(first: list[int], second: list[int]) -> list[int]:
        return common_suffix(np.array(first, np.int32), np.array(second, np.int32)).tolist()

    assert suffix([1, 5, 8, 9], [1, 6, 7, 8, 9]) == [8, 9]
    assert suffix([1, 5], [1, 6]) == [] == suffix([8, 9], [7, 8, 9]) == suffix([], [])


def test_the_template_counts_where_work_is_estimated(tmp_path: Path) -> None:
    folder = written(
        tmp_path, "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}" + "x" * 400
    )
    texts = TextProcessor(hub.resolve(str(folder)))
    assert texts.estimate_tokens(("a",)) > 100
    assert texts.is_small(("a",)) and not texts.is_small(("a",) * 10)
