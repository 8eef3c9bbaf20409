"""The CUDA path: packed programs on the variable-length kernel, against sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilbert.core import Batch, ModelSpec, Sequence, finish_vectors
from hilbert.hub import resolve
from hilbert.runtimes import Runtime, RuntimeSettings, load_runtime
from hilbert.testing.models import FAMILIES, tiny_model

pytestmark = pytest.mark.gpu

TRANSFORMERS = sorted(f for f in FAMILIES if f not in ("static", "model2vec"))
LENGTHS = [1, 2, 3, 8, 15, 16, 17, 31, 33, 50, 64, 90, 120]


def sequences(spec: ModelSpec) -> tuple[Sequence, ...]:
    random = np.random.default_rng(3)
    longest = spec.max_model_len or 128
    return tuple(
        Sequence(0, i, random.integers(10, spec.vocab_size, min(n, longest)).astype(np.int32))
        for i, n in enumerate(LENGTHS)
    )


def run(runtime: Runtime, spec: ModelSpec, batch: tuple[Sequence, ...]) -> np.ndarray:
    dense = runtime.run(runtime.prepare(Batch(batch))).dense
    assert dense is not None
    return finish_vectors(dense, None, normalize=True)


@pytest.fixture(scope="module", params=TRANSFORMERS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelSpec, np.ndarray]:
    """A tiny model and its float32 vectors on the CPU, which tests/parity holds to the reference."""
    spec = resolve(str(tiny_model(request.param, tmp_path_factory.mktemp(request.param))))
    runtime = load_runtime(spec, RuntimeSettings(engine="torch", dtype="float32", device="cpu"))
    return spec, run(runtime, spec, sequences(spec))


@pytest.mark.parametrize(
    ("dtype", "cosine"), [("float32", 1 - 1e-6), ("bfloat16", 0.995), ("float16", 0.9995)]
)
def test_cuda_equals_cpu(case: tuple[ModelSpec, np.ndarray], dtype: str, cosine: float) -> None:
    spec, reference = case
    runtime = load_runtime(spec, RuntimeSettings(engine="torch", dtype=dtype, device="cuda"))
    ours = run(runtime, spec, sequences(spec))
    worst = float((ours * reference).sum(axis=1).min())
    print(f"{spec.family} {dtype} {runtime.info.program}: worst cosine {worst:.6f}")
    assert worst >= cosine
    runtime.close()


def test_neighbours_change_nothing(tmp_path: Path) -> None:
    """In half precision a sequence's attention does not depend on who is beside it."""
    spec = resolve(str(tiny_model("bert", tmp_path / "model")))
    runtime = load_runtime(spec, RuntimeSettings(engine="torch", dtype="bfloat16", device="cuda"))
    batch = sequences(spec)
    together = run(runtime, spec, batch)
    backwards = run(runtime, spec, batch[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-3)


def test_the_devices_memory_is_told(tmp_path: Path) -> None:
    from hilbert.runtimes.memory import device_memory

    runtime = load_runtime(
        resolve(str(tiny_model("bert", tmp_path / "model"))), RuntimeSettings(device="cuda")
    )
    memory = device_memory([runtime.info.device])
    assert 0 < memory.held_bytes < memory.used_bytes < memory.total_bytes > 1 << 30
    assert memory.available_bytes > memory.held_bytes
    runtime.close()
    assert device_memory([runtime.info.device]).held_bytes < memory.held_bytes
