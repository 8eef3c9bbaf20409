"""Static embeddings: a table of token vectors, averaged. numpy alone; microseconds a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hilbert.core import Batch, BatchOutput, DenseModule, ModelSpec, OutputType
from hilbert.core.request import FloatArray
from hilbert.errors import UnsupportedArchitecture, WeightMismatch
from hilbert.runtimes.base import RuntimeInfo

# Names that the table goes by: sentence-transformers' StaticEmbedding, then model2vec.
_TABLES = ("embedding.weight", "embeddings")


class StaticRuntime:
    """Serves sentence-transformers' StaticEmbedding and model2vec folders."""

    num_slots = 1

    def __init__(self, spec: ModelSpec) -> None:
        if any(isinstance(m, DenseModule) for m in spec.modules):
            raise UnsupportedArchitecture(f"{spec.model_id}: a Dense layer behind a static embedding")
        self._table, self._weights, self._mapping = _load_table(spec)
        self.info = RuntimeInfo(
            engine="numpy",
            device="cpu",
            dtype="float32",
            program="static",
            reason="a table of token vectors is averaged; there is no transformer to run",
            dimensions=spec.dimensions,
            outputs=frozenset({OutputType.DENSE}),
            max_batch_tokens=65_536,  # an average of rows: bounded only to keep batches short
        )

    def prepare(self, batch: Batch) -> Batch:
        """Nothing to lay out."""
        return batch

    def num_padding_tokens(self, prepared: Batch) -> int:
        """See `Runtime.num_padding_tokens`."""
        return 0

    def run(self, prepared: Batch) -> BatchOutput:
        """Average the rows of each sequence; a sequence without tokens is the zero vector."""
        rows = np.zeros((len(prepared.sequences), self._table.shape[1]), np.float32)
        for row, sequence in zip(rows, prepared.sequences, strict=True):
            if len(sequence.input_ids) == 0:
                continue
            ids = sequence.input_ids
            vectors = self._table[ids if self._mapping is None else self._mapping[ids]]
            if self._weights is not None:
                vectors = vectors * self._weights[ids][:, None]
            row[:] = vectors.mean(axis=0, dtype=np.float32)
        return BatchOutput(dense=rows)

    def close(self) -> None:
        """Forget the table."""
        self._table = np.zeros((0, 0), np.float32)


def _load_table(spec: ModelSpec) -> tuple[FloatArray, FloatArray | None, np.ndarray | None]:
    """The table ``[V, E]``, and model2vec's optional weight and row of each token."""
    from safetensors.numpy import load_file

    name = spec.weights[0] if spec.weights else "model.safetensors"
    tensors = load_file(Path(spec.path) / spec.transformer_folder / name)
    for key in _TABLES:
        if key in tensors:
            table = np.ascontiguousarray(tensors[key], dtype=np.float32)
            weights, mapping = tensors.get("weights"), tensors.get("mapping")
            return table, None if weights is None else weights.astype(np.float32), mapping
    raise WeightMismatch(f"{spec.model_id}: {name} holds none of {', '.join(_TABLES)}: {sorted(tensors)[:5]}")
