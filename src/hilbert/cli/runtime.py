"""From settings to what the other rooms take. No model is loaded here."""

from __future__ import annotations

from pathlib import Path

from hilbert.config import ModelSettings, ServerSettings
from hilbert.core import ModelSpec, Task, with_task
from hilbert.core.changes import with_default_prompt, with_pooling, with_prompts
from hilbert.errors import InvalidInput
from hilbert.hub import resolve
from hilbert.hub.artifacts import read_manifest
from hilbert.hub.lookup import is_here
from hilbert.runtimes.base import RuntimeSettings


def resolve_model(model: ModelSettings, settings: ServerSettings) -> ModelSpec:
    """Find a model's files, on this machine or on the hub.

    Raises:
        ModelError: they cannot be had or read.
        UnsupportedTask: the model cannot be served for the task that was asked for.
        InvalidInput: it has no such pooling or prompt.
    """
    spec = resolve(
        model.model_id,
        revision=model.revision or None,
        token=settings.token or None,
        cache_dir=settings.hub_cache_dir or None,
        trust_remote_code=model.trust_remote_code,
        own_cache=settings.cache_dir,
    )
    if model.pooling != "auto":
        if read_manifest(Path(spec.path)) is not None:
            raise InvalidInput(
                f"{model.model_id} was exported with its pooling; export it again, or leave --pooling out"
            )
        spec = with_pooling(spec, model.pooling)
    if model.prompts:
        spec = with_prompts(spec, model.prompts)
    if model.default_prompt_name:
        spec = with_default_prompt(spec, model.default_prompt_name)
    return spec if model.task == "auto" else with_task(spec, Task(model.task))


def is_on_this_machine(model: ModelSettings, settings: ServerSettings) -> bool:
    """Whether `resolve_model` would ask no network."""
    return is_here(
        model.model_id,
        revision=model.revision or None,
        cache_dir=settings.hub_cache_dir or None,
        trust_remote_code=model.trust_remote_code,
        own_cache=settings.cache_dir,
    )


def runtime_settings(model: ModelSettings, settings: ServerSettings) -> RuntimeSettings:
    """How the model is to be run."""
    return RuntimeSettings(
        engine=model.engine,
        dtype=model.dtype,
        device=model.device,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        trust_remote_code=model.trust_remote_code,
    )
