"""Texts into classes."""

from __future__ import annotations

import msgspec
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
from hilbert.processors import PairProcessors, called


class ClassifyWork:
    """Implements `Work` for sequence-classification models."""

    def __init__(self, facts: Facts, pairs: PairProcessors, request: ClassifyRequest) -> None:
        self._facts = facts
        self._pairs = pairs
        self._request = request
        self._texts = tuple(
            text for given in request.inputs for text in ((given,) if isinstance(given, str) else given)
        )
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
        truncate = self._request.truncate is not False
        return self._facts.processor.estimate_tokens(self._texts, truncate=truncate)

    def is_small(self) -> bool:
        """See `Work`. What cuts on the other side may have to be made first."""
        return self._request.truncation_side is None and self._facts.processor.is_small(self._texts)

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`. Prompts are for embeddings; classifiers were trained without."""
        request = self._request
        alone = EmbedRequest(
            (), prompt="", truncate=request.truncate, truncation_side=request.truncation_side
        )
        if len(self._texts) == len(request.inputs):
            return self._facts.processor.encode(
                msgspec.structs.replace(alone, inputs=self._texts), request_id
            )
        return tuple(
            self._one(msgspec.structs.replace(alone, inputs=(given,)), request_id, index)
            if isinstance(given, str)
            else self._pair(given, request_id, index)
            for index, given in enumerate(request.inputs)
        )

    def _one(self, request: EmbedRequest, request_id: int, index: int) -> Sequence:
        with called("input", shift=index):
            (sequence,) = self._facts.processor.encode(request, request_id)
        return msgspec.structs.replace(sequence, index=index)

    def _pair(self, pair: tuple[str, str], request_id: int, index: int) -> Sequence:
        request = self._request
        try:
            pairs = self._pairs.cutting(request.truncation_side).encode(
                pair[0], pair[1:], request.truncate is not False, request_id, prompt=""
            )
        except ServingError as error:
            raise _about_pair(error, index) from error
        return msgspec.structs.replace(pairs.sequences[0], index=index)

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


def _about_pair(error: ServingError, index: int) -> ServingError:
    """An error about a query and its document in the words of a call that has neither."""
    place = f"input[{index}]"
    words = (
        ("documents[0] and the query", f"the texts of {place}"),
        ("documents[0]", place),
        ("query", place),
    )
    for theirs, ours in words:
        if error.param in ("query", "documents") and error.message.startswith(theirs):
            return type(error)(ours + error.message[len(theirs) :], param="input", index=index)
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
