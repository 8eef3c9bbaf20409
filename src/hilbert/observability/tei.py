"""The metrics of text-embeddings-inference under its own names, for dashboards that were made for it.

The names, labels and units are TEI's, so they break Prometheus' rules as TEI does (counters without
``_total``). TEI serves one model and has no label for it: the models of this server are counted together.
Durations have our own buckets; the length of an input is the mean over the inputs of its request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from hilbert.errors import (
    CapacityError,
    InputTooLong,
    InvalidInput,
    Overloaded,
    ServingError,
    UnsupportedTask,
)
from hilbert.observability.histogram import Histogram

if TYPE_CHECKING:
    from hilbert.observability.metrics import ModelMetrics

Kind = Literal["embed", "predict"]

_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0,
)  # fmt: skip
_LENGTHS = tuple(2**power for power in range(16))
_STAGES = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
_STAGE_HELP = {
    "duration": "Seconds from admission to the finished result",
    "tokenization_duration": "Seconds of tokenizing",
    "queue_duration": "Seconds of waiting for a batch",
    "inference_duration": "Seconds on the device",
}


class TeiMetrics:
    """The numbers of one model. All recording happens on the event loop."""

    def __init__(self) -> None:
        self.num_requests = {"single": 0, "batch": 0}
        self.num_answered = {"single": 0, "batch": 0}
        self.failures: dict[str, int] = {}
        self.num_inputs: dict[Kind, int] = {"embed": 0, "predict": 0}
        self.num_inputs_answered: dict[Kind, int] = {"embed": 0, "predict": 0}
        self.stages = {
            (who, stage): Histogram(_SECONDS) for who in ("request", "embed", "predict") for stage in _STAGES
        }
        self.input_length = Histogram(_LENGTHS)

    def on_call(self, kind: Kind, num_inputs: int) -> None:
        """A request has reached the model."""
        self.num_requests["single" if num_inputs == 1 else "batch"] += 1
        self.num_inputs[kind] += num_inputs

    def on_answer(
        self, kind: Kind, num_inputs: int, num_tokens: int, seconds: tuple[float, float, float, float]
    ) -> None:
        """The model has answered; `seconds` in all, of tokenizing, of the queue and of inference."""
        self.num_answered["single" if num_inputs == 1 else "batch"] += 1
        self.num_inputs_answered[kind] += num_inputs
        self.input_length.observe(num_tokens / num_inputs, num_inputs)
        for stage, spent in zip(_STAGES, seconds, strict=True):
            self.stages["request", stage].observe(spent)
            self.stages[kind, stage].observe(spent, num_inputs)

    def on_failure(self, error: ServingError | None) -> None:
        """The model has answered with an error, or (None) its caller has left."""
        name = failure_of(error)
        self.failures[name] = self.failures.get(name, 0) + 1


def failure_of(error: ServingError | None) -> str:
    """TEI's word for what went wrong."""
    if error is None:
        return "dropped"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, CapacityError):
        return "dropped"
    if isinstance(error, UnsupportedTask):
        return "model_type"
    if isinstance(error, InputTooLong | InvalidInput):
        return "validation"
    return "inference"


def tei_lines(models: Iterable[ModelMetrics]) -> bytes:
    """The exposition of all models together; nothing where none counts in these words."""
    counted = [(model, model.tei) for model in models if model.tei is not None]
    if not counted:
        return b""
    text = _Text()
    all_tei = [tei for _, tei in counted]
    methods = ("single", "batch")
    text.numbers(
        "te_request_count", "counter", "Requests that reached a model.", "method",
        {method: sum(tei.num_requests[method] for tei in all_tei) for method in methods},
    )  # fmt: skip
    text.numbers(
        "te_request_success", "counter", "Requests that were answered.", "method",
        {method: sum(tei.num_answered[method] for tei in all_tei) for method in methods},
    )  # fmt: skip
    failures: dict[str, int] = {}
    for tei in all_tei:
        for name, count in dict(tei.failures).items():  # asked from a thread, while requests are counted
            failures[name] = failures.get(name, 0) + count
    text.numbers("te_request_failure", "counter", "Requests that failed, by reason.", "err", failures)
    kinds: tuple[Kind, Kind] = ("embed", "predict")
    for kind in kinds:
        text.number(f"te_{kind}_count", "counter", "Inputs.", sum(tei.num_inputs[kind] for tei in all_tei))
        text.number(
            f"te_{kind}_success", "counter", "Inputs that were answered.",
            sum(tei.num_inputs_answered[kind] for tei in all_tei),
        )  # fmt: skip
    for who in ("request", *kinds):
        for stage in _STAGES:
            text.histogram(
                f"te_{who}_{stage}", _STAGE_HELP[stage] + ".", [tei.stages[who, stage] for tei in all_tei]
            )
    text.histogram("te_request_input_length", "Tokens of an input.", [tei.input_length for tei in all_tei])
    queued = sum(model.queue_sequences for model, _ in counted)
    text.number("te_queue_size", "gauge", "Inputs let in and not yet answered.", queued)
    batches = [model for model, _ in counted]
    text.histogram("te_batch_next_size", "Inputs of a batch.", [model.batch_sequences for model in batches])
    text.histogram("te_batch_next_tokens", "Tokens of a batch.", [model.batch_tokens for model in batches])
    return "".join(text.lines).encode()


class _Text:
    """Lines of Prometheus' text format; `prometheus_client` would rename the counters."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _head(self, name: str, kind: str, help: str) -> None:
        self.lines.append(f"# HELP {name} {help}\n# TYPE {name} {kind}\n")

    def number(self, name: str, kind: str, help: str, value: float) -> None:
        self._head(name, kind, help)
        self.lines.append(f"{name} {value}\n")

    def numbers(self, name: str, kind: str, help: str, label: str, values: dict[str, int]) -> None:
        self._head(name, kind, help)
        self.lines += [f'{name}{{{label}="{key}"}} {value}\n' for key, value in values.items()]

    def histogram(self, name: str, help: str, parts: list[Histogram]) -> None:
        self._head(name, "histogram", help)
        total = 0
        for place, bound in enumerate((*parts[0].bounds, "+Inf")):
            total += sum(part.counts[place] for part in parts)
            self.lines.append(f'{name}_bucket{{le="{bound}"}} {total}\n')
        self.lines.append(f"{name}_sum {sum(part.sum for part in parts)}\n{name}_count {total}\n")
