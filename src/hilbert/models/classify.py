"""Texts into classes."""

from __future__ import annotations

import numpy as np

from hilbert.core import (
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    LogitScoreModule,
    Output,
    OutputType,
    Sequence,
    Task,
    Timing,
)
from hilbert.core.request import FloatArray
from hilbert.errors import ServingError
from hilbert.models.facts import Facts
from hilbert.models.rerank import sigmoid


class ClassifyWork:
    """Implements `Work` for sequence-classification models."""

    def __init__(self, facts: Facts, request: ClassifyRequest) -> None:
        self._facts = facts
        self._request = request
        self.outputs = frozenset({OutputType.LOGITS})
        self.num_inputs = len(request.inputs)
        self.timeout_seconds = request.timeout_seconds

    def check(self) -> None:
        """See `Work`."""
        if OutputType.LOGITS not in self._facts.outputs:
            raise self._facts.cannot(Task.CLASSIFY, "it has no classification head")
        if any(isinstance(module, LogitScoreModule) for module in self._facts.spec.modules):
            raise self._facts.cannot(Task.CLASSIFY, "it scores pairs of a query and a document")

    def estimate_tokens(self) -> int:
        """See `Work`."""
        return self._facts.processor.estimate_tokens(self._request.inputs)

    def is_small(self) -> bool:
        """See `Work`."""
        return self._facts.processor.is_small(self._request.inputs)

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`. Prompts are for embeddings; classifiers were trained without."""
        request = EmbedRequest(self._request.inputs, prompt="", truncate=self._request.truncate)
        return self._facts.processor.encode(request, request_id)

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> ClassifyResult:
        """See `Work`."""
        assert output.logits is not None
        spec = self._facts.spec
        logits = output.logits
        scores = logits if self._request.raw_scores else probabilities(logits, spec.problem_type)
        order = np.argsort(-scores, axis=1, kind="stable")
        num_labels = logits.shape[1]
        labels = spec.labels if len(spec.labels) == num_labels else _numbered(num_labels)
        return ClassifyResult(labels, order, np.take_along_axis(scores, order, 1), num_tokens, timing)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: inputs are called inputs."""
        return error


def probabilities(logits: FloatArray, problem_type: str) -> FloatArray:
    """Scores of classes: each on its own for multi-label models and lone labels, else summing to 1.

    Args:
        logits: ``[N, L]`` float32.
        problem_type: as in config.json; a regression keeps its numbers.
    Source: the text-classification pipeline of transformers.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return sigmoid(logits)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _numbered(num_labels: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(num_labels))
