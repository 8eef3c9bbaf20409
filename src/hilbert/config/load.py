"""Flags, then environment, then defaults: the first that speaks wins, and the result never changes.

Per-model settings are spread over the models: one value counts for all, N values go by position,
anything else is an error (Infinity's rule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hilbert.config.infinity import HIDDEN, note_hidden, translate, with_device_ids
from hilbert.config.option import Option, options_of
from hilbert.config.settings import ModelSettings, ServerSettings
from hilbert.config.sources import BadSetting, Source, from_environment, from_flags
from hilbert.config.values import parse

MODEL_OPTIONS = options_of(ModelSettings)
SERVER_OPTIONS = options_of(ServerSettings)
OPTIONS = MODEL_OPTIONS + SERVER_OPTIONS


def load(
    argv: Sequence[str], environ: Mapping[str, str], *, infinity: bool = False
) -> tuple[ServerSettings, list[str]]:
    """The settings of ``hilbert serve`` with these arguments, and what its user should be told.

    Args:
        argv: what follows the verb.
        environ: the environment.
        infinity: ``hilbert v2``: Infinity's defaults, hidden flags and exit codes.

    Raises:
        BadSetting: some value cannot be used.
    """
    notes: list[str] = []
    if not infinity:
        environment = from_environment(environ, OPTIONS)
        translated = translate(
            {name: given for name, given in environment.items() if given.origin.startswith("INFINITY_")},
            notes,
        )
        return combine([from_flags(argv, OPTIONS), {**environment, **translated}]), notes
    options = (*OPTIONS, *HIDDEN)
    sources = [
        translate(source, notes) for source in (from_flags(argv, options), from_environment(environ, options))
    ]
    note_hidden(sources, notes)
    defaults = {o.name: o.infinity_default for o in OPTIONS if o.infinity_default is not None}
    settings = combine(sources, defaults, mismatch_exit_code=1)
    return with_device_ids(settings, sources, notes), notes


def combine(
    sources: Sequence[Source],
    defaults: Mapping[str, Any] | None = None,
    mismatch_exit_code: int = 2,
) -> ServerSettings:
    """Merge sources, strongest first.

    Args:
        sources: what was given.
        defaults: defaults that differ from the table's.
        mismatch_exit_code: for lists whose length fits neither one nor the number of models.

    Raises:
        BadSetting: some value cannot be used.
    """
    values: dict[str, Any] = {**{o.name: o.default for o in OPTIONS}, **(defaults or {})}
    lists: dict[str, list[Any]] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        given = next((source[option.name] for source in sources if option.name in source), None)
        if given is None:
            lists[option.name] = [values[option.name]]
            continue
        origins[option.name] = given.origin
        lists[option.name] = [_parse(option, text, given.origin) for text in given.texts]

    num_models = len(lists["model_id"])
    rows: list[dict[str, Any]] = [{} for _ in range(num_models)]
    for option in MODEL_OPTIONS:
        column = lists[option.name]
        if len(column) not in (1, num_models):
            raise BadSetting(
                f"{origins[option.name]}: Expected length {num_models} but got {len(column)}; "
                f"give one value for all models or one for each of the {num_models}",
                mismatch_exit_code,
            )
        for index, row in enumerate(rows):
            row[option.name] = column[index % len(column)]
    settings = ServerSettings(
        models=tuple(ModelSettings(**row) for row in rows),
        **{option.name: lists[option.name][-1] for option in SERVER_OPTIONS},
    )
    _check_names(settings, mismatch_exit_code)
    return settings


def _parse(option: Option, text: str, origin: str) -> Any:
    try:
        return parse(option, text)
    except ValueError as error:
        shown = "(hidden)" if option.secret else repr(text)
        raise BadSetting(f"{origin} {shown} cannot be used: {error}") from None


def _check_names(settings: ServerSettings, exit_code: int) -> None:
    names = [model.name for model in settings.models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadSetting(
            f"two models have the name {twice!r}; give each its own with --served-model-name", exit_code
        )
