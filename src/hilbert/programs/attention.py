"""The one attention function that transformers calls in place of its own.

Registered under `NAME` once; any architecture whose attention goes through transformers'
`AttentionInterface` then runs packed, with no model code of ours. The layout of the batch that is
being computed is a property of the thread that computes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from hilbert.programs.layout import Layout

NAME = "hilbert_packed"

_current = threading.local()


@contextmanager
def using(layout: Layout) -> Iterator[None]:
    """Attention calls of this thread attend by `layout` until the block ends."""
    _current.layout = layout
    try:
        yield
    finally:
        _current.layout = None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a packed batch.

    Args:
        module: the attention layer; says whether it is causal where the call does not.
        query: ``[1, H, T, d]``; `key` and `value` ``[1, K, T, d]``.
        attention_mask: always None here: `no_mask` builds none.
        scaling: factor on the scores; ``d ** -0.5`` where absent.
        dropout: ignored, the models are in inference mode.
        is_causal: overrides the module's own.
        sliding_window: tokens with ``|i - j| < sliding_window`` see each other.
        kwargs: what else an architecture passes; a soft cap is refused, the rest has no bearing.
    Returns:
        ``[1, T, H, d]`` and no weights.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("soft-capped attention cannot run packed")
    layout: Layout = _current.layout
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    rows = layout.attend(
        query.transpose(1, 2)[0],
        key.transpose(1, 2)[0],
        value.transpose(1, 2)[0],
        scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        causal=causal,
        window=sliding_window,
    )
    return rows.unsqueeze(0), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Build no mask: borders, causality and windows are the layout's."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, no_mask)
