"""The texts that every system under test receives: word windows cut from real files, seeded.

The sources are Python's own standard library and, where present, the licence texts of the system. The
lengths are drawn in the model's own tokens, special tokens included. Two machines with different
Python versions cut different windows, so a result records the digest and the token statistics of
what it used. The texts never leave this machine.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

SEED = 2
MAX_SOURCE_BYTES = 6_000_000
SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Workload:
    """Texts in arrival order, with their lengths in tokens (special tokens included)."""

    name: str
    texts: list[str]
    num_tokens: list[int]

    @property
    def total_tokens(self) -> int:
        return sum(self.num_tokens)

    def describe(self) -> dict[str, object]:
        """What a result file records of a workload."""
        lengths = sorted(self.num_tokens)
        return {
            "texts": len(lengths),
            "tokens_mean": round(self.total_tokens / len(lengths), 1),
            "tokens_min": lengths[0],
            "tokens_p50": lengths[len(lengths) // 2],
            "tokens_p90": lengths[len(lengths) * 9 // 10],
            "tokens_max": lengths[-1],
            "sha256": hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16],
        }


def _source_files() -> list[Path]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    python = sorted(p for p in stdlib.glob("*.py") if p.is_file())
    licences = sorted(p for p in Path("/usr/share/common-licenses").glob("*") if p.is_file())
    copyrights = sorted(Path("/usr/share/doc").glob("*/copyright"))
    return [*python, *licences, *copyrights]


class Corpus:
    """Words of the source files with their token counts; cuts windows of a wanted length."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @cached_property
    def _words(self) -> tuple[list[str], list[int]]:
        words: list[str] = []
        size = 0
        for path in _source_files():
            text = path.read_text(encoding="utf-8", errors="ignore")
            size += len(text)
            # A "word" of 40 characters and more is a table or a key: it says nothing about real text.
            words.extend(w for w in text.split() if len(w) < 40)
            if size > MAX_SOURCE_BYTES:
                break
        # BERT's pre-tokenizer splits at white space, so counts of words add up to the count of a text.
        unique = sorted(set(words))
        encoded = self.tokenizer.encode_batch_fast(unique, add_special_tokens=False)
        count = {w: len(e.ids) for w, e in zip(unique, encoded, strict=True)}
        words = [w for w in words if count[w]]
        return words, [count[w] for w in words]

    def window(self, rng: random.Random, target: int) -> str:
        """A run of words of at most `target` tokens, special tokens included (at least one word)."""
        words, counts = self._words
        start = rng.randrange(len(words) - 600)
        left = target - SPECIAL_TOKENS
        picked: list[str] = []
        for i in range(start, start + 600):
            if counts[i] > left:
                # One long word must not end the text early: leave it out and go on.
                if left <= 1:
                    break
                continue
            picked.append(words[i])
            left -= counts[i]
            if left <= 0:
                break
        return " ".join(picked) or "hilbert"

    def cut(self, name: str, lengths: list[int], seed: int) -> Workload:
        rng = random.Random(seed)
        texts = [self.window(rng, n) for n in lengths]
        encoded = self.tokenizer.encode_batch_fast(texts)
        return Workload(name, texts, [len(e.ids) for e in encoded])


def lognormal_lengths(count: int, mean: float, sigma: float, low: int, high: int, seed: int) -> list[int]:
    """Clipped lognormal lengths whose mean *after* clipping is `mean`."""
    rng = random.Random(seed)
    normals = [rng.gauss(0.0, sigma) for _ in range(count)]
    below, above = 0.01, 10_000.0
    for _ in range(60):
        scale = (below * above) ** 0.5
        got = [min(high, max(low, round(scale * 2.718281828459045**z))) for z in normals]
        if sum(got) / count < mean:
            below = scale
        else:
            above = scale
    return got


def mixed(corpus: Corpus, count: int = 1000, seed: int = SEED) -> Workload:
    """Lognormal lengths, mean 98 tokens, 5 to 256: what a retrieval index sees."""
    return corpus.cut("mixed", lognormal_lengths(count, 98, 0.8, 5, 256, seed), seed)


def short(corpus: Corpus, count: int = 2000, seed: int = SEED) -> Workload:
    """Mean 15 tokens: queries and titles."""
    return corpus.cut("short", lognormal_lengths(count, 15, 0.4, 4, 48, seed + 1), seed + 1)


def even(corpus: Corpus, count: int = 500, seed: int = SEED) -> Workload:
    """All about 130 tokens: the case in which padding costs nothing."""
    rng = random.Random(seed + 2)
    return corpus.cut("128", [rng.randint(125, 135) for _ in range(count)], seed + 2)


def random_requests(corpus: Corpus, count: int, seed: int = SEED) -> list[list[str]]:
    """Requests of 1 to 8 texts (nine of ten are single) of 3 to 256 tokens: shapes in all variety.

    The texts come from a pool of 4,000, as memory grows with the variety of shapes, not of words.
    """
    rng = random.Random(seed + 3)
    lengths = [round(3 * (256 / 3) ** rng.random()) for _ in range(4000)]
    pool = corpus.cut("random", lengths, seed + 3).texts
    return [rng.choices(pool, k=1 if rng.random() < 0.9 else rng.randint(2, 8)) for _ in range(count)]


def even_groups(workload: Workload, size: int, seed: int = SEED) -> list[list[str]]:
    """Texts in groups of `size` with about the same number of tokens each.

    A slow server gets through a few requests only; with equal groups it sees the same work as a fast one.
    """
    rng = random.Random(seed + 4)
    by_length = sorted(zip(workload.num_tokens, workload.texts, strict=True))
    num_groups = len(by_length) // size
    groups: list[list[str]] = [[] for _ in range(num_groups)]
    for row in range(size):
        texts = [text for _, text in by_length[row * num_groups : (row + 1) * num_groups]]
        rng.shuffle(texts)
        for group, text in zip(groups, texts, strict=True):
            group.append(text)
    for group in groups:
        rng.shuffle(group)
    return groups


def write_bodies(path: Path, requests: list[list[str]], model: str) -> Path:
    """One JSON body per line, the form that both load generators read."""
    lines = [json.dumps({"model": model, "input": texts}) for texts in requests]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
