"""Flags, environment, the settings file, the preset, defaults: the first that speaks wins.

Per-model settings are spread over the models: one value counts for all, N values go by position, anything
else is an error (Infinity's rule). In the file each model has its own; a flag or a variable wins over all of
them. Models named by flags or environment replace those of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hilbert.config import tei
from hilbert.config.file import FileSettings, read_file
from hilbert.config.infinity import HIDDEN, note_hidden, translate, with_device_ids
from hilbert.config.option import Option, options_of
from hilbert.config.presets import PRESETS
from hilbert.config.runpod import runpod_defaults, runpod_source
from hilbert.config.settings import ModelSettings, ServerSettings
from hilbert.config.sources import BadSetting, Given, Source, from_environment, from_flags
from hilbert.config.values import parse

MODEL_OPTIONS = options_of(ModelSettings)
SERVER_OPTIONS = options_of(ServerSettings)
OPTIONS = MODEL_OPTIONS + SERVER_OPTIONS

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings, and who said so.

    Attributes:
        origins: the flag, variable or place in the file of each setting that was given, by name; those of
            models as ``models[0].dtype``.
        notes: what the user should be told.
    """

    settings: ServerSettings
    origins: Mapping[str, str]
    notes: tuple[str, ...]


def load(
    argv: Sequence[str], environ: Mapping[str, str], verb: str = "serve"
) -> tuple[ServerSettings, list[str]]:
    """The settings of ``hilbert serve`` with these arguments, and what its user should be told.

    Args:
        argv: what follows the verb.
        environ: the environment.
        verb: ``v2`` has Infinity's defaults, hidden flags and exit codes, ``tei`` TEI's names.

    Raises:
        BadSetting: some value cannot be used.
    """
    found = effective(argv, environ, verb)
    return found.settings, list(found.notes)


def effective(argv: Sequence[str], environ: Mapping[str, str], verb: str = "serve") -> Effective:
    """As `load`, with the origin of every setting."""
    notes: list[str] = []
    sources: list[Source]
    if verb == "tei":
        named = (*tei.named(OPTIONS), *tei.HIDDEN)
        sources = [
            tei.translate(source)
            for source in (from_flags(tei.words(argv), named), from_environment(environ, named))
        ]
        tei.note_hidden(sources, notes)
        settings, origins = _combined(sources, environ, tei.defaults(sources))
        return Effective(settings, origins, tuple(notes))
    if verb != "v2":
        sources = [from_flags(argv, OPTIONS), _environment(environ, notes)]
        settings, origins = _combined(sources, environ)
        return Effective(settings, origins, tuple(notes))
    options = (*OPTIONS, *HIDDEN)
    sources = [
        translate(source, notes) for source in (from_flags(argv, options), from_environment(environ, options))
    ]
    note_hidden(sources, notes)
    defaults = {o.name: o.infinity_default for o in OPTIONS if o.infinity_default is not None}
    settings, origins = _combined(sources, environ, defaults, mismatch_exit_code=1)
    return Effective(with_device_ids(settings, sources, notes), origins, tuple(notes))


def load_runpod(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ServerSettings, list[str]]:
    """The settings of ``hilbert runpod``: as `load`, with the variables of RunPod's worker.

    Raises:
        BadSetting: some value cannot be used, or no model is named.
    """
    notes: list[str] = []
    environment = {**runpod_source(environ), **_environment(environ, notes)}
    settings, origins = _combined(
        [from_flags(argv, OPTIONS), environment],
        environ,
        runpod_defaults(),
        mismatch_exit_code=1,
    )
    if "models[0].model_id" not in origins:
        raise BadSetting("MODEL_NAMES is not set; give one or more model ids, divided by ';'", 1)
    if "max_concurrent_requests" not in origins:
        room = max(settings.max_concurrent_requests, settings.runpod_max_concurrency)
        settings = dataclasses.replace(settings, max_concurrent_requests=room)
    return settings, notes


def _environment(environ: Mapping[str, str], notes: list[str]) -> Source:
    """The environment, with Infinity's words for values replaced by ours."""
    environment = from_environment(environ, OPTIONS)
    theirs = {name: given for name, given in environment.items() if given.origin.startswith("INFINITY_")}
    return {**environment, **translate(theirs, notes)}


