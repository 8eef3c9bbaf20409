"""The settings file for editors and people: its JSON schema, and the effective settings with their origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hilbert.config.file import LIMIT_KEYS, MODEL_KEYS, NOT_IN_FILE
from hilbert.config.load import DEFAULT, MODEL_OPTIONS, SERVER_OPTIONS, Effective
from hilbert.config.option import Option

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_MASK = "********"


def json_schema() -> dict[str, Any]:
    """A JSON schema of the file: every key with its type, its limits and what it means."""
    short = {name: key for key, name in MODEL_KEYS.items()}
    in_file = [o for o in SERVER_OPTIONS if o.name not in NOT_IN_FILE]
    limits = {key: o for key, name in LIMIT_KEYS.items() for o in in_file if o.name == name}
    limits |= {o.name: o for o in in_file if o.name.startswith("max_")}
    model = _object({short.get(o.name, o.name): _schema(o) for o in MODEL_OPTIONS}) | {"required": ["id"]}
    models = {
        "description": "What is served. The same id may stand twice, under different names.",
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"type": "string"}, model]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hilbert's settings",
        **_object(
            {
                "models": models,
                **{o.name: _schema(o) for o in in_file},
                "limits": _object({key: _schema(o) for key, o in limits.items()}),
            }
        ),
    }


def rows(effective: Effective) -> Iterator[tuple[str, str, str]]:
    """Each setting as name, value and origin; secrets are masked."""
    for index, model in enumerate(effective.settings.models):
        for option in MODEL_OPTIONS:
            name = f"models[{index}].{option.name}"
            yield name, _shown(option, getattr(model, option.name)), effective.origins.get(name, DEFAULT)
    for option in SERVER_OPTIONS:
        value = getattr(effective.settings, option.name)
        yield option.name, _shown(option, value), effective.origins.get(option.name, DEFAULT)


def _shown(option: Option, value: Any) -> str:
    if option.secret and value:
        return _MASK
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(item if isinstance(item, str) else f"{item[0]}={item[1]!r}" for item in value)
    return str(value)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(option: Option) -> dict[str, Any]:
    value: dict[str, Any] = {"type": _TYPES[option.kind]}
    if option.choices:
        value["enum"] = [*option.choices, *dict(option.synonyms)]
    if option.minimum is not None:
        value["minimum"] = option.minimum
    if option.maximum is not None:
        value["maximum"] = option.maximum
    forms: list[dict[str, Any]] = [value]
    if option.kind in (list, dict):
        forms.append({"type": "string"})
        value |= {"items": {"type": "string"}} if option.kind is list else _texts()
    elif option.name in LIMIT_KEYS.values():
        forms.append({"type": "object"} | {"additionalProperties": {"type": ["string", "number"]}})
    elif option.kind is not str or option.choices:
        forms.append(_VARIABLE)
    default = {} if option.default in (None, "", ()) else {"default": option.default}
    return {"description": option.help} | (forms[0] if len(forms) == 1 else {"anyOf": forms}) | default


def _texts() -> dict[str, Any]:
    return {"additionalProperties": {"type": "string"}}


def table(lines: Iterable[tuple[str, str, str]]) -> str:
    """Rows in columns."""
    found = list(lines)
    widths = [min(60, max(len(row[column]) for row in found)) for column in (0, 1)]
    return "\n".join(f"{n:<{widths[0]}}  {v:<{widths[1]}}  {o}".rstrip() for n, v, o in found)
