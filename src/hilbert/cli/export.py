"""``hilbert export``: a folder that is served without torch."""

from __future__ import annotations

from pathlib import Path

from hilbert.cli.runtime import resolve_model, runtime_settings
from hilbert.config import ServerSettings
from hilbert.models.tokenizers import tokenizer_file
from hilbert.runtimes.openvino_runtime import export_folder


def export_model(settings: ServerSettings, folder: Path) -> str:
    """Trace the model into `folder`.

    Returns:
        What to tell the user.

    Raises:
        InvalidInput: the folder is not empty.
        ModelError: the model cannot be had or traced.
    """
    model = settings.models[0]
    spec = resolve_model(model, settings)
    tokenizer = tokenizer_file(spec, settings.cache_dir)
    program = export_folder(spec, runtime_settings(model, settings), folder, tokenizer)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return (
        f"{folder}: {program['program']} graph in {program['dtype']}, {program['dimensions']} dimensions, "
        f"{num_bytes / 1e6:.0f} MB. Serve it with: hilbert serve -m {folder}"
    )
