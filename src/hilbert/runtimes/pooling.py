"""Pooling and what follows it in numpy, for graphs that end in token vectors ``[B, S, D]``.

The twin of `programs.heads` where there is no torch. Everything is float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hilbert.core import DenseModule, LayerNormModule, ModelSpec, NormalizeModule, PoolingMode, PoolingModule
from hilbert.core.request import FloatArray
from hilbert.errors import UnsupportedArchitecture, WeightMismatch

_ACTIVATIONS = ("", "Identity", "Tanh", "ReLU")


class PoolingChain:
    """A model's pooling and the modules behind it.

    Raises:
        UnsupportedArchitecture: it has no pooling, or a module that only torch knows.
        WeightMismatch: a module's weights are missing.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.pooling is None:
            raise UnsupportedArchitecture(f"{spec.model_id}: it has no pooling module")
        self._pooling: PoolingModule = spec.pooling
        after = [m for m in spec.modules if isinstance(m, DenseModule | LayerNormModule | NormalizeModule)]
        self._chain = [_Head(spec, module) for module in after]

    def __call__(self, hidden: FloatArray, mask: np.ndarray, skips: np.ndarray) -> FloatArray:
        """Pool and project.

        Args:
            hidden: ``[B, S, D]``.
            mask: ``[B, S]`` bool, true for real tokens.
            skips: ``[B]``: leading tokens that the model may keep out of the pool.
        Returns:
            ``[B, E]``.
        """
        if not self._pooling.include_prompt:
            mask = mask & (np.arange(mask.shape[1]) >= skips[:, None])
        rows = np.concatenate([_pool(hidden, mask, mode) for mode in self._pooling.modes], axis=1)
        for head in self._chain:
            rows = head(rows)
        return rows


def _pool(hidden: Any, mask: np.ndarray, mode: PoolingMode) -> Any:
    """``[B, S, D]`` and a mask ``[B, S]`` → ``[B, D]`` float32."""
    if mode is PoolingMode.CLS:
        return hidden[:, 0]
    if mode is PoolingMode.LAST:
        last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        return hidden[np.arange(len(hidden)), last]
    if mode is PoolingMode.MAX:
        return np.where(mask[..., None], hidden, -np.inf).max(axis=1).astype(np.float32)
    weights = mask.astype(np.float32)
    if mode is PoolingMode.WEIGHTED_MEAN:
        weights *= np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    total = np.einsum("bsd,bs->bd", hidden, weights)
    count = weights.sum(axis=1, keepdims=True)
    mean: FloatArray = total / (np.sqrt(count) if mode is PoolingMode.MEAN_SQRT else count)
    return mean


class _Head:
    """A module behind the pooling, in numpy."""

    def __init__(self, spec: ModelSpec, module: DenseModule | LayerNormModule | NormalizeModule) -> None:
        self._module = module
        if isinstance(module, NormalizeModule):
            return
        from safetensors.numpy import load_file

        file = Path(spec.path) / module.folder / "model.safetensors"
        if not file.is_file():
            raise WeightMismatch(f"{spec.model_id}: {module.folder} holds no model.safetensors")
        tensors = {k.rpartition(".")[2]: v.astype(np.float32) for k, v in load_file(file).items()}
        self._weight, self._bias = tensors["weight"], tensors.get("bias")
        if isinstance(module, DenseModule) and module.activation.rpartition(".")[2] not in _ACTIVATIONS:
            raise UnsupportedArchitecture(
                f"{spec.model_id}: activation {module.activation} needs torch: pip install 'hilbert[torch]'"
            )

    def __call__(self, rows: FloatArray) -> FloatArray:
        """``[B, D]`` → ``[B, E]``."""
        if isinstance(self._module, NormalizeModule):
            normal: FloatArray = rows / np.maximum(
                np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)
            )
            return normal
        bias = np.float32(0) if self._bias is None else self._bias
        if isinstance(self._module, LayerNormModule):
            centred = rows - rows.mean(axis=1, keepdims=True)
            spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(1e-5))
            scaled: FloatArray = centred / spread * self._weight + bias
            return scaled
        product: FloatArray = rows @ self._weight.T + bias
        kind = self._module.activation.rpartition(".")[2]
        return np.tanh(product) if kind == "Tanh" else np.maximum(product, 0) if kind == "ReLU" else product