def _combined(
    sources: list[Source],
    environ: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
    mismatch_exit_code: int = 2,
) -> tuple[ServerSettings, dict[str, str]]:
    """Read the file that flags or environment name, and merge everything."""
    config = _first(sources, "config")
    file = FileSettings({}, ())
    if config is not None and config.texts[-1]:
        file = read_file(config.texts[-1], environ, MODEL_OPTIONS, SERVER_OPTIONS)
    sources = [*sources, file.server]
    preset = _first(sources, "preset")
    if preset is not None and preset.texts[-1]:
        name = preset.texts[-1]
        if name not in PRESETS:
            raise BadSetting(f"{preset.origin} {name!r} cannot be used: give one of {', '.join(PRESETS)}")
        sources.append({key: Given(f"preset {name}", (text,)) for key, text in PRESETS[name].items()})
    rows = file.models if all("model_id" not in source for source in sources[:2]) else ()
    return combine(sources, rows, defaults, mismatch_exit_code)


def combine(
    sources: Sequence[Source],
    rows: Sequence[Source] = (),
    defaults: Mapping[str, Any] | None = None,
    mismatch_exit_code: int = 2,
) -> tuple[ServerSettings, dict[str, str]]:
    """Merge sources, strongest first.

    Args:
        sources: flags, environment, then what is weaker than a model's own entry in the file.
        rows: the models of the file.
        defaults: defaults that differ from the table's.
        mismatch_exit_code: for lists whose length fits neither one nor the number of models.

    Returns:
        The settings, and the origin of each that was given.

    Raises:
        BadSetting: some value cannot be used.
    """
    values: dict[str, Any] = {**{o.name: o.default for o in OPTIONS}, **(defaults or {})}
    origins: dict[str, str] = {}
    id_given = None if rows else _first(sources, "model_id")  # a preset may name one, too
    num_models = len(rows) or (len(id_given.texts) if id_given is not None else 1)
    strong, weak = sources[:2], sources[2:]
    models: list[dict[str, Any]] = [{} for _ in range(num_models)]
    for option in MODEL_OPTIONS:
        given = _first(strong, option.name)
        if given is not None and len(given.texts) not in (1, num_models):
            raise BadSetting(
                f"{given.origin}: Expected length {num_models} but got {len(given.texts)}; "
                f"give one value for all models or one for each of the {num_models}",
                mismatch_exit_code,
            )
        for index, model in enumerate(models):
            own = [rows[index]] if rows else []
            said = given or _first([*own, *weak], option.name)
            if said is None:
                model[option.name] = values[option.name]
                continue
            model[option.name] = _parse(option, said.texts[index % len(said.texts)], said.origin)
            origins[f"models[{index}].{option.name}"] = said.origin
    server = {}
    for option in SERVER_OPTIONS:
        given = _first(sources, option.name)
        server[option.name] = values[option.name]
        if given is not None:
            server[option.name] = _parse(option, given.texts[-1], given.origin)
            origins[option.name] = given.origin
    for index, row in enumerate(rows):
        if "model_id" not in row:
            raise BadSetting(f"models[{index}] has no id: give a hub id such as BAAI/bge-m3, or a folder")
    settings = ServerSettings(models=tuple(ModelSettings(**model) for model in models), **server)
    _check_names(settings, mismatch_exit_code)
    return settings, origins


def _first(sources: Sequence[Source], name: str) -> Given | None:
    return next((source[name] for source in sources if name in source), None)


def _parse(option: Option, text: str, origin: str) -> Any:
    try:
        return parse(option, text)
    except ValueError as error:
        shown = "(hidden)" if option.secret else repr(text)
        raise BadSetting(f"{origin} {shown} cannot be used: {error}") from None


def _check_names(settings: ServerSettings, exit_code: int) -> None:
    """Refuse models that could not be told apart."""
    names = [name for model in settings.models for name in (model.name, *model.aliases)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadSetting(
            f"two models have the name {twice!r}; give each its own with --served-model-name "
            "(`name:` in the file)",
            exit_code,
        )
    prefixes = [model.prefix for model in settings.models if model.prefix]
    again = next((prefix for prefix in prefixes if prefixes.count(prefix) > 1), None)
    if again is not None:
        raise BadSetting(f"two models have the prefix {again!r}; give each its own", exit_code)
