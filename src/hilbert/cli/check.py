"""What is wrong with settings, as far as it can be told without starting a server and without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hilbert.cli.runtime import is_on_this_machine, resolve_model
from hilbert.config import ServerSettings
from hilbert.errors import ServingError
from hilbert.hub.lookup import is_folder, is_folder_name

_FILES = ("keys_file", "ssl_certfile", "ssl_keyfile")


def complaints(settings: ServerSettings) -> list[str]:
    """One for each thing that would keep the server, or one of its models, from coming up."""
    return list(_missing(settings)) or [*_names(settings), *_refused(settings)]


def not_here(settings: ServerSettings) -> list[str]:
    """The ids of models that are not on this machine: of these only the hub could tell more."""
    return [model.model_id for model in settings.models if not is_on_this_machine(model, settings)]


def _missing(settings: ServerSettings) -> Iterator[str]:
    """Files and folders that are named and are not there."""
    for index, model in enumerate(settings.models):
        if is_folder_name(model.model_id) and not is_folder(model.model_id):
            yield f"models[{index}].id (--model-id) names the folder {model.model_id!r}, which is not there"
    for name in _FILES:
        path: str = getattr(settings, name)
        if path and not os.path.isfile(path):
            yield f"{name} (--{name.replace('_', '-')}) names the file {path!r}, which is not there"


def _names(settings: ServerSettings) -> Iterator[str]:
    """Names and prefixes that two models have, or that the server needs for itself."""
    from hilbert.api import create_app
    from hilbert.cli.roster import aliases_of
    from hilbert.cli.serve import api_settings
    from hilbert.models import Entry, Registry
    from hilbert.observability import Metrics
    from hilbert.scheduler import Admission

    try:
        entries = [
            Entry(model.name, Admission(1, 1), aliases=aliases_of(model, settings), prefix=model.prefix)
            for model in settings.models
        ]
        create_app(Registry(entries), api_settings(settings), Metrics())
    except ValueError as error:
        yield str(error)


def _refused(settings: ServerSettings) -> Iterator[str]:
    """What the files of a model do not allow: a prompt, a pooling, a task that it has not."""
    for index, model in enumerate(settings.models):
        try:
            if is_on_this_machine(model, settings):
                resolve_model(model, settings)
        except ServingError as error:
            yield f"models[{index}] ({model.name}): {error.message}"
