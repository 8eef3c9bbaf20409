"""Every metric of Hilbert: one table of names, units and help, and the numbers behind it.

The numbers are plain Python integers and floats, bound to their labels once, so that counting costs the
hot path a fraction of a microsecond; `prometheus_client` is imported at the first scrape (its import
takes longer than a start from the cache may) and writes the exposition format.

A request is counted at two points only: by the model that answered it, and where its answer leaves the
server. All recording happens on the front's event loop, but for `on_batch`, which step threads call as
well: that one takes a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hilbert.observability.histogram import Histogram
from hilbert.observability.tei import TeiMetrics, tei_lines

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
_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table.

    Attributes:
        name: without the ``_total`` of counters.
        labels: in the order in which the values of a sample have them.
        buckets: of a histogram: upper bounds, ascending.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()


def _seconds(
    name: str, help: str, labels: tuple[str, ...] = ("model",), buckets: tuple[float, ...] = _SECONDS
) -> MetricSpec:
    return MetricSpec(f"hilbert_{name}_duration_seconds", "histogram", help, labels, buckets)


_BY_ROUTE = ("model", "route", "outcome")

REQUESTS = MetricSpec(
    "hilbert_requests",
    "counter",
    "Requests answered, by route and outcome; probes are not counted.",
    _BY_ROUTE,
)
REJECTIONS = MetricSpec(
    "hilbert_rejections",
    "counter",
    "Requests refused or dropped for want of room, time or quota, by reason.",
    ("model", "reason"),
)
SEQUENCES = MetricSpec("hilbert_sequences", "counter", "Inputs embedded, scored or classified.")
TOKENS = MetricSpec("hilbert_tokens", "counter", "Tokens of these inputs, special tokens included.")
PADDING_TOKENS = MetricSpec(
    "hilbert_padding_tokens", "counter", "Tokens that were computed only to fill batches up."
)
REQUEST_SECONDS = _seconds("request", "From a request's headers to its written answer.", _BY_ROUTE)
TOKENIZE_SECONDS = _seconds("tokenize", "Tokenizing one request.", buckets=_FAST_SECONDS)
QUEUE_SECONDS = _seconds("queue", "Wait of a request's last sequence for its batch.")
INFERENCE_SECONDS = _seconds("inference", "One batch on the device.")
SERIALIZE_SECONDS = _seconds(
    "serialize", "From finished vectors to the bytes of the answer.", buckets=_FAST_SECONDS
)
BATCH_SEQUENCES = MetricSpec(
    "hilbert_batch_sequences", "histogram", "Sequences in one batch.", buckets=_SEQUENCES
)
BATCH_TOKENS = MetricSpec("hilbert_batch_tokens", "histogram", "Tokens in one batch.", buckets=_TOKENS)
PADDING_RATIO = MetricSpec(
    "hilbert_batch_padding_ratio",
    "histogram",
    "Share of a batch's computed tokens that only fill it up.",
    buckets=_SHARES,
)
QUEUE_REQUESTS = MetricSpec("hilbert_queue_requests", "gauge", "Requests let in and not yet answered.")
QUEUE_SEQUENCES = MetricSpec("hilbert_queue_sequences", "gauge", "Sequences let in and not yet answered.")
QUEUE_TOKENS = MetricSpec("hilbert_queue_tokens", "gauge", "Estimated tokens let in and not yet answered.")
BACKLOG_SECONDS = MetricSpec(
    "hilbert_backlog_seconds", "gauge", "Time to answer what was let in, at the rate of the last seconds."
)
READY = MetricSpec("hilbert_model_ready", "gauge", "1 where the model's engine can answer now, else 0.")
FAILED = MetricSpec(
    "hilbert_model_failed", "gauge", "1 where the model could not be loaded and has not been since, else 0."
)
LOADS = MetricSpec("hilbert_model_loads", "counter", "Loads into memory, by outcome.", ("model", "outcome"))
LOAD_SECONDS = _seconds("model_load", "From the order to load to being ready.")
UNLOADS = MetricSpec(
    "hilbert_model_unloads",
    "counter",
    "Times that the model left memory: evicted for want of room, idle for too long, or asked to.",
    ("model", "reason"),
)
MEMORY = MetricSpec(
    "hilbert_model_memory_bytes", "gauge", "Measured size of the model where it is loaded, else 0."
)
CACHE_LOOKUPS = MetricSpec(
    "hilbert_cache_lookups",
    "counter",
    "Traced graphs looked for in this machine's cache at a load; a miss is traced anew.",
    ("model", "cache", "result"),
)
MODEL_INFO = MetricSpec("hilbert_model_info", "gauge", "Always 1; the labels say what is served and how.")

DEVICE_USED = MetricSpec(
    "hilbert_device_memory_used_bytes",
    "gauge",
    "Memory in use on a device; on the CPU that of the server's own processes.",
    ("device",),
)
DEVICE_TOTAL = MetricSpec(
    "hilbert_device_memory_total_bytes",
    "gauge",
    "Memory of a device; on the CPU the budget of the models and the processes together.",
    ("device",),
)
WORKER_MEMORY = MetricSpec(
    "hilbert_worker_resident_memory_bytes", "gauge", "Resident memory of a worker process.", ("device",)
)
WORKER_RESTARTS = MetricSpec(
    "hilbert_worker_restarts", "counter", "Worker processes that were lost and replaced.", ("device",)
)
SERVER_READY = MetricSpec("hilbert_ready", "gauge", "1 where /readyz is green, else 0.", ())
CONFIG_EDITS = MetricSpec(
    "hilbert_config_edits", "counter", "Edits of the settings file, accepted or refused.", ("outcome",)
)
KEY_REQUESTS = MetricSpec(
    "hilbert_key_requests", "counter", "Requests let in, by the label of their key.", ("key",)
)
KEY_TOKENS = MetricSpec("hilbert_key_tokens", "counter", "Tokens used, by the label of the key.", ("key",))

MODEL_TABLE: tuple[MetricSpec, ...] = (
    REQUESTS, REQUEST_SECONDS, REJECTIONS, SEQUENCES, TOKENS, TOKENIZE_SECONDS, QUEUE_SECONDS,
    INFERENCE_SECONDS, SERIALIZE_SECONDS, BATCH_SEQUENCES, BATCH_TOKENS, PADDING_RATIO, PADDING_TOKENS,
    QUEUE_REQUESTS, QUEUE_SEQUENCES, QUEUE_TOKENS, BACKLOG_SECONDS, READY, FAILED, LOADS, LOAD_SECONDS,
    UNLOADS, MEMORY, CACHE_LOOKUPS,
)  # fmt: skip
SERVER_TABLE: tuple[MetricSpec, ...] = (
    SERVER_READY, DEVICE_USED, DEVICE_TOTAL, WORKER_MEMORY, WORKER_RESTARTS, CONFIG_EDITS, KEY_REQUESTS,
    KEY_TOKENS,
)  # fmt: skip
TABLE: tuple[MetricSpec, ...] = (*MODEL_TABLE, MODEL_INFO, *SERVER_TABLE)
"""Every metric, in the order of the exposition."""


def _no_gauge() -> float:
    return 0.0


def _no_info() -> dict[str, str]:
    return {}


class ModelMetrics:
    """The numbers of one model, or (under the name ``""``) of requests that reached none.

    Gauges and info are read from their owner at scrape time.

    Attributes:
        requests: those that reached the model, by outcome.
        answers: those that were answered over HTTP, by route and outcome, and how long they took.
        tei: the same once more in TEI's words; None where nobody asks for them.
    """

    def __init__(self, model: str, *, has_tei_names: bool = False) -> None:
        self.model = model
        self.tei = TeiMetrics() if has_tei_names else None
        self.requests: dict[str, int] = {"ok": 0}
        self.answers: dict[tuple[str, str], Histogram] = {}
        self.rejections: dict[str, int] = {}
        self.num_sequences = 0
        self.num_tokens = 0
        self.num_padding_tokens = 0
        self.tokenize_seconds = Histogram(TOKENIZE_SECONDS.buckets)
        self.queue_seconds = Histogram(QUEUE_SECONDS.buckets)
        self.inference_seconds = Histogram(INFERENCE_SECONDS.buckets)
        self.serialize_seconds = Histogram(SERIALIZE_SECONDS.buckets)
        self.batch_sequences = Histogram(BATCH_SEQUENCES.buckets)
        self.batch_tokens = Histogram(BATCH_TOKENS.buckets)
        self.padding_ratio = Histogram(PADDING_RATIO.buckets)
        self.queue_sequences = 0
        self.loads: dict[str, int] = {"ok": 0, "failed": 0}
        self.load_seconds = Histogram(LOAD_SECONDS.buckets)
        self.unloads: dict[str, int] = {"evicted": 0, "idle": 0, "asked": 0}
        self.cache_lookups: dict[tuple[str, str], int] = {("graph", "hit"): 0, ("graph", "miss"): 0}
        self.read_memory_bytes: Callable[[], float] = _no_gauge
        self.read_queue_requests: Callable[[], float] = _no_gauge
        self.read_queue_tokens: Callable[[], float] = _no_gauge
        self.read_backlog_seconds: Callable[[], float] = _no_gauge
        self.read_ready: Callable[[], float] = _no_gauge
        self.read_failed: Callable[[], float] = _no_gauge
        self.read_info: Callable[[], dict[str, str]] = _no_info
        self._batch_lock = threading.Lock()

    def on_request(
        self, num_sequences: int, num_tokens: int, *, tokenize_seconds: float, queue_seconds: float
    ) -> None:
        """The model has answered a request."""
        self.requests["ok"] += 1
        self.num_sequences += num_sequences
        self.num_tokens += num_tokens
        self.tokenize_seconds.observe(tokenize_seconds)
        self.queue_seconds.observe(queue_seconds)

    def on_failure(self, outcome: str) -> None:
        """The model has answered a request with an error, or its caller left."""
        self.requests[outcome] = self.requests.get(outcome, 0) + 1

    def on_answer(self, route: str, outcome: str, seconds: float) -> None:
        """A request has left the server."""
        histogram = self.answers.get((route, outcome))
        if histogram is None:
            histogram = self.answers[route, outcome] = Histogram(REQUEST_SECONDS.buckets)
        histogram.observe(seconds)

    def on_rejection(self, reason: str) -> None:
        """A request was refused for want of capacity, or dropped for being late."""
        self.rejections[reason] = self.rejections.get(reason, 0) + 1

    def on_load(self, seconds: float, is_from_cache: bool | None = None) -> None:
        """The model came into memory; its graph from the cache, or made now, or it has none."""
        self.loads["ok"] += 1
        self.load_seconds.observe(seconds)
        if is_from_cache is not None:
            self.cache_lookups["graph", "hit" if is_from_cache else "miss"] += 1

    def on_load_failure(self) -> None:
        """The model could not be loaded."""
        self.loads["failed"] += 1

    def on_unload(self, reason: str) -> None:
        """The model left memory."""
        self.unloads[reason] += 1

    def on_batch(self, stats: BatchStats) -> None:
        """The engine ran a batch. Any thread."""
        num_computed = stats.num_tokens + stats.num_padding_tokens
        with self._batch_lock:
            self.batch_sequences.observe(stats.num_sequences)
            self.batch_tokens.observe(stats.num_tokens)
            self.padding_ratio.observe(stats.num_padding_tokens / num_computed if num_computed else 0.0)
            self.num_padding_tokens += stats.num_padding_tokens
            self.inference_seconds.observe(stats.run_seconds)

    def read(self) -> dict[MetricSpec, Any]:
        """What is behind each row of the model's table: a number, a histogram, or these by label."""
        answers = dict(self.answers)  # asked from a thread, while requests are counted
        return {
            REQUESTS: {key: histogram.count for key, histogram in answers.items()},
            REQUEST_SECONDS: answers,
            REJECTIONS: dict(self.rejections),
            SEQUENCES: self.num_sequences,
            TOKENS: self.num_tokens,
            TOKENIZE_SECONDS: self.tokenize_seconds,
            QUEUE_SECONDS: self.queue_seconds,
            INFERENCE_SECONDS: self.inference_seconds,
            SERIALIZE_SECONDS: self.serialize_seconds,
            BATCH_SEQUENCES: self.batch_sequences,
            BATCH_TOKENS: self.batch_tokens,
            PADDING_RATIO: self.padding_ratio,
            PADDING_TOKENS: self.num_padding_tokens,
            QUEUE_REQUESTS: self.read_queue_requests(),
            QUEUE_SEQUENCES: self.queue_sequences,
            QUEUE_TOKENS: self.read_queue_tokens(),
            BACKLOG_SECONDS: self.read_backlog_seconds(),
            READY: self.read_ready(),
            FAILED: self.read_failed(),
            LOADS: dict(self.loads),
            LOAD_SECONDS: self.load_seconds,
            UNLOADS: dict(self.unloads),
            MEMORY: self.read_memory_bytes(),
            CACHE_LOOKUPS: dict(self.cache_lookups),
        }


