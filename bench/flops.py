"""What a forward pass costs, from the model's shape and the actual lengths; multiply-add counts as two.

Counted: the linear layers and the two attention products over real tokens. Not counted: soft-max, norms,
activations, pooling, padding. So a share of the ceiling is work that a perfect engine would have to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EncoderShape:
    """A BERT-like encoder."""

    num_layers: int
    hidden_size: int
    intermediate_size: int

    @classmethod
    def of(cls, folder: Path) -> EncoderShape:
        config = json.loads((folder / "config.json").read_text())
        return cls(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])

    def flop(self, lengths: Iterable[int]) -> float:
        """FLOP of one forward pass over sequences of these lengths.

        Per layer and token: query, key, value and output ``8 D²``, the two feed-forward layers ``4 D I``; per
        layer and sequence of n tokens: ``Q Kᵀ`` and ``P V``, ``4 n² D``.
        """
        d, i = self.hidden_size, self.intermediate_size
        per_token = 8 * d * d + 4 * d * i
        return float(self.num_layers * sum(n * per_token + 4 * n * n * d for n in lengths))
