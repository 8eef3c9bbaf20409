"""docs/compatibility.md lists exactly the tests that prove it."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_tests() -> None:
    page = ROOT / "docs/compatibility.md"
    table = runpy.run_path(str(ROOT / "tests/clients/table.py"))
    assert len(table["rows"]()) > 30
    assert page.read_text() == table["page"](page.read_text()), "run `make docs`"
