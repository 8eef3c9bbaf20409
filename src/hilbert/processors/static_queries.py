"""Sparse queries without inference: each token id of a query counts once, with a fixed weight.

The weights stand in for a transformer on the query's side alone; documents go through one. Such a query
never reaches a device.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from hilbert.core import EmbedRequest, ModelSpec, SparseVector
from hilbert.errors import WeightMismatch
from hilbert.processors.text import TextProcessor


class StaticQueries:
    """Weighs the queries of one model. Any number of threads may use it at once.

    Attributes:
        texts: tokenizes queries as the weights were made for: without special tokens.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Read the weights and their tokenizer.

        Args:
            spec: a model with `static_queries`.
        Raises:
            WeightMismatch: the file holds no weights for tokens.
            ModelUnavailable: there is no tokenizer.
        """
        from safetensors.numpy import load_file

        assert spec.static_queries is not None
        folder = Path(spec.path) / spec.static_queries.folder
        weights = load_file(folder / "model.safetensors").get("weight")
        if weights is None or weights.ndim != 1:
            raise WeightMismatch(f"{spec.model_id}: {folder.name} holds no vector of token weights")
        self._weights = weights.astype(np.float32)
        self._is_default = spec.static_queries.is_default
        table = msgspec.structs.replace(
            spec,
            kind="static",
            transformer_folder=spec.static_queries.folder,
            max_model_len=spec.static_queries.max_len,
            vocab_size=len(weights),
            static_queries=None,
            chat=None,
        )
        self.texts = TextProcessor(table)

    def takes(self, request: EmbedRequest) -> bool:
        """Whether the inputs are queries."""
        if request.input_type is None:
            return request.prompt_name == "query" or self._is_default
        return request.input_type == "query"

    def encode(self, request: EmbedRequest) -> tuple[tuple[SparseVector, ...], int]:
        """The vectors of all inputs, in order, and how many tokens they have.

        Raises as `TextProcessor.encode` does. Source: sentence-transformers' SparseStaticEmbedding.
        """
        sequences = self.texts.encode(request, 0)
        return tuple(self._vector(s.input_ids) for s in sequences), sum(s.num_tokens for s in sequences)

    def _vector(self, input_ids: np.ndarray) -> SparseVector:
        token_ids = np.unique(input_ids).astype(np.int32)
        weights = self._weights[token_ids]
        return SparseVector(token_ids[weights != 0], weights[weights != 0])
