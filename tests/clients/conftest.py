"""Fixtures of the clients' tests; `make test` collects nothing here, as it has no client libraries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if "HILBERT_CLIENTS_WORLD" in os.environ else ["*"]


@pytest.fixture(scope="session")
def world() -> Any:
    from clients_house import load_world

    return load_world()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is a row of docs/compatibility.md, so each says which."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    unnamed = [item.nodeid for item in here if item.get_closest_marker("row") is None]
    if unnamed:
        raise pytest.UsageError(f"no @pytest.mark.row(client, call): {', '.join(unnamed)}")
