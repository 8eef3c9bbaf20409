"""Parts of a text that are tokenized apart have the tokens of the whole: at every seam, in every pipeline."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hilbert.processors.seams import _SPLITTINGS, Seams

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = "aKst1'.>:;_< \n\r\t\u00a0é\u0301\u0308́K;空🏨"
ADDED = ("<s>", "\n", "\n\n", "<s>>", "st.")


def eager(pre_tokenizer: Any, normalizer: Any = None, added: tuple[Any, ...] = ADDED) -> Tokenizer:
    """Byte-level, and every two neighbours merge, so that nothing but the splitting keeps them apart."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "▁"]
    pairs = list(itertools.product(letters, letters))
    random.Random(0).shuffle(pairs)
    vocab = {piece: i for i, piece in enumerate([*letters, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(t, normalized=t == "st.") if isinstance(t, str) else t for t in added])
    return tokenizer


def split(pattern: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


PIPELINES: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: eager(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt-4": lambda: eager(split(GPT4)),
    "qwen": lambda: eager(split(GPT4.replace("{1,3}", "")), normalizers.NFC()),
    "one piece": lambda: eager(pre_tokenizers.Split(" ", "merged_with_previous")),
    "metaspace": lambda: eager(pre_tokenizers.Metaspace("▁", "first"), normalizers.NFKC()),
}


@pytest.fixture(scope="module", params=PIPELINES)
def pipeline(request: Any) -> tuple[str, Tokenizer, Seams]:
    tokenizer = PIPELINES[request.param]()
    return request.param, tokenizer, Seams.of(tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@settings(max_examples=300, deadline=None)
@given(st.text(ALPHABET, max_size=14), st.text(ALPHABET, max_size=14))
@example("a st.", ".>s't")
@example("a\n", "\n.a<s>>.")
def test_at_every_seam_the_parts_have_the_tokens_of_the_whole(pipeline, left, right):
    _, tokenizer, seams = pipeline
    text = left + "t:<s>" + right
    whole = ids(tokenizer, text)
    for place in range(1, len(text)):
        if seams.holds(text, place):
            assert ids(tokenizer, text[:place]) + ids(tokenizer, text[place:]) == whole, (text, place)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=9), min_size=1, max_size=4), st.text(ALPHABET, max_size=9))
def test_what_texts_share(pipeline, documents, query):
    name, tokenizer, seams = pipeline
    texts = [f"<s>Query>\n{query}\n<s>Document>: {d}\nAnswer: <s>\n" for d in documents]
    head, tail = seams.shared(texts)
    assert head + tail <= min(map(len, texts))
    for text in texts:
        parts = (text[:head], text[head : len(text) - tail], text[len(text) - tail :])
        assert parts[0] == texts[0][:head] and parts[2] == texts[0][len(texts[0]) - tail :]
        assert [i for part in parts for i in ids(tokenizer, part)] == ids(tokenizer, text)
    if len(documents) > 1:
        splits_words = name in ("gpt-2", "gpt-4", "qwen")
        before = f"<s>Query>\n{query}\n<s>Document>: "
        assert head >= len(before) - len(">: " if splits_words else "<s>Document>: ")
        if head <= len(before):  # else the documents share more, and perhaps their ends
            assert tail >= len(": <s>\n" if splits_words else "<s>\n")


def test_the_library_writes_patterns_as_they_are_known_here():
    assert {GPT4, GPT4.replace("{1,3}", "")} == _SPLITTINGS


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: eager(pre_tokenizers.ByteLevel(add_prefix_space=True), added=()),
        lambda: eager(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), added=()),
        lambda: eager(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC(), added=()),
        lambda: eager(split(GPT4 + "|"), added=()),
        lambda: eager(split(r"\S+"), added=()),
        lambda: eager(
            pre_tokenizers.ByteLevel(add_prefix_space=False), added=(AddedToken("x", lstrip=True),)
        ),
        lambda: eager(
            pre_tokenizers.ByteLevel(add_prefix_space=False), added=(AddedToken("x", rstrip=True),)
        ),
        lambda: eager(
            pre_tokenizers.ByteLevel(add_prefix_space=False), added=(AddedToken("x", single_word=True),)
        ),
    ],
    ids=range(8),
)
def test_where_nothing_is_certain_nothing_is_cut(tokenizer):
    assert Seams.of(tokenizer()).shared(["Query. x: a", "Query. x: b"]) == (0, 0)


def test_one_text_shares_nothing():
    assert Seams.of(eager(split(GPT4))).shared(["<s>a. b"]) == (0, 0)
