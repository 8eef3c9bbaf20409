"""Both layouts compute the same thing, and what a plain loop over the sequences computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hilbert.core import Sequence
from hilbert.programs import layout as layouts
from hilbert.programs.layout import GroupedLayout, VarlenLayout
from hilbert.runtimes.packing import pack

LENGTHS = [1, 2, 5, 5, 17, 30, 31, 64]
SKIPS = [0, 1, 3, 0, 2, 29, 7, 0]


def visible(n: int, window: tuple[int, int]) -> Tensor:
    ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
    left, right = window
    seen = torch.ones(n, n, dtype=torch.bool)
    if left >= 0:
        seen &= ahead >= -left
    if right >= 0:
        seen &= ahead <= right
    return seen


def loop_attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, *_: object, **options: object) -> Tensor:
    """What the documentation of torch's kernel promises, one sequence at a time."""
    assert max(cu.diff().tolist()) == _[1], "the longest sequence is passed truly"
    rows = []
    for start, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        parts = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        mask = visible(end - start, options["window_size"])  # type: ignore[arg-type]
        out = scaled_dot_product_attention(*parts, attn_mask=mask, scale=options["scale"])  # type: ignore[arg-type]
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture(params=["grouped", "varlen"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GroupedLayout | VarlenLayout:
    sequences = tuple(
        Sequence(0, i, np.ones(n, np.int32), prompt_len=skip)
        for i, (n, skip) in enumerate(zip(LENGTHS, SKIPS, strict=True))
    )
    if request.param == "varlen":
        # The CUDA kernel is replaced by its documented meaning; tests/gpu runs the kernel itself.
        monkeypatch.setattr(layouts, "_varlen_attn", loop_attention)
        cu = torch.tensor(np.concatenate([[0], np.cumsum(LENGTHS)]), dtype=torch.int32)
        return VarlenLayout(cu, max(LENGTHS), torch.tensor(SKIPS))
    part = pack(sequences, 3)
    tensors = [[torch.from_numpy(a) for a in x] for x in (part.slots, part.group_lengths, part.group_skips)]
    return GroupedLayout(tensors[0], tensors[1], torch.from_numpy(part.unpad), tensors[2])


def split(x: Tensor) -> list[Tensor]:
    return list(x[: sum(LENGTHS)].split(LENGTHS))


def rows_for(layout: GroupedLayout | VarlenLayout, *shape: int) -> Tensor:
    num = sum(LENGTHS)
    return torch.randn(num if isinstance(layout, VarlenLayout) else -(-num // 32) * 32, *shape)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 4), (True, 4)])
def test_attention(
    layout: GroupedLayout | VarlenLayout, heads: tuple[int, int], causal: bool, window: int | None
) -> None:
    torch.manual_seed(0)
    q, k, v = rows_for(layout, heads[0], 8), rows_for(layout, heads[1], 8), rows_for(layout, heads[1], 8)
    ours = layout.attend(q, k, v, 0.3, causal, window)
    repeats = heads[0] // heads[1]
    for got, qs, ks, vs in zip(split(ours), split(q), split(k), split(v), strict=True):
        n = len(qs)
        mask = visible(n, (-1 if window is None else window - 1, 0 if causal else (window or 0) - 1))
        ks, vs = ks.repeat_interleave(repeats, 1), vs.repeat_interleave(repeats, 1)
        parts = (x.transpose(0, 1).unsqueeze(0) for x in (qs, ks, vs))
        expected = scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3)[0].transpose(0, 1)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_reductions(layout: GroupedLayout | VarlenLayout) -> None:
    torch.manual_seed(1)
    x = rows_for(layout, 6)
    sequences = split(x)
    pooled = [s[skip:] for s, skip in zip(sequences, SKIPS, strict=True)]
    weights = [torch.arange(1, len(s) + 1)[skip:].float() for s, skip in zip(sequences, SKIPS, strict=True)]
    expected = {
        "first": torch.stack([s[0] for s in sequences]),
        "last": torch.stack([s[-1] for s in sequences]),
        "max": torch.stack([s.amax(0) for s in pooled]),
        "sum": torch.stack([s.sum(0) for s in pooled]),
        "weighted sum": torch.stack([(s * w[:, None]).sum(0) for s, w in zip(pooled, weights, strict=True)]),
    }
    counts = torch.tensor([[float(len(s))] for s in pooled])
    torch.testing.assert_close(layout.first(x), expected["first"])
    torch.testing.assert_close(layout.last(x), expected["last"])
    torch.testing.assert_close(layout.max(x), expected["max"])
    torch.testing.assert_close(layout.sum(x, weighted=False), expected["sum"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layout.sum(x, weighted=True), expected["weighted sum"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(layout.count(weighted=False), counts)
    torch.testing.assert_close(layout.count(weighted=True), torch.stack([w.sum()[None] for w in weights]))
