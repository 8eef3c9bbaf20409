"""Where each sequence lies in a packed batch, and what follows from it: attention and pooling.

Programs and heads see ``(hidden_states [T, D], Layout)`` and nothing else of a batch. Only a layout
knows borders, groups or the device. Invariant: no method lets a token see another sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention


class Layout(Protocol):
    """The borders of ``B`` sequences in ``T`` packed tokens."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """Attend within each sequence.

        Args:
            query: ``[T, H, d]``.
            key: ``[T, K, d]``; each of the K heads serves ``H / K`` query heads.
            value: ``[T, K, d]``.
            scale: factor on the scores.
            causal: a token sees itself and what comes before it.
            window: a token sees those with ``|i - j| < window``; None means all.
        Returns:
            ``[T, H, d]``.
        """
        ...

    def first(self, hidden_states: Tensor) -> Tensor:
        """``[T, D]`` → ``[B, D]``: each sequence's first row."""
        ...

    def last(self, hidden_states: Tensor) -> Tensor:
        """``[T, D]`` → ``[B, D]``: each sequence's last row."""
        ...

    def sum(self, hidden_states: Tensor, weighted: bool) -> Tensor:
        """``[T, D]`` → ``[B, D]`` float32 sums over the pooled rows; weights 1, 2, … by place when asked."""
        ...

    def count(self, weighted: bool) -> Tensor:
        """``[B, 1]`` float32: the sum of the weights that `sum` uses."""
        ...

    def max(self, hidden_states: Tensor) -> Tensor:
        """``[T, D]`` → ``[B, D]``: the largest value of each column among the pooled rows."""
        ...