# Of requests that reached no model, only these rows mean anything.
_WITHOUT_MODEL = (REQUESTS, REQUEST_SECONDS, REJECTIONS)


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """The memory of one device, as it is now."""

    device: str
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """One worker process, as it is now, and how many before it were lost."""

    device: str
    resident_bytes: int
    num_restarts: int


class Metrics:
    """The metrics of the server and all its models, and their exposition.

    Attributes:
        no_model: requests that were answered before anybody knew which model they were for.
        read_usage: label, requests and tokens of each key. Like all others, asked at scrape time.
        read_ready: whether the server can answer.
        read_devices: memory by device.
        read_workers: the worker processes.
        read_config_edits: edits of the settings file, by outcome.

    Args:
        read: the models as they are now; by default those that `model` has made.
    """

    def __init__(self, read: Callable[[], Iterable[ModelMetrics]] | None = None) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._read = read or self._models.values
        self._registry: CollectorRegistry | None = None
        self.no_model = ModelMetrics("")
        self.read_usage: Callable[[], Iterable[tuple[str, int, int]]] = tuple
        self.read_ready: Callable[[], bool] = bool
        self.read_devices: Callable[[], Iterable[DeviceReading]] = tuple
        self.read_workers: Callable[[], Iterable[WorkerReading]] = tuple
        self.read_config_edits: Callable[[], Mapping[str, int]] = dict

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model, made on first use."""
        return self._models.setdefault(name, ModelMetrics(name))

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format; the first call imports `prometheus_client`."""
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest

        registry = self._registry
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            registry.register(self)
            self._registry = registry  # whole: another thread may be asked meanwhile
        return generate_latest(registry) + tei_lines(list(self._read()))

    def collect(self) -> Iterator[PrometheusMetric]:
        """What `prometheus_client` asks a collector for."""
        models = list({id(model): model for model in self._read()}.values())
        values = [(model.model, model.read()) for model in models]
        beside = self.no_model.read()
        for spec in MODEL_TABLE:
            rows = [((name, *labels), value) for name, of in values for labels, value in _by_label(of[spec])]
            if spec in _WITHOUT_MODEL:
                rows += [(("", *labels), value) for labels, value in _by_label(beside[spec])]
            yield _family(spec, rows)
        yield self._info_family(models)
        server = self._server_values()
        for spec in SERVER_TABLE:
            yield _family(spec, server[spec])

    def _server_values(self) -> dict[MetricSpec, list[tuple[Labels, Any]]]:
        devices, workers = list(self.read_devices()), list(self.read_workers())
        usage = list(self.read_usage())
        return {
            SERVER_READY: [((), float(self.read_ready()))],
            DEVICE_USED: [((d.device,), d.used_bytes) for d in devices],
            DEVICE_TOTAL: [((d.device,), d.total_bytes) for d in devices],
            WORKER_MEMORY: [((w.device,), w.resident_bytes) for w in workers],
            WORKER_RESTARTS: [((w.device,), w.num_restarts) for w in workers],
            CONFIG_EDITS: [((outcome,), count) for outcome, count in self.read_config_edits().items()],
            KEY_REQUESTS: [((label,), requests) for label, requests, _ in usage],
            KEY_TOKENS: [((label,), tokens) for label, _, tokens in usage],
        }

    def _info_family(self, models: list[ModelMetrics]) -> PrometheusMetric:
        from prometheus_client.core import GaugeMetricFamily

        infos = {model.model: model.read_info() for model in models}
        keys = sorted({key for info in infos.values() for key in info})
        family = GaugeMetricFamily(MODEL_INFO.name, MODEL_INFO.help, labels=["model", *keys])
        for name, info in infos.items():
            family.add_metric([name, *(info.get(key, "") for key in keys)], 1)
        return family


def _by_label(value: Any) -> list[tuple[Labels, Any]]:
    """The samples of one row: one without further labels, or one for each label."""
    if not isinstance(value, dict):
        return [((), value)]
    return [(key if isinstance(key, tuple) else (key,), of) for key, of in value.items()]


def _family(spec: MetricSpec, rows: Iterable[tuple[Labels, Any]]) -> PrometheusMetric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if spec.kind == "histogram":
        histograms = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        for labels, histogram in rows:
            histograms.add_metric(labels, histogram.cumulative(), histogram.sum)
        return histograms
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    numbers = kind(spec.name, spec.help, labels=spec.labels)
    for labels, number in rows:
        numbers.add_metric(labels, number)
    return numbers
