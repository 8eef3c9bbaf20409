"""Parity runs trace dozens of models: in this process, to import torch and transformers once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hilbert.testing.tracing import traced_here

# Encoders of two kinds of position and of two tokenizers, and a decoder. The graphs of the other families are
# traced in the slow part; all families run on torch, whose programs the graphs are made of, in the quick one.
_QUICK_GRAPHS = {"bert", "modernbert", "qwen3", "xlm-roberta"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes most of the suite's time and says least beyond its neighbours."""
    for item in items:
        told = getattr(getattr(item, "callspec", None), "params", {})
        if getattr(item, "originalname", "") == "test_equals_sentence_transformers" and (
            told["engine"] != "torch" and told["case"] not in _QUICK_GRAPHS
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def trace_in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same export, without the child process around it; tests/parity/test_bundled.py keeps the child."""
    if request.node.path.name == "test_bundled.py":
        yield
        return
    with traced_here():
        yield
