"""The hardware's ceiling: a dense matrix product by torch on all threads, and nothing around it."""

from __future__ import annotations

import time


def cpu_gemm_gflops(dtype: str, m: int = 2048, k: int = 384, n: int = 1536, seconds: float = 2.0) -> float:
    """GFLOP/s of ``[m, k] · [k, n]``; the median over blocks of 20 products, after a warm-up.

    The weight is packed once beforehand where torch can (oneDNN's own layout), as every engine does with
    weights that do not change.
    """
    import torch

    kind = getattr(torch, dtype)
    layer = torch.nn.Linear(k, n, bias=False, dtype=kind).eval()
    x = torch.randn(m, k, dtype=torch.float32).to(kind)
    rates: list[float] = []
    with torch.inference_mode():
        for _ in range(10):
            layer(x)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(20):
                layer(x)
            rates.append(20 * 2 * m * k * n / (time.perf_counter() - start) / 1e9)
    rates.sort()
    return round(rates[len(rates) // 2], 1)
