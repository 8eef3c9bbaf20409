"""What a model can be served for, as its spec says."""

from __future__ import annotations

import msgspec

from hilbert.core.media import Modality
from hilbert.core.spec import (
    ClassifierModule,
    LogitScoreModule,
    ModelSpec,
    SparseCodeModule,
    SpladeModule,
    Task,
    TokenWeightsModule,
)
from hilbert.errors import UnsupportedTask

# The only label of a model that scores pairs by its logits; it names none itself.
RELEVANCE = "relevance"
_TASK_OF = {Modality.IMAGE: Task.IMAGE_EMBED, Modality.AUDIO: Task.AUDIO_EMBED}


def tasks_of(spec: ModelSpec) -> tuple[Task, ...]:
    """Everything that this model can be asked for, its usual task first."""
    classifier = next((m for m in spec.modules if isinstance(m, ClassifierModule)), None)
    if spec.extractor is not None:
        tasks = [Task.EXTRACT]
    elif classifier is not None:
        tasks = [Task.RERANK, Task.CLASSIFY] if classifier.num_labels == 1 else [Task.CLASSIFY]
    elif any(isinstance(m, LogitScoreModule) for m in spec.modules):
        tasks = [Task.RERANK]
    elif any(isinstance(m, SpladeModule | SparseCodeModule) for m in spec.modules):
        tasks = [Task.SPARSE_EMBED, Task.RERANK]
    elif spec.multivector is not None:
        tasks = [Task.MULTI_EMBED, Task.RERANK]
    elif spec.kind == "other" and spec.task is not Task.EMBED:
        tasks = [spec.task]  # what more it can do, only sentence-transformers knows
    else:
        tasks = [Task.EMBED, Task.RERANK]
        tasks += [_TASK_OF[m] for m in spec.modalities if m in _TASK_OF]
        if spec.kind == "transformer" and not spec.towers:
            tasks.append(Task.MULTI_EMBED)
        if any(isinstance(m, TokenWeightsModule) for m in spec.modules):
            tasks.append(Task.SPARSE_EMBED)
    return tuple(tasks)


def with_task(spec: ModelSpec, task: Task) -> ModelSpec:
    """The same model, served for another task by default.

    A bare causal language model becomes the reranker that sentence-transformers' CrossEncoder makes of it, a
    bare masked one the SPLADE that its SparseEncoder makes of it.

    Raises:
        UnsupportedTask: it cannot be; the message says what it can.
    """
    if task is Task.SPARSE_EMBED and spec.is_masked_lm:
        return as_splade(spec)
    tasks = tasks_of(spec)
    if task not in tasks:
        known = ", ".join(tasks)
        raise UnsupportedTask(f"{spec.model_id} cannot be served for --task {task}; it can for: {known}.")
    if task is Task.RERANK and spec.answer_ids is not None:
        return as_reranker(spec, *spec.answer_ids)
    return spec if task is spec.task else msgspec.structs.replace(spec, task=task)


def as_reranker(spec: ModelSpec, true_id: int, false_id: int) -> ModelSpec:
    """The same language model, scoring pairs by the logits of two answers instead of embedding texts."""
    return msgspec.structs.replace(
        spec,
        task=Task.RERANK,
        modules=(LogitScoreModule(true_id, false_id),),
        normalize=False,
        labels=(RELEVANCE,),
        loaded_as="CrossEncoder",
    )


def as_splade(spec: ModelSpec) -> ModelSpec:
    """The same masked language model, weighing its vocabulary instead of pooling its tokens."""
    return msgspec.structs.replace(
        spec,
        task=Task.SPARSE_EMBED,
        modules=(SpladeModule(),),
        normalize=False,
        is_masked_lm=False,
        loaded_as="SparseEncoder",
    )
