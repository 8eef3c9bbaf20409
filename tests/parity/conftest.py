"""Parity runs trace dozens of models: in this process, to import torch and transformers once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from hilbert.core import ModelSpec
from hilbert.programs.export import ExportOrder, export
from hilbert.runtimes import openvino_runtime
from hilbert.runtimes.packing import NUM_GROUPS


@pytest.fixture(autouse=True)
def trace_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same export, without the child process around it; tests/parity/test_bundled.py keeps the child."""
    if request.node.path.name == "test_bundled.py":
        return

    def trace(spec: ModelSpec, dtype: str, folder: Path, trust_remote_code: bool) -> dict[str, Any]:
        with warnings.catch_warnings():
            return export(ExportOrder(spec, str(folder), dtype, NUM_GROUPS, trust_remote_code))

    monkeypatch.setattr(openvino_runtime, "trace", trace)
