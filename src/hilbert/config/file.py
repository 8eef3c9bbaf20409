"""The settings file: YAML to the same plain texts that flags and environment give.

It decides what the keys mean and what stands for ``${NAME:-default}``. Values are read as they were typed
(``0012`` stays ``0012``) and interpreted where every other source is, in `load`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hilbert.config.option import Option
from hilbert.config.sources import BadSetting, Given, Source

# What a model's key is called in the file, where flags have a longer name.
MODEL_KEYS = {"id": "model_id", "name": "served_model_name"}
LIMIT_KEYS = {"per_key": "limits_per_key", "overall": "limits_overall"}
# These say where settings come from and are none themselves.
NOT_IN_FILE = frozenset({"config", "preload_only"})
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class FileSettings:
    """What a file says.

    Attributes:
        server: by name, for the whole server.
        models: by name, for each model; empty where the file names none.
    """

    server: Source
    models: tuple[Source, ...]


def read_file(
    path: str, environ: Mapping[str, str], model_options: Sequence[Option], server_options: Sequence[Option]
) -> FileSettings:
    """Read a settings file.

    Raises:
        BadSetting: it cannot be read, is no YAML, or has a key that means nothing.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadSetting(f"--config {path!r} cannot be read: {why}; name a YAML file") from None
    return parse_file(text, path, environ, model_options, server_options)


def names_models(content: bytes) -> bool:
    """Whether a file with this content says which models are served; False where it says nothing legible."""
    try:
        root = _yaml(content.decode("utf-8-sig"), "")
    except (UnicodeDecodeError, BadSetting):
        return False
    return isinstance(root, dict) and bool(root.get("models"))


def parse_file(
    text: str,
    path: str,
    environ: Mapping[str, str],
    model_options: Sequence[Option],
    server_options: Sequence[Option],
) -> FileSettings:
    """As `read_file`, given the text."""
    reader = _Reader(path, environ)
    root = reader.mapping(_yaml(text, path), "")
    server_by_key = {o.name: o for o in server_options if o.name not in NOT_IN_FILE}
    limits = {key: server_by_key[name] for key, name in LIMIT_KEYS.items() if name in server_by_key}
    limits |= {name: o for name, o in server_by_key.items() if name.startswith("max_")}
    server: dict[str, Given] = {}
    models: tuple[Source, ...] = ()
    for key, value in root.items():
        if key == "models":
            models = tuple(
                reader.model(row, f"models[{index}]", model_options)
                for index, row in enumerate(reader.rows(value, key))
            )
        elif key == "limits":
            server |= reader.settings(reader.mapping(value, key), "limits.", limits)
        else:
            server |= reader.settings({key: value}, "", server_by_key | {"models": None, "limits": None})
    return FileSettings(server, models)


class _Reader:
    """Reads the values of one file; every complaint names the place."""

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ

    def model(self, row: Any, place: str, options: Sequence[Option]) -> Source:
        if isinstance(row, str):  # a bare id
            row = {"id": row}
        by_name = {o.name: o for o in options}
        short = {key: by_name[name] for key, name in MODEL_KEYS.items()}
        rest = {name: o for name, o in by_name.items() if name not in MODEL_KEYS.values()}
        return self.settings(self.mapping(row, place), place + ".", short | rest)

    def settings(
        self, values: Mapping[str, Any], place: str, known: Mapping[str, Option | None]
    ) -> dict[str, Given]:
        """Every value under its option's name; what is empty counts as not given."""
        given = {}
        for key, value in values.items():
            option = known.get(key)
            if option is None:
                raise self._unknown(place + key, key, list(known))
            text = self._text(value, place + key, option)
            if text:
                given[option.name] = Given(f"{self._path}: {place}{key}", (text,))
        return given

    def mapping(self, value: Any, place: str) -> Mapping[str, Any]:
        if value in ("", None):
            return {}
        if not isinstance(value, dict):
            raise BadSetting(f"{self._path}: {place or 'the file'} must be `key: value` lines")
        return value

    def rows(self, value: Any, place: str) -> Sequence[Any]:
        if not isinstance(value, list) or not value:
            raise BadSetting(f"{self._path}: {place} must be a list with an entry `- id: …` for each model")
        return value

    def _text(self, value: Any, place: str, option: Option) -> str:
        if option.kind is list and isinstance(value, list):
            return json.dumps([self._expanded(item, place) for item in value])
        if option.kind is dict and isinstance(value, dict):
            return json.dumps({key: self._expanded(text, f"{place}.{key}") for key, text in value.items()})
        if option.name in LIMIT_KEYS.values() and isinstance(value, dict):
            return " ".join(f"{key}={self._expanded(text, f'{place}.{key}')}" for key, text in value.items())
        return self._expanded(value, place)

    def _expanded(self, text: Any, place: str) -> str:
        """A text with its variables filled in."""
        if not isinstance(text, str):
            raise BadSetting(f"{self._path}: {place} is a {_kind(text)}; give one value")

        def replace(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            value = self._environ.get(found[1], "")
            if not value and found[2] is None and found[1] not in self._environ:
                raise BadSetting(
                    f"{self._path}: {place} needs the environment variable {found[1]}, which is not set; "
                    f"set it, or write ${{{found[1]}:-a default}}"
                )
            return value or found[3] or ""

        return _VARIABLE.sub(replace, text)

    def _unknown(self, place: str, key: str, known: list[str]) -> BadSetting:
        import difflib  # only when something is wrong already

        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`hilbert config schema` lists all keys"
        return BadSetting(f"{self._path}: {place} is not a setting; {hint}")


def _yaml(text: str, path: str) -> Any:
    """The document, every scalar as it was typed."""
    import yaml  # 20 ms, and only those pay who have a file

    class Loader(yaml.BaseLoader):
        """Scalars are texts, and a key that stands twice is an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise BadSetting(
                        f"{path}: line {line}: a list or a mapping stands where a key belongs; write `key: "
                        "value` (a template's {{…}} must be filled in first)"
                    )
                if key.value in seen:
                    raise BadSetting(f"{path}: line {line}: {key.value!r} stands twice; keep one")
                seen.add(key.value)
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise BadSetting(f"{path}: it is nested too deeply to be read") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise BadSetting(f"{path}: {where}{getattr(error, 'problem', None) or error}") from None


def _construct_map(loader: Any, node: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping"
