"""Every metric of Hilbert: one table of names, units and help, and the numbers behind it.

The numbers are plain Python integers and floats, bound to their labels once, so that counting costs the
hot path a fraction of a microsecond; `prometheus_client` is imported at the first scrape (its import
takes longer than a start from the cache may) and writes the exposition format.

All recording happens on the front's event loop, but for `on_batch`, which step threads call as well:
that one takes a lock.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as PrometheusMetric

    from hilbert.engine.stats import BatchStats

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_FAST_SECONDS = (0.00002, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table. `label` names a label beside `model`; those of keys carry `key` alone."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""
    buckets: tuple[float, ...] = ()


REQUESTS = MetricSpec("hilbert_requests", "counter", "Requests answered, by outcome.", "outcome")
REJECTIONS = MetricSpec("hilbert_rejections", "counter", "Requests refused or dropped, by reason.", "reason")
SEQUENCES = MetricSpec("hilbert_sequences", "counter", "Inputs embedded.")
TOKENS = MetricSpec("hilbert_tokens", "counter", "Tokens embedded, special tokens included.")
REQUEST_SECONDS = MetricSpec(
    "hilbert_request_duration_seconds", "histogram", "From admission to finished vectors.", buckets=_SECONDS
)
TOKENIZE_SECONDS = MetricSpec(
    "hilbert_tokenize_duration_seconds", "histogram", "Tokenizing one request.", buckets=_FAST_SECONDS
)
QUEUE_SECONDS = MetricSpec(
    "hilbert_queue_duration_seconds",
    "histogram",
    "Wait of a request's last sequence for its batch.",
    buckets=_SECONDS,
)
INFERENCE_SECONDS = MetricSpec(
    "hilbert_inference_duration_seconds", "histogram", "One batch on the device.", buckets=_SECONDS
)
BATCH_SEQUENCES = MetricSpec(
    "hilbert_batch_sequences", "histogram", "Sequences in one batch.", buckets=_SEQUENCES
)
BATCH_TOKENS = MetricSpec("hilbert_batch_tokens", "histogram", "Tokens in one batch.", buckets=_TOKENS)
QUEUE_REQUESTS = MetricSpec("hilbert_queue_requests", "gauge", "Requests let in and not yet answered.")
QUEUE_SEQUENCES = MetricSpec("hilbert_queue_sequences", "gauge", "Sequences let in and not yet answered.")
QUEUE_TOKENS = MetricSpec("hilbert_queue_tokens", "gauge", "Estimated tokens let in and not yet answered.")
LOADS = MetricSpec("hilbert_model_loads", "counter", "Loads into memory, by outcome.", "outcome")
LOAD_SECONDS = MetricSpec(
    "hilbert_model_load_duration_seconds",
    "histogram",
    "From the order to load to being ready.",
    buckets=_SECONDS,
)
UNLOADS = MetricSpec("hilbert_model_unloads", "counter", "Times that the model left memory.")
MEMORY = MetricSpec(
    "hilbert_model_memory_bytes", "gauge", "Measured size of the model where it is loaded, else 0."
)
READY = MetricSpec("hilbert_model_ready", "gauge", "1 where the model's engine can answer now, else 0.")
MODEL_INFO = MetricSpec("hilbert_model_info", "gauge", "Always 1; the labels say what is served and how.")

KEY_REQUESTS = MetricSpec("hilbert_key_requests", "counter", "Requests let in, by the label of their key.")
KEY_TOKENS = MetricSpec("hilbert_key_tokens", "counter", "Tokens used, by the label of the key.")

TABLE: tuple[MetricSpec, ...] = (
    REQUESTS, REJECTIONS, SEQUENCES, TOKENS, REQUEST_SECONDS, TOKENIZE_SECONDS, QUEUE_SECONDS,
    INFERENCE_SECONDS, BATCH_SEQUENCES, BATCH_TOKENS, QUEUE_REQUESTS, QUEUE_SEQUENCES, QUEUE_TOKENS, READY,
    LOADS, LOAD_SECONDS, UNLOADS, MEMORY, MODEL_INFO,
)  # fmt: skip


class Histogram:
    """Counts by bucket, and the sum. The last bucket is everything above the greatest bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """``(upper bound, values at or below it)``, as the exposition format has it."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return rows


def _no_gauge() -> float:
    return 0.0


def _no_info() -> dict[str, str]:
    return {}


class ModelMetrics:
    """The numbers of one model. Gauges and info are read from their owner at scrape time."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.requests: dict[str, int] = {"ok": 0}
        self.rejections: dict[str, int] = {}
        self.num_sequences = 0
        self.num_tokens = 0
        self.request_seconds = Histogram(REQUEST_SECONDS.buckets)
        self.tokenize_seconds = Histogram(TOKENIZE_SECONDS.buckets)
        self.queue_seconds = Histogram(QUEUE_SECONDS.buckets)
        self.inference_seconds = Histogram(INFERENCE_SECONDS.buckets)
        self.batch_sequences = Histogram(BATCH_SEQUENCES.buckets)
        self.batch_tokens = Histogram(BATCH_TOKENS.buckets)
        self.queue_sequences = 0
        self.loads: dict[str, int] = {}
        self.load_seconds = Histogram(LOAD_SECONDS.buckets)
        self.num_unloads = 0
        self.read_memory_bytes: Callable[[], float] = _no_gauge
        self.read_queue_requests: Callable[[], float] = _no_gauge
        self.read_queue_tokens: Callable[[], float] = _no_gauge
        self.read_ready: Callable[[], float] = _no_gauge
        self.read_info: Callable[[], dict[str, str]] = _no_info
        self._batch_lock = threading.Lock()

    def on_request(
        self,
        num_sequences: int,
        num_tokens: int,
        *,
        request_seconds: float,
        tokenize_seconds: float,
        queue_seconds: float,
    ) -> None:
        """A request was answered with vectors."""
        self.requests["ok"] += 1
        self.num_sequences += num_sequences
        self.num_tokens += num_tokens
        self.request_seconds.observe(request_seconds)
        self.tokenize_seconds.observe(tokenize_seconds)
        self.queue_seconds.observe(queue_seconds)

    def on_failure(self, outcome: str) -> None:
        """A request was answered with an error, or its caller left."""
        self.requests[outcome] = self.requests.get(outcome, 0) + 1

    def on_rejection(self, reason: str) -> None:
        """A request was refused for want of capacity, or dropped for being late."""
        self.rejections[reason] = self.rejections.get(reason, 0) + 1

    def on_load(self, seconds: float) -> None:
        """The model came into memory."""
        self.loads["ok"] = self.loads.get("ok", 0) + 1
        self.load_seconds.observe(seconds)

    def on_load_failure(self) -> None:
        """The model could not be loaded."""
        self.loads["failed"] = self.loads.get("failed", 0) + 1

    def on_batch(self, stats: BatchStats) -> None:
        """The engine ran a batch. Any thread."""
        with self._batch_lock:
            self.batch_sequences.observe(stats.num_sequences)
            self.batch_tokens.observe(stats.num_tokens)
            self.inference_seconds.observe(stats.run_seconds)

    def read(self, spec: MetricSpec) -> Any:
        """The number or histogram behind a row of the table; by label where it has one."""
        return {
            REQUESTS: self.requests,
            REJECTIONS: self.rejections,
            SEQUENCES: self.num_sequences,
            TOKENS: self.num_tokens,
            REQUEST_SECONDS: self.request_seconds,
            TOKENIZE_SECONDS: self.tokenize_seconds,
            QUEUE_SECONDS: self.queue_seconds,
            INFERENCE_SECONDS: self.inference_seconds,
            BATCH_SEQUENCES: self.batch_sequences,
            BATCH_TOKENS: self.batch_tokens,
            QUEUE_REQUESTS: self.read_queue_requests(),
            QUEUE_SEQUENCES: self.queue_sequences,
            QUEUE_TOKENS: self.read_queue_tokens(),
            READY: self.read_ready(),
            LOADS: self.loads,
            LOAD_SECONDS: self.load_seconds,
            UNLOADS: self.num_unloads,
            MEMORY: self.read_memory_bytes(),
        }[spec]


