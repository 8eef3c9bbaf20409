"""Weights: only tensors come out of a pickle, and nothing is made up that the files do not hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hilbert.core import Batch, Sequence
from hilbert.errors import UnsafeWeights, WeightMismatch
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime
from hilbert.testing.models import tiny_model

SETTINGS = RuntimeSettings(engine="torch", dtype="float32", device="cpu")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.trace,))


def rows(folder: Path, settings: RuntimeSettings = SETTINGS) -> np.ndarray:
    runtime = load_runtime(resolve(str(folder)), settings)
    dense = runtime.run(runtime.prepare(Batch((Sequence(0, 0, np.arange(5, 20, dtype=np.int32)),)))).dense
    assert dense is not None
    return dense


def as_pickle(folder: Path) -> dict[str, torch.Tensor]:
    """Replace the safetensors file with the ``.bin`` that older repositories ship."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


def test_a_plain_pickle_gives_the_same_vectors(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model")
    expected = rows(folder)
    as_pickle(folder)
    np.testing.assert_array_equal(rows(folder), expected)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_malicious_pickle_is_refused_and_not_run(engine: str, tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model")
    state = as_pickle(folder)
    trace = tmp_path / "the-pickle-ran"
    torch.save({**state, "embeddings.word_embeddings.weight": Malicious(trace)}, folder / "pytorch_model.bin")
    settings = RuntimeSettings(engine=engine, dtype="float32", device="cpu", cache_dir=str(tmp_path / "c"))
    with pytest.raises(UnsafeWeights, match=r"asks for getattr.*safetensors") as refused:
        rows(folder, settings)
    assert "weights_only" not in refused.value.message and "option" not in refused.value.message
    assert not trace.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists(), "the pickle was not malicious: the test proves nothing"


@pytest.mark.filterwarnings("ignore")
def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.endswith("attention.self.query.weight"))
    save_file({k: v for k, v in state.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(WeightMismatch, match="query"):
        rows(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_dense_layer_of_the_wrong_shape_is_an_error(tmp_path: Path) -> None:
    folder = tiny_model("gemma3_text", tmp_path / "model")
    dense = next(p for p in sorted(folder.iterdir()) if p.name.endswith("Dense"))
    save_file({"linear.weight": torch.zeros(3, 4)}, dense / "model.safetensors")
    with pytest.raises(WeightMismatch, match="Dense"):
        rows(folder)
