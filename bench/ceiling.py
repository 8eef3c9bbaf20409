"""The hardware's ceiling: a dense matrix product by torch on all threads, and nothing around it."""

from __future__ import annotations

import itertools
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


def gpu_gemm_tflops(m: int, k: int, n: int, repeats: int = 50) -> float:
    """TFLOP/s of a bf16 product of random data on the current CUDA device, by events; the median."""
    import torch

    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    for _ in range(10):
        torch.mm(a, b, out=out)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        torch.mm(a, b, out=out)
        mark.record()
    torch.cuda.synchronize()
    times = sorted(first.elapsed_time(last) for first, last in itertools.pairwise(marks))
    return round(2.0 * m * k * n / (times[len(times) // 2] * 1e-3) / 1e12, 1)
