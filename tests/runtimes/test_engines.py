"""What conformance does not show: 8 bits in torch, refusals, starts from the cache, wide rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hilbert
from hilbert.core import Batch, Sequence
from hilbert.errors import InvalidInput, MissingDependency, WorkerLost
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime, traced
from hilbert.testing.models import tiny_model
from hilbert.testing.tracing import traced_here


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("bert", tmp_path_factory.mktemp("bert") / "model")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_linear_layers_in_8_bits(kind: str) -> None:
    """Close to the float layer, exact for its own rounded weights, and a row alone equals it in company."""
    import torch

    from hilbert.runtimes.torch_quantized import quantize_linears

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48))
    model.load_state_dict({f"0.{k}": v for k, v in layer.state_dict().items()})
    assert quantize_linears(model, kind) == 1
    rows = torch.randn(33, 64)
    rows[5] *= 1000  # a row's scale is no other's
    with torch.inference_mode():
        exact, ours = layer(rows), model(rows)
        alone = model(rows[7:8])
    cosine = torch.nn.functional.cosine_similarity(exact, ours).min()
    assert (0.9999 if kind == "int8" else 0.998) <= cosine < 1 - 1e-7
    torch.testing.assert_close(alone[0], ours[7], atol=1e-5, rtol=1e-5)


def test_fp8_leaves_layers_of_odd_sizes_alone() -> None:
    import torch

    from hilbert.runtimes.torch_quantized import quantize_linears

    assert quantize_linears(torch.nn.Sequential(torch.nn.Linear(64, 3)), "fp8") == 0


@pytest.mark.parametrize(
    ("engine", "dtype", "words"),
    [
        ("torch", "fp8", ["fp8", "'cpu'", "8.9", "--dtype int8"]),
        ("openvino", "fp8", ["fp8", "CPU", "int8"]),
        ("openvino", "float16", ["float16", "CPU", "bfloat16"]),
        ("onnx", "bfloat16", ["bfloat16", "engine onnx", "--dtype float32"]),
        ("ctranslate2", "fp8", ["fp8", "engine ctranslate2", "int8"]),
    ],
)
def test_a_dtype_that_is_not_computed_is_refused(
    bert: Path, engine: str, dtype: str, words: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_runtime(resolve(str(bert)), RuntimeSettings(engine=engine, dtype=dtype, device="cpu"))
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxruntime"), ("ctranslate2", "ctranslate2")])
def test_a_start_from_the_cache_needs_no_torch_and_a_missing_extra_is_named(
    bert: Path, engine: str, package: str, tmp_path: Path
) -> None:
    settings = RuntimeSettings(engine=engine, device="cpu", cache_dir=str(tmp_path))
    with traced_here():
        runtime = load_runtime(resolve(str(bert)), settings)
    assert runtime.info.is_from_cache is False
    runtime.close()
    script = f"""
import sys
blocked = sys.argv[1:]
for name in blocked:
    sys.modules[name] = None
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime
settings = RuntimeSettings(engine={engine!r}, device="cpu", cache_dir={str(tmp_path)!r})
runtime = load_runtime(resolve({str(bert)!r}), settings)
assert runtime.info.is_from_cache is True
runtime.close()
"""

    def start(*blocked: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *blocked]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended := start("torch", "transformers")).returncode == 0, ended.stderr
    without = start(package).stderr
    assert MissingDependency.__name__ in without and f"pip install 'hilbert[{engine}]'" in without


@pytest.mark.parametrize("stage", ["_host", "_outputs"])
def test_a_device_that_is_lost_is_no_fault_of_an_input(
    bert: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever batch notices it first: a fresh worker runs them all again."""
    import torch

    runtime = load_runtime(resolve(str(bert)), RuntimeSettings(engine="torch", device="cpu"))

    def fail(anything: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(runtime, stage, fail)
    with pytest.raises(WorkerLost, match="unspecified launch failure"):
        runtime.run(runtime.prepare(Batch((Sequence(0, 0, np.ones(3, np.int32)),))))


def test_int8_has_an_artifact_of_its_own(bert: Path) -> None:
    spec = resolve(str(bert))
    keys = {traced.key_of(spec, dtype, "openvino", "1") for dtype in ("int8", "float32", "bfloat16")}
    assert len(keys | {traced.key_of(spec, "float32", "onnx", "1")}) == 4


def test_rows_as_wide_as_the_vocabulary_bound_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60,000 numbers a sequence: 64 MiB hold 279 of them, however few tokens they have."""
    from hilbert.runtimes.torch_runtime import TorchRuntime

    folder = tiny_model("bert", tmp_path / "model", head="splade", vocab_size=60_000)
    sizes: list[int] = []

    class Recording(TorchRuntime):
        def prepare(self, batch):  # type: ignore[no-untyped-def]
            sizes.append(len(batch.sequences))
            return super().prepare(batch)

    monkeypatch.setattr("hilbert.runtimes.torch_runtime.TorchRuntime", Recording)
    with hilbert.Model(str(folder), engine="torch", device="cpu") as model:
        vectors = model.encode(["a"] * 700, outputs={"sparse"})
    assert len(vectors.sparse or ()) == 700
    assert 200 < max(sizes) <= 279
    assert np.sum(sizes) >= 700
