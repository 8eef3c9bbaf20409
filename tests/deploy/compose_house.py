"""The compose files as Docker would read them: YAML, merged, with variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[2] / "deploy/compose"
BASE, SERVER = "docker-compose.yml", "docker-compose.server.yml"


class _Reset:
    """``!reset``: what stood there before is gone."""


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!reset", lambda loader, node: _Reset())


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """``$$``, ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?error}``, nested, innermost first."""
    form = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^${}]*))?\}")
    while found := form.search(text):
        name, how, rest = found.groups()
        value = variables.get(name, "")
        if not value and how == "?":
            raise KeyError(f"{name}: {rest}")
        text = text[: found.start()] + (value or (rest if how == "-" else "")) + text[found.end() :]
    return text.replace("$$", "$")


def compose(*files: str, **variables: str) -> dict[str, Any]:
    """The services of these files, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for file in files:
        loaded = yaml.load((COMPOSE / file).read_text(), _Loader)  # our own, safe loader
        merged = _over(merged, loaded)
    return dict(_filled(merged, variables))


def environment_example() -> dict[str, str]:
    """What .env.example sets."""
    lines = (COMPOSE / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _over(below: Any, above: Any) -> Any:
    if isinstance(above, _Reset):
        return None
    if isinstance(below, dict) and isinstance(above, dict):
        keys = [*below, *(key for key in above if key not in below)]
        return {key: _over(below.get(key), above[key]) if key in above else below[key] for key in keys}
    return above


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolate(value, variables)
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items() if key[:2] != "x-"}
    return [_filled(item, variables) for item in value] if isinstance(value, list) else value
