"""The table of docs/compatibility.md, from the `row` marks of the tests, which are read and not run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = ("newest", "frameworks", "serverless", "both")
BEGIN, END = "<!-- rows: `make docs` writes them -->\n", "<!-- end of rows -->\n"


@dataclass(frozen=True, order=True)
class Row:
    """What one test proves."""

    client: str
    call: str
    test: str


def rows() -> list[Row]:
    """All rows, by client.

    Raises:
        ValueError: a test has no mark, or one that is not two strings.
    """
    files = [file for folder in FOLDERS for file in sorted((HERE / folder).glob("test_*.py"))]
    return sorted(
        (row for file in files for row in _of(file)), key=lambda row: (row.client.lower(), row.test)
    )


def _of(file: Path) -> Iterator[Row]:
    tree = ast.parse(file.read_text())
    names = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [mark for mark in node.decorator_list if _is_row(mark)]
            if len(marks) != 1:
                raise ValueError(f"{file.name}::{node.name} needs one @pytest.mark.row(client, call)")
            texts = [_text(argument, names) for argument in marks[0].args]  # type: ignore[attr-defined]
            if len(texts) != 2 or None in texts:
                raise ValueError(f"{file.name}::{node.name}: its row is not two strings")
            yield Row(str(texts[0]), str(texts[1]), f"{file.parent.name}/{file.name}::{node.name}")


def _is_row(mark: ast.expr) -> bool:
    return isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row"


def _text(node: ast.expr, names: dict[str, object]) -> object:
    """A string, written out or by the name of one of the module."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def page(text: str) -> str:
    """The page with its table as it should be.

    Raises:
        ValueError: the page has no place for the table.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN.strip()!r} and {END.strip()!r}")
    lines = [f"| {row.client} | {row.call.replace('|', '/')} | `{row.test}` |\n" for row in rows()]
    head = "\n| client | call | test |\n|---|---|---|\n"
    return "".join([before, BEGIN, head, *lines, "\n", END, after])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(page(target.read_text()))
