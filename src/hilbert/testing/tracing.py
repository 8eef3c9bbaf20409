"""Tracing without the child process around it: tests that trace dozens of models import torch once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilbert.core import ModelSpec
from hilbert.programs.choose import Target
from hilbert.programs.export import ExportOrder, export
from hilbert.runtimes import tracing
from hilbert.runtimes.packing import NUM_GROUPS


def _trace(
    spec: ModelSpec, dtype: str, folder: Path, trust_remote_code: bool, target: Target = "openvino"
) -> dict[str, Any]:
    with warnings.catch_warnings():
        return export(ExportOrder(spec, str(folder), dtype, NUM_GROUPS, trust_remote_code, target))


@contextmanager
def traced_here() -> Iterator[None]:
    """Whatever is traced inside the block is traced in this process."""
    usual = tracing.trace
    tracing.trace = _trace
    try:
        yield
    finally:
        tracing.trace = usual
