"""The numbers behind the exposition."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from hilbert.engine.stats import BatchStats
from hilbert.observability.metrics import Histogram, ModelMetrics


def test_histograms_count_as_prometheus_does():
    bounds = (0.001, 0.5, 1.0, 60.0)
    registry = CollectorRegistry()
    reference = Reference("x", "x", buckets=bounds, registry=registry)
    ours = Histogram(bounds)
    for value in (0.0, 0.001, 0.0011, 0.5, 0.7, 1.0, 1.5, 59.0, 60.0, 61.0, 1e9):
        ours.observe(value)
        reference.observe(value)
    theirs = [
        (s.labels["le"], s.value) for f in registry.collect() for s in f.samples if s.name == "x_bucket"
    ]
    assert ours.cumulative() == theirs
    assert ours.sum == registry.get_sample_value("x_sum")


def test_batches_are_counted_from_any_thread():
    metrics = ModelMetrics("m")
    stats = BatchStats(3, 100, 0.0, 0.0, 0.0, 0.25, False, "", 0, 0)
    threads = [
        threading.Thread(target=lambda: [metrics.on_batch(stats) for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.batch_tokens.sum == 800_000 and metrics.batch_sequences.sum == 24_000
    assert metrics.inference_seconds.cumulative()[-1] == ("+Inf", 8000.0)
