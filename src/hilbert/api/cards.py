"""What a client is told of a model: one object for OpenAI's `data` and SIE's `models`, loaded or not."""

from __future__ import annotations

import msgspec

from hilbert.core import OutputType
from hilbert.models import Entry, State

# What clients know of a model; logits are seen as scores only.
_SHOWN = (OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR)


class LoadError(msgspec.Struct):
    """Why the last load failed."""

    code: str
    message: str
    attempts: int
    permanent: bool


class Limits(msgspec.Struct):
    """Beyond these a request is answered 429."""

    max_concurrent_requests: int
    max_queued_tokens: int


class Stats(msgspec.Struct):
    """How busy it is, and what it has done since the server started."""

    requests_in_work: int
    queued_tokens: int
    requests: int
    tokens: int
    loads: int
    unloads: int
    memory_bytes: int


class Model(msgspec.Struct):
    """One configured model. What only its files or its runtime know is null until they were seen."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str | None
    aliases: list[str]
    prefix: str | None
    task: str | None
    tasks: list[str]
    dimensions: int | None
    max_model_len: int | None
    ready: bool
    pinned: bool
    limits: Limits
    stats: Stats
    # SIE's names
    name: str
    inputs: list[str]
    outputs: list[str]
    dims: dict[str, int]
    loaded: bool
    state: str
    last_error: LoadError | None
    max_sequence_length: int | None
    profiles: dict[str, dict[str, bool]]


class ModelList(msgspec.Struct):
    """All configured models; both lists hold the same."""

    object: str
    data: list[Model]
    models: list[Model]


def card(entry: Entry) -> Model:
    """What is known of a model now."""
    spec, admission, metrics, resident = entry.spec, entry.admission, entry.metrics, entry.resident
    max_model_len = None if spec is None else spec.max_model_len
    is_loaded = entry.served is not None
    return Model(
        id=entry.name,
        object="model",
        created=entry.created,
        owned_by="hilbert",
        root=None if spec is None else spec.model_id,
        aliases=list(entry.aliases),
        prefix=entry.prefix or None,
        task=None if spec is None else spec.task.value,
        tasks=[task.value for task in entry.tasks],
        dimensions=entry.dimensions,
        max_model_len=max_model_len,
        ready=entry.is_ready,
        pinned=resident.is_pinned,
        limits=Limits(admission.max_concurrent_requests, admission.max_queued_tokens),
        stats=Stats(
            requests_in_work=admission.num_requests,
            queued_tokens=admission.num_queued_tokens,
            requests=sum(metrics.requests.values()),
            tokens=metrics.num_tokens,
            loads=metrics.loads["ok"],
            unloads=sum(metrics.unloads.values()),
            memory_bytes=resident.size_bytes if is_loaded else 0,
        ),
        name=entry.name,
        inputs=["text"] if spec is None else [modality.value for modality in spec.modalities],
        outputs=[output.value for output in _SHOWN if output in entry.outputs],
        dims=_dims(entry),
        loaded=is_loaded,
        state=entry.state.value,
        last_error=_last_error(entry),
        max_sequence_length=max_model_len,
        profiles={"default": {"is_default": True}},
    )


def cards(entries: tuple[Entry, ...]) -> ModelList:
    """The body of `/v1/models`."""
    found = [card(entry) for entry in entries]
    return ModelList("list", found, found)


def _dims(entry: Entry) -> dict[str, int]:
    info, spec = entry.runtime_info, entry.spec
    if spec is None:
        return {}
    sizes = {
        OutputType.DENSE: entry.dimensions or 0,
        OutputType.SPARSE: spec.sparse_dimensions,
        OutputType.MULTIVECTOR: 0 if info is None else info.token_dimensions,
    }
    return {output.value: sizes[output] for output in _SHOWN if output in entry.outputs and sizes[output]}


def _last_error(entry: Entry) -> LoadError | None:
    error = entry.error
    if error is None or entry.state is State.LOADED:
        return None
    return LoadError(error.code, error.message, entry.resident.num_failures, False)
