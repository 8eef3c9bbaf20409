"""The one real model: all-MiniLM-L6-v2 as served, against sentence-transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hilbert

STRANGE = [
    "",
    "a",
    " ",
    "\t\n  \r\n",
    "\N{GRINNING FACE}\N{FAMILY}\N{ROCKET}" * 5,
    "before\0after",
    "שלום עולם",
    "مرحبا بالعالم",
    "e\u0301 \ufeff \u200b zero width",
    "x" * 100_000,
    "word " * 20_000,
    "UPPER and lower",
]


def corpus(count: int) -> list[str]:
    """Windows of many lengths cut from real prose: the standard library's own documentation."""
    import argparse
    import asyncio
    import decimal

    words = " ".join(inspect.getsource(m) for m in (argparse, decimal, asyncio.events)).split()
    random = np.random.default_rng(11)
    lengths = np.clip(np.exp(random.normal(3.6, 0.9, count)), 1, 300).astype(int)
    starts = random.integers(0, len(words) - 400, count)
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="module")
def reference() -> object:
    from sentence_transformers import SentenceTransformer

    from hilbert.hub import resolve

    return SentenceTransformer(resolve(None).path, device="cpu")


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hilbert.Model]:
    cache: Path = tmp_path_factory.mktemp("cache")
    with hilbert.Model(dtype="float32", cache_dir=str(cache)) as model:
        yield model


def test_float32_equals_sentence_transformers(reference: object, float32: hilbert.Model) -> None:
    texts = [*STRANGE, *corpus(60)]
    expected = reference.encode(texts, batch_size=1, show_progress_bar=False)  # type: ignore[attr-defined]
    ours = float32.embed(texts)
    assert ours.shape == (len(texts), 384)
    assert ours.dtype == np.float32
    worst = np.abs(ours - expected).max()
    print(f"largest difference {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.slow
def test_default_dtype_keeps_its_cosine(reference: object, tmp_path: Path) -> None:
    texts = [*STRANGE, *corpus(300)]
    expected = reference.encode(texts, batch_size=1, show_progress_bar=False)  # type: ignore[attr-defined]
    with hilbert.Model(cache_dir=str(tmp_path)) as model:
        ours = model.embed(texts)
        alone = np.concatenate([model.embed([t]) for t in texts[:40]])
    worst = (ours * expected).sum(axis=1).min()
    company = (ours[:40] * alone).sum(axis=1).min()
    print(f"worst cosine {worst:.6f}; the same text alone and in company {company:.6f}")
    assert worst >= 0.9999


@pytest.mark.slow
def test_company_and_order_change_nothing(float32: hilbert.Model) -> None:
    texts = [*STRANGE, *corpus(500 - len(STRANGE))]
    together = float32.embed(texts)
    shuffled = np.random.default_rng(2).permutation(len(texts))
    permuted = float32.embed([texts[i] for i in shuffled.tolist()])
    np.testing.assert_allclose(permuted, together[shuffled], atol=2e-6, rtol=0)
    for i in range(0, 60, 3):
        alone = float32.embed([texts[i]])
        np.testing.assert_allclose(alone[0], together[i], atol=2e-6, rtol=0)


@pytest.mark.slow
def test_int8_keeps_its_cosine(float32: hilbert.Model, tmp_path: Path) -> None:
    """And the artifact is made once, is half as large, and is no other dtype's."""
    texts = corpus(300)
    long = [text for text in texts if len(text.split()) >= 8]
    expected = float32.embed(long)
    with hilbert.Model(dtype="int8", cache_dir=str(tmp_path)) as model:
        worst = (model.embed(long) * expected).sum(axis=1).min()
    print(f"worst cosine {worst:.4f}")
    assert 0.995 <= worst < 0.9999, "lower is wrong, higher was never quantised"
    (artifact,) = (tmp_path / "artifacts").iterdir()
    assert (artifact / "model.bin").stat().st_size < 25_000_000
