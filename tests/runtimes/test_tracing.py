"""Children that trace: one for several models, and none that takes its neighbours down."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import msgspec
import pytest

from hilbert.core import ModelSpec
from hilbert.errors import ModelError
from hilbert.hub import resolve
from hilbert.runtimes.tracing import Tracer, one_child, trace
from hilbert.testing.models import tiny_model


def spec_of(folder: Path, seed: int) -> ModelSpec:
    return resolve(str(tiny_model("bert", folder / str(seed), seed=seed, num_hidden_layers=1)))


@pytest.mark.slow
def test_one_child_for_several_models_and_a_crash_fails_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec_of(tmp_path, seed) for seed in range(4)]
    (Path(specs[1].path) / "model.safetensors").unlink()
    (Path(specs[1].path) / "model.safetensors").write_bytes(b"garbage")
    started: list[int] = []
    start = Tracer._start

    def noted(tracer: Tracer) -> None:
        start(tracer)
        assert tracer._child is not None
        started.append(tracer._child.pid)

    monkeypatch.setattr(Tracer, "_start", noted)
    folders = [tmp_path / f"out-{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir()
    with one_child():
        assert trace(specs[0], "float32", folders[0], False)["program"] == "packed"
        with pytest.raises(ModelError):  # an error that the child reports
            trace(specs[1], "float32", folders[1], False)
        assert len(started) == 1
        os.kill(started[0], signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (started[0], signal.SIGKILL))
        killer.start()
        with pytest.raises(ModelError, match=f"{specs[2].model_id}: tracing ended with status -9"):
            trace(specs[2], "float32", folders[2], False)
        assert trace(specs[3], "float32", folders[3], False)["program"] == "packed"
        assert len(started) == 2
    assert [(folder / "model.bin").exists() for folder in folders] == [True, False, False, True]
    assert all(not Path(f"/proc/{pid}").exists() for pid in started), "no child is left"


def test_code_that_a_model_brings_runs_in_a_child_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tracer] = []
    monkeypatch.setattr(Tracer, "_ask", lambda self, order: asked.append(self) or {"program": {}})
    spec = spec_of(tmp_path, 0)
    own = msgspec.structs.replace(spec, remote_code="modeling_own.py")
    with one_child() as shared:
        trace(spec, "float32", Path(), True)
        trace(own, "float32", Path(), False)
        trace(own, "float32", Path(), True)
    assert [tracer is shared for tracer in asked] == [True, True, False]
