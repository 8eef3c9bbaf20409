"""``--preload-only``: everything that a first start does, without serving; for images and caches."""

from __future__ import annotations

from hilbert.cli.runtime import resolve_model, runtime_settings
from hilbert.config import ServerSettings
from hilbert.models.facts import shape_text
from hilbert.runtimes import load_runtime
from hilbert.runtimes.tracing import one_child


def preload(settings: ServerSettings) -> int:
    """Fetch, trace, compile and cache every model.

    Raises:
        ServingError: a model cannot be had or run.
    """
    with one_child():
        for model in settings.models:
            spec = resolve_model(model, settings)
            runtime = load_runtime(spec, runtime_settings(model, settings))
            info = runtime.info
            runtime.close()
            print(
                f"{model.name}: ready ({info.program}, {info.engine}, {info.dtype}): {shape_text(spec, info)}"
            )
    return 0
