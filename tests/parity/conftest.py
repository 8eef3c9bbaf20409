"""Parity runs trace dozens of models: in this process, to import torch and transformers once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hilbert.testing.tracing import traced_here


@pytest.fixture(autouse=True)
def trace_in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same export, without the child process around it; tests/parity/test_bundled.py keeps the child."""
    if request.node.path.name == "test_bundled.py":
        yield
        return
    with traced_here():
        yield
