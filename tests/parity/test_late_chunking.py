"""Late chunking against transformers: its token vectors, averaged over the characters of each chunk.

The formula is that of Günther et al. 2024 (arXiv 2409.04701): one pass over the whole text, then the mean
of the token vectors that lie in a chunk; for long texts windows that overlap, whose first tokens were seen
before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hilbert import Model
from hilbert.errors import InputTooLong, InvalidInput, UnsupportedTask
from hilbert.hub import resolve
from hilbert.processors import ChunkProcessor, TextProcessor, chunks
from hilbert.processors.chunks import Window
from hilbert.testing.models import tiny_model

CHUNKS = ["The hotel is full.", "Its owner, Hilbert, has a room. ", "Été 🌍, one more guest", "moves  on"]
TEXT = "The hotel is full. Its owner, Hilbert, has a room. Été 🌍, one more guest moves  on"
# Where each chunk ends in it.
ENDS = [18, 51, 72, 82]
PROMPT = "passage: "


def reference(folder: Path, text: str, ends: list[int], prompt: str = "", limit: int = 10**9) -> np.ndarray:
    """Unit vectors of the chunks, with loops over tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    plain = tokenizer(prompt + text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
    framed, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    at = framed.index(bare[0])
    before, after = framed[:at], framed[at + len(bare) :]
    lasts = [max(end - 1, start) - len(prompt) for start, end in plain["offset_mapping"]]
    num_prompt = sum(last < 0 for last in lasts)
    head, content = before + plain["input_ids"][:num_prompt], plain["input_ids"][num_prompt:]
    room = limit - len(head) - len(after)
    chunk_of = [next(c for c, end in enumerate(ends) if last < end) for last in lasts[num_prompt:]]
    found: list[list[torch.Tensor]] = [[] for _ in ends]
    start = seen = 0
    while seen < len(content):
        window = content[start : start + room]
        with torch.no_grad():
            rows = model(torch.tensor([head + window + after])).last_hidden_state[0]
        if start == 0:
            found[0] += list(rows[: len(head)])
        for place, row in enumerate(rows[len(head) : len(head) + len(window)], start):
            if place >= seen:
                found[chunk_of[place]].append(row)
        seen = start + len(window)
        if seen == len(content):
            found[-1] += list(rows[len(rows) - len(after) :])
        start = seen - room // 8
    means = np.stack([torch.stack(rows).double().mean(0).numpy() for rows in found])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "modernbert"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, folder, pooling="mean", prompts={"document": PROMPT})
    with Model(str(folder), engine="torch", dtype="float32", cache_dir=str(folder / "cache")) as model:
        yield folder, model


def test_chunks_are_means_over_one_pass(case) -> None:
    folder, model = case
    (vectors,) = model.embed_chunks([CHUNKS])
    assert vectors.shape == (4, 64) and vectors.dtype == np.float32
    assert np.abs(vectors - reference(folder, TEXT, ENDS)).max() < 1e-5
    alone = model.embed(CHUNKS)
    assert np.abs(vectors - alone).max() > 0.01, "they have seen each other"


def test_the_prompt_stands_before_the_document_and_belongs_to_the_first_chunk(case) -> None:
    folder, model = case
    (vectors,) = model.embed_chunks([CHUNKS], input_type="document")
    assert np.abs(vectors - reference(folder, TEXT, ENDS, PROMPT)).max() < 1e-5
    (short,) = model.embed_chunks([CHUNKS], prompt=PROMPT, dimensions=16, normalize=False)
    assert short.shape == (4, 16) and not np.allclose(np.linalg.norm(short, axis=1), 1)


def test_a_document_of_one_chunk_has_the_vector_of_its_text(case) -> None:
    _, model = case
    for text in (TEXT, "a", ""):
        (vectors,) = model.embed_chunks([[text]], input_type="document")
        assert np.abs(vectors - model.embed(text, input_type="document")).max() < 1e-5


def test_a_long_document_goes_through_the_model_in_windows(case) -> None:
    folder, model = case
    chunks = [f"chunk {i} of a long story about room {i}." for i in range(60)]
    text = " ".join(chunks)
    ends = np.cumsum([len(chunk) + 1 for chunk in chunks]).tolist()
    ends = [end - 1 for end in ends]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer(text)["input_ids"]) > 3 * 128 == 3 * model.spec.max_model_len
    (vectors,) = model.embed_chunks([chunks], input_type="document")
    assert np.abs(vectors - reference(folder, text, ends, PROMPT, 128)).max() < 1e-5
    with pytest.raises(InputTooLong, match=r"documents\[0\]\[0\] has .* tokens; the model takes at most 128"):
        model.embed_chunks([chunks], truncate=False)


def test_the_prompt_is_left_out_where_the_model_says_so(tmp_path: Path) -> None:
    tiny_model("bert", tmp_path, pooling="mean", include_prompt=False, prompts={"document": PROMPT})
    with Model(str(tmp_path), engine="torch", dtype="float32", cache_dir=str(tmp_path / "cache")) as model:
        (vectors,) = model.embed_chunks([[TEXT]], input_type="document")
        assert np.abs(vectors - model.embed(TEXT, input_type="document")).max() < 1e-5
        (several,) = model.embed_chunks([CHUNKS], input_type="document")
        assert np.abs(several[1:] - reference(tmp_path, TEXT, ENDS, PROMPT)[1:]).max() < 1e-5


def test_a_prompt_that_has_a_token_more_alone_leaves_the_first_chunk_its_own(tmp_path: Path) -> None:
    tiny_model("modernbert", tmp_path, pooling="mean", include_prompt=False)
    processor = TextProcessor(resolve(str(tmp_path)))
    (document,) = ChunkProcessor(processor).encode(("a", "b"), (2,), PROMPT, True)
    (window,) = document.windows
    rows = np.eye(len(window.input_ids), dtype=np.float32)
    a, b, end = rows[-3:]
    assert len(processor.frame.after) == 1
    np.testing.assert_array_equal(document.pool([rows]), [a, (b + end) / 2])


def test_no_more_windows_are_made_than_a_request_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(input_ids: np.ndarray, first: int, end: int) -> Window:
        made.append(len(input_ids))
        return Window(input_ids, first, end)

    tiny_model("bert", tmp_path, pooling="mean")
    processor = ChunkProcessor(TextProcessor(resolve(str(tmp_path))))
    monkeypatch.setattr(chunks, "Window", counted)
    monkeypatch.setattr(chunks, "MAX_CHUNKED_TOKENS", 1000)
    with pytest.raises(InputTooLong, match="more than 1,000 tokens with their prompts"):
        processor.encode(("b " * 900, "c"), (2,), "a " * 118, True)  # 128 windows of 128 tokens
    assert sum(made) <= 1000 + 128


def test_what_cannot_be_chunked_is_refused(tmp_path: Path, case) -> None:
    _, model = case
    with pytest.raises(InvalidInput, match=r"^documents\[1\]\[1\] has no tokens of its own"):
        model.embed_chunks([["a"], ["a", "", "b"]])
    with pytest.raises(InvalidInput, match=r"room for -?\d+ of its 128 tokens; late chunking needs 8"):
        model.embed_chunks([["one more guest"] * 50], prompt="long " * 130)
    tiny_model("bert", tmp_path, pooling="cls")
    with (
        Model(str(tmp_path), engine="torch", dtype="float32", cache_dir=str(tmp_path / "cache")) as other,
        pytest.raises(UnsupportedTask, match="it pools by cls"),
    ):
        other.embed_chunks([["a", "b"]])