class GroupedLayout:
    """Sequences in G groups of similar length, each padded only to its own longest, for attention alone.

    Used wherever no variable-length attention kernel exists (CPU, MPS, float32) and for tracing.
    A pad slot repeats the last token of its sequence: the last column is the last token of every
    sequence, and a maximum needs no mask.

    Args:
        slots: per group ``[B_g, S_g]`` int: the packed row that each slot reads.
        lengths: per group ``[B_g]`` int: leading tokens of each sequence that the others see: all real
            ones, but for the filling of a late-interaction query.
        unpad: ``[T]`` int: where each packed row lies among the concatenated slots of all groups.
        skips: per group ``[B_g]`` int: leading rows kept out of the pool, or None for none.
    """

    def __init__(
        self, slots: list[Tensor], lengths: list[Tensor], unpad: Tensor, skips: list[Tensor] | None = None
    ) -> None:
        self._slots = slots
        self._lengths = lengths
        self._unpad = unpad
        self._skips = skips
        self._masks: dict[tuple[bool, int | None], list[Tensor]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """See `Layout.attend`."""
        heads, width = query.shape[1], query.shape[2]
        flat = [x.reshape(x.shape[0], -1) for x in (query, key, value)]
        flat[0] = flat[0] * scale  # once here, not once for each group
        outputs = []
        for slots, mask in zip(self._slots, self._mask(causal, window), strict=True):
            q, k, v = (
                embedding(slots, x).reshape(slots.shape[0], slots.shape[1], -1, width).transpose(1, 2)
                for x in flat
            )
            repeats = heads // key.shape[1]
            if repeats > 1:
                k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
            rows = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            outputs.append(rows.transpose(1, 2).reshape(-1, heads * width))
        return embedding(self._unpad, torch.cat(outputs)).reshape(-1, heads, width)

    def first(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.first`."""
        return torch.cat([embedding(slots[:, 0], hidden_states) for slots in self._slots])

    def last(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.last`."""
        return torch.cat([embedding(slots[:, -1], hidden_states) for slots in self._slots])

    def sum(self, hidden_states: Tensor, weighted: bool) -> Tensor:
        """See `Layout.sum`. A masked reduction, never a matrix product: that one would run in bf16."""
        return torch.cat(
            [
                (embedding(slots, hidden_states).float() * weights.unsqueeze(-1)).sum(dim=1)
                for slots, weights in zip(self._slots, self._weights(weighted), strict=True)
            ]
        )

    def count(self, weighted: bool) -> Tensor:
        """See `Layout.count`."""
        return torch.cat([weights.sum(dim=1, keepdim=True) for weights in self._weights(weighted)])

    def max(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.max`. Skipped rows are replaced by the last one, which is never skipped."""
        rows = []
        for group, slots in enumerate(self._slots):
            if self._skips is not None:
                place = torch.arange(slots.shape[1], device=slots.device)
                slots = torch.where(place >= self._skips[group].unsqueeze(1), slots, slots[:, -1:])
            rows.append(embedding(slots, hidden_states).amax(dim=1))
        return torch.cat(rows)

    def _weights(self, weighted: bool) -> list[Tensor]:
        """Per group ``[B_g, S_g]`` float32: what each slot counts in a mean."""
        weights = []
        for group, (slots, lengths) in enumerate(zip(self._slots, self._lengths, strict=True)):
            place = torch.arange(slots.shape[1], device=slots.device)
            pooled = place < lengths.unsqueeze(1)
            if self._skips is not None:
                pooled = pooled & (place >= self._skips[group].unsqueeze(1))
            weights.append(pooled.float() * (place + 1).float() if weighted else pooled.float())
        return weights

    def _mask(self, causal: bool, window: int | None) -> list[Tensor]:
        """Per group a boolean mask that broadcasts to ``[B_g, H, S_g, S_g]``; True is visible."""
        if (causal, window) not in self._masks:
            masks = []
            for slots, lengths in zip(self._slots, self._lengths, strict=True):
                place = torch.arange(slots.shape[1], device=slots.device)
                mask = (place < lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1)
                ahead = place.unsqueeze(0) - place.unsqueeze(1)  # [query, key]: how far the key lies ahead
                if causal:
                    mask = mask & (ahead <= 0)
                if window is not None:
                    # A slot so far behind the last visible token that its window holds none sees itself:
                    # the softmax of nothing is NaN.
                    is_beyond = (place >= lengths.unsqueeze(1) + (window - 1)).unsqueeze(1).unsqueeze(-1)
                    mask = (mask & (ahead.abs() < window)) | (is_beyond & (ahead == 0))
                masks.append(mask)
            self._masks[causal, window] = masks
        return self._masks[causal, window]


@cache
def _varlen_kernel() -> Callable[..., Tensor]:
    """Torch's kernel; in versions that can, told never to split a sequence by what its neighbours are."""
    from torch.nn.attention.varlen import varlen_attn

    fixed: dict[str, Any] = {"num_splits": 1} if "num_splits" in signature(varlen_attn).parameters else {}
    kernel: Callable[..., Any] = partial(varlen_attn, **fixed)
    return kernel


def _varlen_attn(*args: object, **kwargs: object) -> Tensor:
    return _varlen_kernel()(*args, **kwargs)


class VarlenLayout:
    """Sequences back to back for torch's variable-length attention kernel: CUDA, half precision.

    Args:
        cu_seqlens: ``[B + 1]`` int32 on the device, from 0 to T.
        max_seqlen: tokens of the longest sequence.
        skips: ``[B]`` int: leading rows kept out of the pool, or None for none.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, skips: Tensor | None = None) -> None:
        self._cu_seqlens = cu_seqlens
        self._max_seqlen = max_seqlen
        self._skips = skips
        self._lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """See `Layout.attend`. The result does not depend on the neighbours (`num_splits=1`)."""
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        reach = -1 if window is None else window - 1
        return _varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            self._cu_seqlens,
            self._cu_seqlens,
            self._max_seqlen,
            self._max_seqlen,
            scale=scale,
            window_size=(reach, 0 if causal else reach),
        )

    def first(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.first`."""
        return hidden_states[self._cu_seqlens[:-1].long()]

    def last(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.last`."""
        return hidden_states[self._cu_seqlens[1:].long() - 1]

    def sum(self, hidden_states: Tensor, weighted: bool) -> Tensor:
        """See `Layout.sum`."""
        rows = hidden_states.float() * self._weights(hidden_states.shape[0], weighted).unsqueeze(-1)
        return torch.segment_reduce(rows, "sum", lengths=self._lengths, axis=0)

    def count(self, weighted: bool) -> Tensor:
        """See `Layout.count`."""
        pooled = self._lengths.float()
        skipped = torch.zeros_like(pooled) if self._skips is None else self._skips.float()
        if weighted:
            return (pooled * (pooled + 1) / 2 - skipped * (skipped + 1) / 2).unsqueeze(1)
        return (pooled - skipped).unsqueeze(1)

    def max(self, hidden_states: Tensor) -> Tensor:
        """See `Layout.max`."""
        rows = hidden_states.float()
        if self._skips is not None:
            pooled = self._weights(rows.shape[0], weighted=False).bool()
            rows = rows.masked_fill(~pooled.unsqueeze(-1), -torch.inf)
        return torch.segment_reduce(rows, "max", lengths=self._lengths, axis=0).to(hidden_states.dtype)

    def _weights(self, num_rows: int, weighted: bool) -> Tensor:
        """``[T]`` float32: what each row counts in a mean."""
        starts = self._cu_seqlens[:-1].long()
        place = torch.arange(num_rows, device=starts.device) - torch.repeat_interleave(
            starts, self._lengths, output_size=num_rows
        )
        weights = (place + 1).float() if weighted else torch.ones_like(place, dtype=torch.float32)
        if self._skips is not None:
            skips = torch.repeat_interleave(self._skips.long(), self._lengths, output_size=num_rows)
            weights = weights * (place >= skips)
        return weights
