"""``hilbert export``: a folder that is served without torch."""

from __future__ import annotations

from pathlib import Path

from hilbert.cli.runtime import resolve_model, runtime_settings
from hilbert.config import ServerSettings
from hilbert.errors import UnsupportedArchitecture
from hilbert.models.tokenizers import tokenizer_file
from hilbert.programs.choose import plan
from hilbert.runtimes.openvino_runtime import export_folder


def export_model(settings: ServerSettings, folder: Path) -> str:
    """Trace the model into `folder`.

    Returns:
        What to tell the user.

    Raises:
        InvalidInput: the folder is not empty.
        ModelError: the model cannot be had, traced, or is none that has a graph.
    """
    model = settings.models[0]
    spec = resolve_model(model, settings)
    program, reason = plan(spec)
    if program not in ("packed", "padded"):
        raise UnsupportedArchitecture(
            f"{model.model_id} cannot be exported, as no graph is made of it: {reason}; serve it as it is"
        )
    tokenizer = tokenizer_file(spec, settings.cache_dir)
    made = export_folder(spec, runtime_settings(model, settings), folder, tokenizer)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return (
        f"{folder}: {made['program']} graph in {made['dtype']}, {made['dimensions']} dimensions, "
        f"{num_bytes / 1e6:.0f} MB. Serve it with: hilbert serve -m {folder}"
    )
