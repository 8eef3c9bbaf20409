"""What a client is told of a model: one object for OpenAI's `data` and SIE's `models`, loaded or not."""

from __future__ import annotations

import msgspec

from hilbert.models import Entry, State
from hilbert.models.facts import answers_of, sizes_of


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
    """One configured model. What only its files or its runtime know is null until they were seen.

    `dimensions` is the length of the vectors that it is there for: sparse ones are as long as the vocabulary,
    token vectors have the length of one; null for a reranker or a classifier. `dims` has all of them.
    """

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
    spec, info = entry.spec, entry.runtime_info
    admission, metrics, resident = entry.admission, entry.metrics, entry.resident
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
        outputs=[] if spec is None else list(answers_of(spec, info)),
        dims={} if spec is None else {output.value: size for output, size in sizes_of(spec, info).items()},
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


def _last_error(entry: Entry) -> LoadError | None:
    error = entry.error
    if error is None or entry.state is State.LOADED:
        return None
    return LoadError(error.code, error.message, entry.resident.num_failures, False)
