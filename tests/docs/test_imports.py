"""The room graph holds, public names are exact, and starting imports only what it needs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hilbert

ROOT = Path(__file__).parents[2]
PACKAGES = sorted((ROOT / "src/hilbert").rglob("__init__.py"))


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has imported after running `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines()[-1].split())


HEAVY = {"torch", "transformers", "sentence_transformers", "huggingface_hub", "openvino", "rich", "requests"}
HEAVY |= {"PIL", "soundfile", "soxr"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import hilbert", HEAVY | {"starlette", "typer", "numpy", "msgspec", "httpx2", "asyncio"}),
        ("import hilbert.client", HEAVY | {"starlette", "typer", "uvicorn"}),
        ("import hilbert.cli", HEAVY | {"starlette", "typer", "uvicorn", "numpy", "asyncio"}),
        ("import hilbert.config", HEAVY | {"starlette", "typer", "uvicorn", "numpy", "asyncio"}),
        ("import hilbert.worker.spawn", HEAVY | {"starlette", "typer", "uvicorn", "numpy", "asyncio"}),
        (
            "import hilbert.cli.serve, hilbert.cli.http, hilbert.cli.door, hilbert.api, hilbert.models",
            (HEAVY - {"requests"}) | {"typer", "prometheus_client"},
        ),
        ("from hilbert.cli import main\nmain(['serve', '--help'])", HEAVY | {"typer", "numpy"}),
        (
            "import contextlib\nfrom hilbert.cli import main\nmain(['--help'])",
            (HEAVY - {"rich"}) | {"starlette", "uvicorn"},
        ),
        (
            "import hilbert.cli.authz, hilbert.cli.app",
            HEAVY - {"rich"} | {"starlette", "numpy", "orjson", "prometheus_client", "tokenizers", "msgspec"},
        ),
        (
            "from hilbert.cli import main\nmain(['models', 'info', 'bundled'])",
            {"torch", "transformers", "PIL"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_imported(code: str, absent: set[str]) -> None:
    assert modules_after(code) & absent == set()


def test_public_names() -> None:
    assert hilbert.__all__ == ["AsyncClient", "Client", "Model", "__version__"]
    for name in hilbert.__all__:
        assert getattr(hilbert, name) is not None
    with pytest.raises(AttributeError):
        _ = hilbert.nothing


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: str(file.parent.relative_to(ROOT / "src")))
def test_all_is_exact(file: Path) -> None:
    """`__all__` of a room names what it takes from its files, and nothing that is not there."""
    tree = ast.parse(file.read_text())
    taken = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hilbert")
        for alias in node.names
    }
    module = importlib.import_module(".".join(file.parent.relative_to(ROOT / "src").parts))
    names = getattr(module, "__all__", None)
    if names is None:
        assert not taken or file.parent.name == "testing", "a room that exports has an __all__"
        return
    assert sorted(set(names)) == sorted(names)
    for name in names:
        assert hasattr(module, name), name


def test_the_room_graph_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([str(linter)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
