"""Every runtime traces its models in this process, to import torch and transformers once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hilbert.testing.tracing import traced_here


@pytest.fixture(scope="package", autouse=True)
def trace_in_this_process() -> Iterator[None]:
    """The same export, without the child process around it."""
    with traced_here():
        yield
