"""Linear layers of a transformer in 8 bits, for torch: int8 weights anywhere, fp8 on GPUs that multiply it.

Decides how a layer is rounded and how it multiplies. Weights have a scale per output, activations one per
token, so that a token's result does not depend on its neighbours. Pooling and heads are never handed to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FP8 = torch.float8_e4m3fn
# GPUs from here on multiply fp8 (Ada).
FP8_CAPABILITY = (8, 9)
# The matrix product of fp8 takes sides that are multiples of this.
_FP8_MULTIPLE = 16


class Int8Linear(nn.Module):
    """Weights in int8, symmetric, one scale per output; activations as they come."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        self.bias = layer.bias

    def forward(self, rows: Tensor) -> Tensor:
        """``[…, D]`` → ``[…, E]``."""
        product = linear(rows, self.weight.to(rows.dtype)) * self.scale
        return product if self.bias is None else product + self.bias


class Fp8Linear(nn.Module):
    """Weights and activations in e4m3; each token has its own scale, the weights of each output theirs."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        self.register_buffer("scale", _fp8_scale(weight).t().contiguous())  # [1, E]
        self.register_buffer("weight", (weight / self.scale.t()).to(FP8))
        self.bias = layer.bias

    def forward(self, rows: Tensor) -> Tensor:
        """``[…, D]`` → ``[…, E]`` in the dtype that came."""
        flat = rows.reshape(-1, rows.shape[-1]).float()
        scale = _fp8_scale(flat)  # [T, 1]
        product = torch._scaled_mm(
            (flat / scale).to(FP8), self.weight.t(), scale, self.scale, out_dtype=torch.bfloat16
        ).to(rows.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*rows.shape[:-1], -1)


def quantize_linears(model: nn.Module, dtype: str) -> int:
    """Replace the linear layers of a transformer, in place.

    Args:
        dtype: ``"int8"`` or ``"fp8"``.

    Returns:
        How many layers were replaced; fp8 leaves those alone whose sides are no multiples of 16.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            if dtype == "fp8" and (child.in_features % _FP8_MULTIPLE or child.out_features % _FP8_MULTIPLE):
                continue
            setattr(parent, name, Int8Linear(child) if dtype == "int8" else Fp8Linear(child))
            count += 1
    return count


def _fp8_scale(rows: Tensor) -> Tensor:
    """``[N, D]`` → ``[N, 1]`` float32: what each row is divided by to fill the range."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / torch.finfo(FP8).max
