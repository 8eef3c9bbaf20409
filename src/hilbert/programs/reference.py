"""Reference vectors by sentence-transformers, in a process of its own: what `hilbert verify` compares with.

``python -m hilbert.programs.reference``: an order as JSON on stdin, one ``.npy`` on stdout.
"""

from __future__ import annotations

import sys
import warnings

import msgspec
import numpy as np


class ReferenceOrder(msgspec.Struct, frozen=True):
    """Texts to embed with the model in `path`, in float32 on the CPU."""

    path: str
    texts: list[str]
    prompt: str | None = None
    trust_remote_code: bool = False


def reference(order: ReferenceOrder) -> np.ndarray:
    """``[N, E]`` float32 as `SentenceTransformer.encode` returns them, one text at a time: no padding."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        order.path,
        device="cpu",
        trust_remote_code=order.trust_remote_code,
        local_files_only=True,
        model_kwargs={"dtype": "float32"},
    )
    rows = model.encode(
        order.texts, prompt=order.prompt, batch_size=1, convert_to_numpy=True, show_progress_bar=False
    )
    return np.asarray(rows, dtype=np.float32)


def main() -> int:
    """Read an order, write an array."""
    warnings.simplefilter("ignore")
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=ReferenceOrder)
    np.save(sys.stdout.buffer, reference(order), allow_pickle=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
