"""The text of ``hilbert models info``: what a model is and how it runs, from its JSON alone."""

from __future__ import annotations

from pathlib import Path

from hilbert.core import (
    ClassifierModule,
    DenseModule,
    LayerNormModule,
    ModelSpec,
    NormalizeModule,
    PoolingModule,
    SpladeModule,
    TextProjectionModule,
    TokenVectorsModule,
    TokenWeightsModule,
    Tower,
    tasks_of,
)
from hilbert.hub.artifacts import exported_of
from hilbert.models.facts import shape_text, usual_size
from hilbert.programs.choose import plan


def describe(spec: ModelSpec) -> str:
    """A few lines for a person; nothing is loaded."""
    export = exported_of(Path(spec.path))
    program, reason = plan(spec) if export is None else (export.program, export.reason)
    rows = [
        ("model", spec.model_id),
        *([("export of", str(export))] if export is not None else []),
        ("folder", spec.path),
        ("revision", spec.commit or f"local folder, digest {spec.digest[:16]}"),
        ("task", _tasks(spec)),
        ("runs", f"{program}: {reason}"),
        ("family", " ".join(filter(None, (spec.family or spec.kind, f"({spec.architecture})")))),
        ("chain", " → ".join(_module(module) for module in spec.modules) or "none"),
        ("normalized", "yes" if spec.normalize else "no"),
        ("dimensions", str(usual_size(spec, None) or "none")),
        ("answers", shape_text(spec, None)),
        *([("towers", ", ".join(map(_tower, spec.towers)))] if spec.towers else []),
        ("tokens", "any number" if spec.max_model_len is None else f"at most {spec.max_model_len}"),
        ("similarity", spec.similarity),
        ("prompts", _prompts(spec)),
        ("weights", ", ".join(spec.weights) or ("none" if export is None else "inside the graph")),
        (
            "graphs",
            ", ".join(spec.graph_files) or ("none shipped" if export is None else "model.xml, traced"),
        ),
    ]
    if spec.remote_code:
        rows.append(("code", "the repository brings its own; it runs only with --trust-remote-code"))
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _module(module: object) -> str:
    if isinstance(module, PoolingModule):
        return "pooling " + "+".join(module.modes)
    if isinstance(module, DenseModule):
        return f"dense {module.in_features}→{module.out_features}"
    if isinstance(module, ClassifierModule):
        return f"classifier of {module.num_labels} labels"
    if isinstance(module, TokenVectorsModule):
        return f"token vectors of {module.dimension}"
    names: dict[type, str] = {
        LayerNormModule: "layer norm",
        NormalizeModule: "normalize",
        SpladeModule: "SPLADE pooling",
        TextProjectionModule: "text projection",
        TokenWeightsModule: "token weights",
    }
    return names.get(type(module), type(module).__name__)


def _tower(tower: Tower) -> str:
    return f"{tower.modality} {' x '.join(map(str, tower.shape))}, {tower.num_tokens} tokens"


def _tasks(spec: ModelSpec) -> str:
    others = [task for task in tasks_of(spec) if task is not spec.task]
    return f"{spec.task}; also {', '.join(others)}" if others else str(spec.task)


def _prompts(spec: ModelSpec) -> str:
    if not spec.prompts:
        return "none"
    return ", ".join(
        f"{name}{' (default)' if name == spec.default_prompt_name else ''} {text!r}"
        for name, text in spec.prompts.items()
    )
