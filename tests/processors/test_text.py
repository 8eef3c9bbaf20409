"""Token ids equal to sentence-transformers', and a clear word for everything refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilbert import hub
from hilbert.core import EmbedRequest, ModelSpec, Sequence
from hilbert.errors import InputTooLong, InvalidInput, ModelError, ModelUnavailable
from hilbert.processors import TextProcessor, token_array, words
from hilbert.processors.words import WordTable, cut, splits_at_spaces
from hilbert.testing.models import FAMILIES, STATIC_FAMILIES, tiny_model

TEXTS = [
    "",
    " ",
    "\t\n",
    "a",
    "The quick brown fox, jumping over 13 lazy dogs!",
    "ÉTÉ à Zürich — naïve façade",
    "emoji 🌍🏨 and ZWJ 👩‍💻",
    "NUL \x00 inside",
    "شقة للإيجار",
    "北京大学 東京",
    "[CLS] spelled [SEP] out </s> <s> <|endoftext|> [MASK]",
    "İstanbul ǅ ẞ",
    "word " * 400,
    "nospaces" * 300,
]


def encode(processor: TextProcessor, *inputs: Any, **more: Any) -> tuple[Sequence, ...]:
    return processor.encode(EmbedRequest(tuple(inputs), **more), 7)


def reference(folder: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    return SentenceTransformer(str(folder), device="cpu")


def assert_same(model: Any, processor: TextProcessor, texts: list[str], prompt: str | None = None) -> None:
    sequences = encode(processor, *texts, prompt=prompt)
    assert [s.index for s in sequences] == list(range(len(texts)))
    for text, ours in zip(texts, sequences, strict=True):
        features = model.preprocess([text], prompt=prompt)
        theirs = features["input_ids"].reshape(-1).tolist()
        assert ours.input_ids.tolist() == theirs, repr(text[:60])
        types = features["token_type_ids"][0].tolist() if "token_type_ids" in features else []
        assert (ours.token_type_ids is None) == (not any(types))


@pytest.mark.parametrize("family", [*FAMILIES, *STATIC_FAMILIES])
def test_every_family_as_sentence_transformers(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model")
    assert_same(reference(folder), TextProcessor(hub.resolve(str(folder))), TEXTS)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "roberta"])
def test_lower_case_length_and_prompt_as_sentence_transformers(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model", do_lower_case=True, max_seq_length=20)
    processor = TextProcessor(hub.resolve(str(folder)))
    assert processor.max_len == 20
    model = reference(folder)
    assert_same(model, processor, TEXTS)
    assert_same(model, processor, TEXTS, prompt="QUERY: the ")


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "static"])
def test_cut_on_the_other_side_as_sentence_transformers(family, tmp_path):
    more = {} if family == "static" else {"max_seq_length": 20}
    folder = tiny_model(family, tmp_path / "model", **more)
    processor, model = TextProcessor(hub.resolve(str(folder))), reference(folder)
    assert processor.cutting("right") is processor is processor.cutting(None)
    left = processor.cutting("left")
    assert left.truncates_left and processor.cutting("left") is left
    if family != "static":
        model.tokenizer.truncation_side = "left"
    assert_same(model, left, TEXTS)
    texts = (*TEXTS, "a b c d e f " * 9)
    for side, cuts in (("left", left), ("right", processor)):
        found = encode(processor, *texts, truncation_side=side)
        for ours, theirs in zip(found, encode(cuts, *texts), strict=True):
            np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
    if family != "static":
        ids = np.arange(1, 31, dtype=np.int32)
        assert encode(processor, ids, truncation_side="left")[0].input_ids.tolist() == list(range(11, 31))


@pytest.mark.parametrize("flags", [{"do_lower_case": False}, {"strip_accents": False}, {}])
def test_berts_flags_in_tokenizer_config_win(flags, tmp_path):
    folder = tiny_model("bert", tmp_path / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "BertTokenizer"} | flags))
    assert_same(reference(folder), TextProcessor(hub.resolve(str(folder))), TEXTS)


@pytest.mark.parametrize(
    ("file", "name", "value", "wanted"),
    [
        ("tokenizer_config.json", "truncation_side", "x", '"left" or "right"'),
        ("tokenizer_config.json", "truncation_side", ["left"], '"left" or "right"'),
        ("tokenizer_config.json", "do_lower_case", None, "true or false"),
        ("tokenizer_config.json", "strip_accents", "x", "true or false"),
        ("tokenizer_config.json", "tokenize_chinese_chars", 1, "true or false"),
        ("config.json", "type_vocab_size", "x", "a whole number of at least 0"),
        ("config.json", "type_vocab_size", -1, "a whole number of at least 0"),
    ],
)
def test_a_value_that_does_not_belong_there_is_named(file, name, value, wanted, tmp_path):
    folder = tiny_model("bert", tmp_path / "model")
    path = folder / file
    own_class = {"tokenizer_class": "BertTokenizer"} if file == "tokenizer_config.json" else {}
    path.write_text(json.dumps(json.loads(path.read_text()) | own_class | {name: value}))
    with pytest.raises(ModelError) as caught:
        TextProcessor(hub.resolve(str(folder)))
    assert all(part in caught.value.message for part in (file, name, repr(value), wanted))


def test_the_truncation_side_is_kept(tmp_path):
    folder = tiny_model("bert", tmp_path / "model", max_seq_length=12)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": "left"}))
    processor = TextProcessor(hub.resolve(str(folder)))
    assert_same(reference(folder), processor, TEXTS)
    ids = np.arange(5, 45, dtype=np.int32)
    assert encode(processor, ids)[0].input_ids.tolist() == ids[-12:].tolist()


@pytest.fixture(scope="module")
def bundled() -> ModelSpec:
    return hub.resolve("bundled")


@pytest.fixture(scope="module")
def processor(bundled: ModelSpec) -> TextProcessor:
    return TextProcessor(bundled)


def test_the_real_model_as_sentence_transformers(bundled, processor):
    words = Path(json.__file__).read_text().split()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, n)) for n in (1, 3, 30, 100, 190, 256, 300, 3000)]
    assert_same(reference(Path(bundled.path)), processor, TEXTS + texts)
    assert max(s.num_tokens for s in encode(processor, *texts)) == 256


def test_sequences_carry_request_and_place(processor):
    sequences = encode(processor, "a", "b c", token_array([101, 102], 2))
    assert [(s.request_id, s.index) for s in sequences] == [(7, 0), (7, 1), (7, 2)]
    assert {s.input_ids.dtype for s in sequences} == {np.dtype(np.int32)}


def test_token_types_are_told_only_where_one_is_not_zero(tmp_path):
    folder = tiny_model("bert", tmp_path / "model")
    assert encode(TextProcessor(hub.resolve(str(folder))), "a b")[0].token_type_ids is None
    file = folder / "tokenizer.json"
    text = file.read_text()
    description = json.loads(text)
    description["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = 1
    file.write_text(json.dumps(description))
    types = encode(TextProcessor(hub.resolve(str(folder))), "a")[0].token_type_ids
    assert types is not None and types.tolist()[-1] == 1 and types[:-1].max() == 0


# -- what is too long -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "qwen3", "t5"])
def test_a_too_long_text_is_refused_with_its_true_count(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model", max_seq_length=16)
    spec = hub.resolve(str(folder))
    whole = TextProcessor(msgspec.structs.replace(spec, max_model_len=None))
    text = "the packed row of a short query is attended " * 20
    true_count = encode(whole, text)[0].num_tokens
    assert true_count > 200
    with pytest.raises(InputTooLong) as refused:
        encode(TextProcessor(spec), "a", text, truncate=False)
    assert refused.value.index == 1 and refused.value.param == "input"
    assert f"input[1] has {true_count} tokens" in refused.value.message
    assert "16" in refused.value.message


def test_exactly_the_limit_is_not_too_long(processor):
    fits = encode(processor, "word " * 254, truncate=False)[0]
    assert fits.num_tokens == 256
    with pytest.raises(InputTooLong, match="257 tokens"):
        encode(processor, "word " * 255, truncate=False)


def test_too_many_token_ids_are_cut_or_refused(processor):
    ids = np.full(300, 2023, dtype=np.int32)
    assert encode(processor, ids)[0].num_tokens == 256
    with pytest.raises(InputTooLong, match="300 tokens; the model takes at most 256"):
        encode(processor, ids, truncate=False)


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "named"), [([101, 30522], "30522"), ([-1], "-1"), ([5, 99999, 88888], "99999, 88888")]
)
def test_ids_outside_the_vocabulary_are_named(processor, ids, named):
    with pytest.raises(InvalidInput, match=named) as refused:
        encode(processor, "fine", token_array(ids, 1))
    assert refused.value.index == 1 and "30521" in refused.value.message


def test_a_text_whose_tokens_the_model_does_not_have_is_refused(bundled):
    small = TextProcessor(msgspec.structs.replace(bundled, vocab_size=10_000))
    assert encode(small, "the")[0].num_tokens == 3
    with pytest.raises(InvalidInput, match=r"input\[1\].* 20000; ids go from 0 to 9999"):
        encode(small, "the", str(small.tokenizer.id_to_token(20_000)))


def test_ids_beyond_32_bits_are_named():
    with pytest.raises(InvalidInput, match=str(2**40)):
        token_array([1, 2**40], 0)
    with pytest.raises(InvalidInput, match="99999999999999999999"):
        token_array([99999999999999999999], 0)
    with pytest.raises(InvalidInput, match="empty"):
        token_array([], 3)


def test_lone_surrogates_are_named(processor):
    with pytest.raises(InvalidInput, match=r"input\[1\].*D800") as refused:
        encode(processor, "fine", "a\ud800b")
    assert refused.value.index == 1


def test_a_repository_without_tokenizer_json_says_what_to_do(bundled, tmp_path):
    shutil.copytree(
        bundled.path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.json")
    )
    spec = msgspec.structs.replace(bundled, path=str(tmp_path / "m"))
    with pytest.raises(ModelUnavailable, match="save_pretrained"):
        TextProcessor(spec)
    elsewhere = TextProcessor(spec, Path(bundled.path) / "tokenizer.json")
    assert encode(elsewhere, "a")[0].num_tokens == 3


# -- prompts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompted(bundled: ModelSpec) -> TextProcessor:
    prompts = {"query": "query: ", "passage": "passage: ", "empty": ""}
    return TextProcessor(msgspec.structs.replace(bundled, prompts=prompts, default_prompt_name="passage"))


@pytest.mark.parametrize(
    ("request_fields", "prompt"),
    [
        ({}, "passage: "),
        ({"prompt_name": ""}, ""),
        ({"prompt_name": "empty"}, ""),
        ({"prompt_name": "query"}, "query: "),
        ({"prompt": "own "}, "own "),
        ({"prompt": ""}, ""),
        ({"prompt": "own ", "prompt_name": "query"}, "own "),
        ({"input_type": "query"}, "query: "),
        ({"input_type": "document"}, "passage: "),
        ({"input_type": "query", "prompt_name": "passage"}, "passage: "),
    ],
)
def test_which_prompt_applies(prompted, processor, request_fields, prompt):
    got = encode(prompted, "text", **request_fields)[0].input_ids.tolist()
    assert got == encode(processor, prompt + "text")[0].input_ids.tolist()


def test_an_input_type_without_a_prompt_means_none_and_not_the_default(bundled, processor):
    spec = msgspec.structs.replace(bundled, prompts={"x": "x: "}, default_prompt_name="x")
    bare = encode(processor, "text")[0].input_ids.tolist()
    for input_type in ("query", "document"):
        assert encode(TextProcessor(spec), "text", input_type=input_type)[0].input_ids.tolist() == bare


def test_unknown_prompts_are_refused_with_the_known_names(prompted, processor):
    with pytest.raises(InvalidInput, match="empty, passage, query"):
        encode(prompted, "text", prompt_name="nope")
    with pytest.raises(InvalidInput, match="none"):
        encode(processor, "text", prompt_name="query")
    with pytest.raises(InvalidInput, match="use query, document, classification, clustering, similarity"):
        encode(processor, "text", input_type="summary")


@pytest.mark.parametrize(
    ("input_type", "name"),
    [
        ("query", "retrieval.query"),
        ("query", "Retrieval-query"),
        ("document", "retrieval.passage"),
        ("classification", "Classification"),
        ("clustering", "separation"),
        ("similarity", "STS"),
    ],
)
def test_prompts_are_found_under_the_names_that_models_have_for_them(bundled, input_type, name):
    spec = msgspec.structs.replace(bundled, prompts={"other": "b: ", name: "a: "})
    texts = TextProcessor(spec)
    assert (
        encode(texts, "x", input_type=input_type)[0].input_ids.tolist()
        == encode(texts, "x", prompt="a: ")[0].input_ids.tolist()
    )


def test_a_prompt_cannot_stand_before_token_ids(prompted):
    ids = token_array([101, 102], 0)
    with pytest.raises(InvalidInput, match="token ids"):
        encode(prompted, ids, prompt="x")
    assert encode(prompted, ids)[0].input_ids.tolist() == [101, 102]  # the default prompt leaves ids alone


@pytest.mark.parametrize("family", ["bert", "qwen3", "mistral", "t5"])
def test_prompt_length_as_sentence_transformers(family, tmp_path):
    folder = tiny_model(
        family, tmp_path / "model", include_prompt=False, prompts={"query": "the packed row: "}
    )
    ours = encode(TextProcessor(hub.resolve(str(folder))), "a short query", prompt_name="query")[0]
    theirs = reference(folder).preprocess(["a short query"], prompt="the packed row: ")
    assert ours.prompt_len == theirs["prompt_length"] > 0


def test_prompt_length_is_zero_where_prompts_are_pooled(prompted):
    assert encode(prompted, "text", prompt_name="query")[0].prompt_len == 0


# -- the cut before the tokenizer -------------------------------------------------------------------

_PIECES = [
    "word",
    "A",
    "9",
    " ",
    "  ",
    "\t",
    "\n",
    "\xa0",
    "\u3000",
    ".",
    "é",
    "é",
    "́",
    "中",
    "🏨",
    "\x00",
    "[MASK]",
    "[SEP]",
    "##",
    "İ",
    "\u200d",
]
_PUNCTUATED = [
    "self.x(",
    "'",
    "\u2019",
    "--",
    "≠",
    "<\u0338",
    ";\u037e",
    "a_b",
    "«é»",
    "[mask]",
    "[SEP",
    "]",
    "`\u1fef",
]
_pieces = st.sampled_from([*_PIECES, *_PUNCTUATED, "x" * 120])


@settings(max_examples=300, deadline=None)
@given(st.lists(_pieces, max_size=120).map("".join), st.integers(1, 12))
def test_a_cut_text_has_the_same_first_tokens(processor, text, num_tokens):
    text = text + " filler" * (8 * num_tokens)
    whole = processor.tokenizer.encode(text, add_special_tokens=False).ids
    short = processor.tokenizer.encode(cut(text, num_tokens), add_special_tokens=False).ids
    assert short[:num_tokens] == whole[:num_tokens]


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory) -> TextProcessor:
    folder = tiny_model("bert", tmp_path_factory.mktemp("models") / "cased", model_max_length=256)
    file = folder / "tokenizer_config.json"
    flags = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | flags))
    return TextProcessor(msgspec.structs.replace(hub.resolve(str(folder)), max_model_len=256))


@settings(max_examples=300, deadline=None)
@given(st.lists(_pieces, max_size=60).map("".join), st.sampled_from(["uncased", "cased", "short"]))
def test_word_by_word_is_the_same_as_the_tokenizer(processor, cased, bundled, text, kind):
    if kind == "short":  # anew each time, so that every word is new and cut off somewhere
        processor = TextProcessor(msgspec.structs.replace(bundled, max_model_len=9))
    processor = cased if kind == "cased" else processor
    assert processor._words is not None
    whole = processor.tokenizer.encode(text)
    assert encode(processor, text)[0].input_ids.tolist() == whole.ids
    if not whole.overflowing:
        assert encode(processor, text, truncate=False)[0].input_ids.tolist() == whole.ids


def test_the_table_of_words_stays_small_and_right(processor, monkeypatch):
    monkeypatch.setattr(words, "_MAX_WORDS", 50)
    table = WordTable(processor.tokenizer)
    for start in range(0, 1000, 7):
        text = " ".join(f"w{i} the" for i in range(start, start + 20)) + " " + "long" * 40
        assert table.encode(text, 256).tolist() == processor.tokenizer.encode(text).ids
        assert len(table._table) <= 50
        assert all(len(word) <= 48 for word in table._table)
        assert all(len(word) <= 12 for word in table._table if not word.isalnum())


def test_only_berts_pipeline_goes_word_by_word(tmp_path):
    by_words = {}
    for family in ("bert", "mpnet", "roberta", "xlm-roberta"):
        folder = tiny_model(family, tmp_path / family)
        by_words[family] = TextProcessor(hub.resolve(str(folder)))._words is not None
    assert by_words == {"bert": True, "mpnet": True, "roberta": False, "xlm-roberta": False}
    from tokenizers import AddedToken, Tokenizer

    spaced = Tokenizer.from_file(str(tmp_path / "bert" / "tokenizer.json"))
    assert splits_at_spaces(spaced)
    spaced.add_tokens([AddedToken("new york")])
    assert not splits_at_spaces(spaced)
    from tokenizers import normalizers, pre_tokenizers

    for part, other in (
        ("pre_tokenizer", pre_tokenizers.ByteLevel()),
        ("normalizer", normalizers.NFC()),
        ("normalizer", None),
    ):
        changed = Tokenizer.from_file(str(tmp_path / "bert" / "tokenizer.json"))
        setattr(changed, part, other)
        assert not splits_at_spaces(changed)


def test_long_texts_are_cut_and_short_ones_are_not():
    assert cut("a b c", 2) == "a b c"
    assert cut("word " * 1000, 10) == ("word " * 10).rstrip()
    assert cut("." * 1000, 10) == "." * 1000  # nothing to count by: left whole


def test_token_estimates_are_bounded_by_the_models_length(processor):
    assert processor.estimate_tokens(["a" * 100_000]) == 256
    assert processor.estimate_tokens(["", token_array([1, 2, 3], 1)]) == 2 + 5


def test_a_request_may_cut_from_the_left_and_to_fewer_tokens(processor):
    """As the library would with its direction or its length changed; short texts are untouched."""
    from tokenizers import Tokenizer

    long = "été one more guest [SEP] naïve-café " * 90
    texts = (long, "short", long[::-1])
    for size, left in ((256, True), (20, False), (20, True), (256, False)):
        tokenizer = Tokenizer.from_file(str(Path(processor.spec.path) / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(size, direction="left" if left else "right")
        request = EmbedRequest(
            texts, truncation_side="left" if left else None, max_tokens=None if size == 256 else size
        )
        got = [s.input_ids.tolist() for s in processor.encode(request, 1)]
        assert got == [e.ids for e in tokenizer.encode_batch(list(texts))], (size, left)
    ids = np.arange(1000, 1400, dtype=np.int32)
    (cut,) = processor.encode(EmbedRequest((ids,), truncation_side="left", max_tokens=7), 1)
    assert cut.input_ids.tolist() == ids[-7:].tolist()
    with pytest.raises(InputTooLong, match="at most 20"):
        processor.encode(EmbedRequest((long,), truncate=False, max_tokens=20), 1)
    with pytest.raises(InvalidInput, match=r"max_tokens is 2, of which .* take 2; allow at least 3"):
        processor.encode(EmbedRequest(("a",), max_tokens=2), 1)


def test_texts_are_clipped_to_tokens(processor):
    text = "Hilbert's hotel always has room for one more guest."
    (clipped, short) = processor.clipped((text, "room"), 5)
    assert clipped == "Hilbert's hotel always" and short == "room"
    assert len(processor.contents([clipped], is_exact=True)[0][0]) == 5
