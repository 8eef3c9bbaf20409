"""What comes after the transformer: pooling, projections, norms, as the repository's modules say.

A head sees ``(hidden_states [T, D], Layout)`` and returns ``[B, E]`` float32, before the final
normalisation: `dimensions` and normalisation follow per request, outside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hilbert.core import (
    DenseModule,
    LayerNormModule,
    ModelSpec,
    Module,
    NormalizeModule,
    PoolingMode,
    PoolingModule,
)
from hilbert.errors import UnsupportedArchitecture, WeightMismatch
from hilbert.programs.layout import Layout
from hilbert.programs.load import load_tensors


def pool(hidden_states: Tensor, layout: Layout, mode: PoolingMode) -> Tensor:
    """One vector per sequence.

    Args:
        hidden_states: ``[T, D]``, any float dtype.
    Returns:
        ``[B, D]`` float32.
    Source: equals sentence-transformers' Pooling; tests/parity/test_every_family.py
    """
    if mode is PoolingMode.CLS:
        return layout.first(hidden_states).float()
    if mode is PoolingMode.LAST:
        return layout.last(hidden_states).float()
    if mode is PoolingMode.MAX:
        return layout.max(hidden_states).float()
    weighted = mode is PoolingMode.WEIGHTED_MEAN
    total, count = layout.sum(hidden_states, weighted), layout.count(weighted)
    return total / (count.sqrt() if mode is PoolingMode.MEAN_SQRT else count)


class DenseHead(nn.Module):
    """The chain of modules after the transformer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.pooling = spec.pooling
        after = [m for m in spec.modules if not isinstance(m, PoolingModule)]
        self.chain = nn.ModuleList(_module(spec, m) for m in after)

    def forward(self, hidden_states: Tensor, layout: Layout) -> Tensor:
        """``[T, D]`` → ``[B, E]`` float32."""
        if self.pooling is None:
            raise UnsupportedArchitecture("a dense vector needs a pooling module, and the model has none")
        rows = torch.cat([pool(hidden_states, layout, mode) for mode in self.pooling.modes], dim=-1)
        for module in self.chain:
            rows = module(rows)
        return rows


class _Normalize(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=-1)


def _module(spec: ModelSpec, module: Module) -> nn.Module:
    """The torch module of one entry, in float32: it costs nothing beside the transformer."""
    if isinstance(module, NormalizeModule):
        return _Normalize()
    if isinstance(module, DenseModule):
        linear = nn.Linear(module.in_features, module.out_features, module.bias)
        _fill(spec, linear, module.folder, "linear.")
        return nn.Sequential(linear, _activation(module.activation))
    if isinstance(module, LayerNormModule):
        norm = nn.LayerNorm(module.dimension)
        _fill(spec, norm, module.folder, "norm.")
        return norm
    raise UnsupportedArchitecture(f"{spec.model_id}: no head for {type(module).__name__}")


def _fill(spec: ModelSpec, module: nn.Module, folder: str, prefix: str) -> None:
    tensors = load_tensors(spec, folder)
    state = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightMismatch(f"{spec.model_id}: {folder} does not fit its config.json: {error}") from error
    module.requires_grad_(False)


def _activation(name: str) -> nn.Module:
    """An activation by its dotted torch name; nothing outside ``torch.nn`` is looked up."""
    if not name:
        return nn.Identity()
    short = name.rsplit(".", 1)[-1]
    found = getattr(nn, short, None)
    if not name.startswith("torch.nn.") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UnsupportedArchitecture(f"activation {name!r} is not one of torch.nn")
    return found()
