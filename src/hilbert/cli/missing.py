"""Files and folders that settings name and that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hilbert.config import ServerSettings
from hilbert.hub.lookup import is_folder_name

_FILES = ("keys_file", "ssl_certfile", "ssl_keyfile")


def missing_files(settings: ServerSettings) -> list[str]:
    """A complaint for each, with its setting's name."""
    return list(_missing(settings))


def _missing(settings: ServerSettings) -> Iterator[str]:
    for index, model in enumerate(settings.models):
        if is_folder_name(model.model_id) and not Path(model.model_id).expanduser().is_dir():
            yield f"models[{index}].id (--model-id) names the folder {model.model_id!r}, which is not there"
    for name in _FILES:
        path: str = getattr(settings, name)
        if path and not Path(path).expanduser().is_file():
            yield f"{name} (--{name.replace('_', '-')}) names the file {path!r}, which is not there"
