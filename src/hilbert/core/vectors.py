"""What happens to a row after the model: cut to `dimensions`, then normalise. Pure numpy."""

from __future__ import annotations

import numpy as np

from hilbert.core.request import FloatArray


def finish_vectors(rows: FloatArray, dimensions: int | None, normalize: bool) -> FloatArray:
    """Cut rows to their first `dimensions` numbers and scale them to length 1.

    Args:
        rows: ``[N, E]`` float32, as the model's chain returns them before its Normalize.
        dimensions: how many numbers to keep; None keeps all.
        normalize: divide each row by its L2 norm (a zero row stays zero).
    Returns:
        ``[N, dimensions or E]`` float32, C-contiguous; may share memory with `rows`.
    Source: torch.nn.functional.normalize with eps 1e-12, as sentence-transformers' Normalize uses it.
    """
    vectors = rows if dimensions is None else rows[:, :dimensions]
    if normalize:
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors = vectors / np.maximum(norms, np.float32(1e-12))[:, None]
    return np.ascontiguousarray(vectors, dtype=np.float32)
