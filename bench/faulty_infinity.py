"""`infinity_emb` whose torch engine fails on demand; run by `faults.py` in Infinity's own environment.

A text with ☠ fails where it is tokenized, one with ! where it is computed, one with & hangs there: the same
places as in tests/chaos/dangerous.py.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from infinity_emb.cli import cli  # type: ignore[import-not-found]
from infinity_emb.transformer.embedder import sentence_transformer  # type: ignore[import-not-found]

Embedder = sentence_transformer.SentenceTransformerPatched
encode_pre, encode_core = Embedder.encode_pre, Embedder.encode_core
marks: set[str] = set()


def faulty_pre(self: Any, sentences: list[str]) -> Any:
    words = " ".join(map(str, sentences))
    if "☠" in words:
        raise RuntimeError("the tokenizer fails")
    marks.update(mark for mark in "!&" if mark in words)
    return encode_pre(self, sentences)


def faulty_core(self: Any, features: Any) -> Any:
    if "!" in marks:
        marks.clear()
        raise RuntimeError("the runtime fails")
    if "&" in marks:
        marks.clear()
        threading.Event().wait()
    return encode_core(self, features)


if __name__ == "__main__":
    Embedder.encode_pre, Embedder.encode_core = faulty_pre, faulty_core
    sys.exit(cli())
