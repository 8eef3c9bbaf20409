"""Texts to the spans that labels name."""

from __future__ import annotations

from hilbert.core import ExtractRequest, ExtractResult, Output, OutputType, Sequence, Task, Timing
from hilbert.errors import ServingError
from hilbert.models.facts import Facts
from hilbert.processors import SpanProcessor


class ExtractWork:
    """Implements `Work` for models that find spans.

    Args:
        facts: the model.
        spans: None where it is not one of these.
        request: the call.
    """

    def __init__(self, facts: Facts, spans: SpanProcessor | None, request: ExtractRequest) -> None:
        self._facts = facts
        self._given = spans
        self._request = request
        # The engine knows rows for each sequence, as many as there are tokens or spans.
        self.outputs = frozenset({OutputType.MULTIVECTOR})
        self.num_inputs = len(request.texts)
        self.timeout_seconds = request.timeout_seconds

    @property
    def _spans(self) -> SpanProcessor:
        assert self._given is not None, "`check` comes first"
        return self._given

    def check(self) -> None:
        """See `Work`."""
        if self._given is None:
            raise self._facts.cannot(Task.EXTRACT, "it finds no spans of texts")
        self._given.check(self._request)

    def estimate_tokens(self) -> int:
        """See `Work`."""
        return self._spans.estimate_tokens(self._request)

    def is_small(self) -> bool:
        """See `Work`. Not worth finding out: the model itself takes far longer than a thread costs."""
        return False

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """See `Work`."""
        return self._spans.encode(self._request, request_id)

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> ExtractResult:
        """See `Work`."""
        assert output.multivector is not None
        labels = tuple(dict.fromkeys(self._request.labels))
        return ExtractResult(labels, output.multivector, num_tokens, timing)

    def name(self, error: ServingError) -> ServingError:
        """See `Work`: inputs are called inputs."""
        return error