class Metrics:
    """The metrics of all served models, and their exposition.

    Attributes:
        read_usage: label, requests and tokens of each key; asked at scrape time.

    Args:
        read: the models as they are now; by default those that `model` has made.
    """

    def __init__(self, read: Callable[[], Iterable[ModelMetrics]] | None = None) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._read = read or self._models.values
        self._registry: CollectorRegistry | None = None
        self.read_usage: Callable[[], Iterable[tuple[str, int, int]]] = tuple

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model, made on first use."""
        return self._models.setdefault(name, ModelMetrics(name))

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format; the first call imports `prometheus_client`."""
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            self._registry.register(self)
        return generate_latest(self._registry)

    def collect(self) -> Iterator[PrometheusMetric]:
        """What `prometheus_client` asks a collector for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for spec in TABLE:
            if spec is MODEL_INFO:
                yield self._info_family()
                continue
            labels = ["model", spec.label] if spec.label else ["model"]
            if spec.kind == "histogram":
                histograms = HistogramMetricFamily(spec.name, spec.help, labels=labels)
                for model in self._read():
                    histogram: Histogram = model.read(spec)
                    histograms.add_metric([model.model], histogram.cumulative(), histogram.sum)
                yield histograms
                continue
            family = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            numbers = family(spec.name, spec.help, labels=labels)
            for model in self._read():
                value = model.read(spec)
                for label, number in value.items() if spec.label else [("", value)]:
                    numbers.add_metric([model.model, label] if spec.label else [model.model], number)
            yield numbers
        usage = list(self.read_usage())
        for place, spec in enumerate((KEY_REQUESTS, KEY_TOKENS)):
            keys = CounterMetricFamily(spec.name, spec.help, labels=["key"])
            for label, *counts in usage:
                keys.add_metric([label], counts[place])
            yield keys

    def _info_family(self) -> PrometheusMetric:
        from prometheus_client.core import GaugeMetricFamily

        infos = {model.model: model.read_info() for model in self._read()}
        keys = sorted({key for info in infos.values() for key in info})
        family = GaugeMetricFamily(MODEL_INFO.name, MODEL_INFO.help, labels=["model", *keys])
        for name, info in infos.items():
            family.add_metric([name, *(info.get(key, "") for key in keys)], 1)
        return family
