"""What the documents say is so: links resolve, paths exist, commands and flags are real."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from hilbert.config.docs import configuration_page
from hilbert.config.load import OPTIONS, load
from hilbert.config.sources import from_flags

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changelog.d/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def shell_commands() -> list[list[str]]:
    commands = []
    for page in PAGES:
        for code in blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    commands.append(words)
    return commands


def test_the_configuration_page_is_up_to_date() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == configuration_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|md|toml|txt))`", text)
    assert named
    for name in named:
        places = [ROOT / name, ROOT / "src/hilbert" / name, ROOT / "tests" / name]
        in_a_dialect = name in ("protocol.py", "errors.py", "routes.py")
        assert in_a_dialect or any(place.exists() for place in places), name


def test_hilbert_commands_are_real() -> None:
    from typer.main import get_command

    from hilbert.cli.app import app

    seen = 0
    for words in shell_commands():
        if words[0] != "hilbert":
            continue
        seen += 1
        if words[1] == "tei":
            assert load(words[2:], {}, "tei")[1] == []
            continue
        if words[1] in ("serve", "v2"):
            from_flags(words[2:], OPTIONS)
            continue
        command = get_command(app)
        rest = words[1:]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, words
    assert seen > 3


def test_make_verbs_are_real() -> None:
    verbs = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [words[1:] for words in shell_commands() if words[0] == "make"]
    assert named
    for targets in named:
        assert {word for word in targets if "=" not in word} <= verbs
    assert {"install", "serve", "test", "check", "bench", "fmt", "docs", "test-gpu"} <= verbs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals and re.fullmatch(r"[\w.]+", version), line  # no address, no local label
            pins[normal(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [text for group in groups for text in group]
    assert {normal(re.split(r"[^\w.-]", text)[0]) for text in wanted} <= pins.keys()
    assert pins["torch"] == "2.13.0"


def test_the_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_table_of_engines_is_that_of_the_code() -> None:
    from hilbert.runtimes.matrix import table

    page = (ROOT / "docs/engines.md").read_text()
    found = page.partition("tests/docs -->\n")[2].partition("\n<!-- end")[0]
    assert found == table(), "copy what hilbert.runtimes.matrix.table() returns"
