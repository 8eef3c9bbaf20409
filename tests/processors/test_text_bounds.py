"""What a request may cost before it is refused: characters, prompts included."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilbert.core import EmbedRequest
from hilbert.errors import InputTooLong
from hilbert.hub import resolve
from hilbert.processors import TextProcessor
from hilbert.processors import text as text_module
from hilbert.testing.models import tiny_model


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextProcessor:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return TextProcessor(resolve(str(tiny_model(request.param, folder))))


def test_a_text_of_too_many_characters_is_refused_by_index(processor: TextProcessor) -> None:
    inputs = ("fine", "a" * (text_module.MAX_TEXT_CHARS + 1))
    with pytest.raises(InputTooLong, match=r"input\[1\] has 1,000,001 characters") as raised:
        processor.encode(EmbedRequest(inputs), 1)
    assert raised.value.index == 1


def test_the_prompt_counts_for_every_text(processor: TextProcessor) -> None:
    with pytest.raises(InputTooLong, match="200 inputs have"):
        processor.encode(EmbedRequest(("a",) * 200, prompt="b" * 500_000), 1)
    with pytest.raises(InputTooLong, match=r"input\[0\]"):
        processor.encode(EmbedRequest(("a",), prompt="b" * 1_000_000), 1)


def test_big_requests_are_tokenized_in_slices(
    processor: TextProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tuple(f"the packed row {i} of a query" for i in range(50))
    whole = processor.encode(EmbedRequest(texts, prompt="short: "), 1)
    monkeypatch.setattr(text_module, "MAX_TEXT_CHARS", 100)
    sizes: list[int] = []
    tokenize = processor._encode_by_words
    monkeypatch.setattr(
        processor, "_encode_by_words", lambda t, *rest: sizes.append(len(t)) or tokenize(t, *rest)
    )
    sliced = processor.encode(EmbedRequest(texts, prompt="short: "), 1)
    assert max(sizes) <= 3
    assert [s.index for s in sliced] == list(range(50))
    assert all((a.input_ids == b.input_ids).all() for a, b in zip(whole, sliced, strict=True))


def test_admission_sees_the_prompt_and_what_is_not_cut(processor: TextProcessor) -> None:
    inputs = ("a",) * 100
    assert processor.estimate_tokens(inputs, 4_000) > 20 * processor.estimate_tokens(inputs)
    long = ("a " * 100_000,)
    assert processor.estimate_tokens(long) <= 128
    assert processor.estimate_tokens(long, truncate=False) > 10_000
    assert processor.is_small(inputs)
    assert not processor.is_small(inputs, 1_000)
