"""The virtual environments of the client libraries: made once, made again when what they hold changes.

What cannot be installed is left out, and pip's last lines are kept beside it: the tests that need it are
skipped with them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = ("newest", "frameworks", "serverless")
# The environment that serves, too: what is installed there is seen from here.
_LAYERED = "serverless"
WITH_OPENAI = ("newest", "frameworks")
_INSTALL_SECONDS = 1800
# What every environment has for the tests themselves.
_OURS = ("pytest>=9", "pytest-timeout>=2", "numpy>=2")


def made(name: str, folder: Path) -> Path:
    """The environment's folder, with all that could be installed in it."""
    venv, wanted = folder / name, HERE / name
    written = b"".join(path.read_bytes() for path in sorted(wanted.glob("*.txt")))
    stamp, digest = venv / "installed", hashlib.sha256(written).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        if name == _LAYERED:
            _layer(venv)
        _fill(venv, wanted, name)
        stamp.write_text(digest)
    if name == "newest":
        _node(folder / "node")
    return venv


def _layer(venv: Path) -> None:
    """Let an environment see what the one that runs this has."""
    [own] = venv.glob("lib/python*/site-packages")
    (own / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")


def _fill(venv: Path, wanted: Path, name: str) -> None:
    lines = _lines(wanted / "requirements.txt")
    constraints = ROOT / "constraints.txt" if name == _LAYERED else wanted / "constraints.txt"
    pins = ["-c", str(constraints)] if constraints.exists() else []
    if problem := _pip(venv, [*_OURS, *lines, *pins]):
        print(f"{name}: not all together, so one by one: {problem[-300:]}")
        _pip(venv, [*_OURS, *pins])
        for line in lines:
            _try(venv, line, [line, *pins])
    for line in _lines(wanted / "no-deps.txt"):
        _try(venv, line, ["--no-deps", "--ignore-requires-python", line])


def _try(venv: Path, line: str, arguments: Sequence[str]) -> None:
    if problem := _pip(venv, arguments):
        missing = venv / "missing"
        missing.mkdir(exist_ok=True)
        package = line.partition("=")[0].partition(">")[0].partition("<")[0].strip()
        (missing / f"{package}.txt").write_text(problem)
        print(f"{package} cannot be installed: {problem[-300:]}")


def _pip(venv: Path, arguments: Sequence[str]) -> str:
    """Nothing, or what pip said when it failed."""
    done = subprocess.run(
        [str(venv / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr or done.stdout or "pip failed")


def _node(folder: Path) -> None:
    """openai for Node, where node is; npm's words beside it where that fails."""
    package = HERE / "node/package.json"
    if not shutil.which("npm") or (folder / "node_modules/openai").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package, folder / "package.json")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        (folder / "missing.txt").write_text(done.stderr or done.stdout)


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
