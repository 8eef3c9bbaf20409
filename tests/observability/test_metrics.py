"""The numbers behind the exposition."""

from __future__ import annotations

import threading
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from hilbert.engine.stats import BatchStats
from hilbert.errors import Overloaded
from hilbert.observability.metrics import TABLE, Histogram, Metrics, ModelMetrics
from hilbert.observability.tei import tei_lines


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


class Growing(dict[str, int]):
    """What the event loop adds to while another thread reads it."""

    def items(self):
        for item in super().items():
            self["new"] = 1
            yield item


def test_requests_are_counted_while_the_page_is_written():
    metrics = ModelMetrics("m", has_tei_names=True)
    metrics.tei.failures = Growing(overloaded=1)
    assert b'te_request_failure{err="overloaded"} 1' in tei_lines([metrics])


def test_batches_are_counted_from_any_thread():
    metrics = ModelMetrics("m")
    stats = BatchStats(3, 100, 0.0, 0.25, False, "", 0, 0, num_padding_tokens=100)
    threads = [
        threading.Thread(target=lambda: [metrics.on_batch(stats) for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.batch_tokens.sum == 800_000 and metrics.batch_sequences.sum == 24_000
    assert metrics.num_padding_tokens == 800_000 and metrics.padding_ratio.sum == 4000
    assert metrics.inference_seconds.cumulative()[-1] == ("+Inf", 8000.0)


def test_first_scrapes_at_the_same_time_are_whole(monkeypatch):
    metrics, pages = Metrics(), []

    def slowly(registry):  # while one thread is here, another is asked
        monkeypatch.undo()
        pages.append(metrics.expose())

    monkeypatch.setattr(prometheus_client, "PlatformCollector", slowly)
    pages.append(metrics.expose())
    assert len(pages) == 2 and all(b"hilbert_ready" in page for page in pages)


def test_the_page_lists_every_metric():
    page = (Path(__file__).parents[2] / "docs/observability.md").read_text()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `hilbert_")}
    shown = {spec.name + ("_total" if spec.kind == "counter" else ""): spec for spec in TABLE}
    assert list(rows) == list(shown)
    for name, spec in shown.items():
        _, _, kind, labels, what, _ = rows[name].split("|")
        assert (kind.strip(), what.strip()) == (spec.kind, spec.help)
        assert [label for label in labels.split("`")[1::2] if label.isidentifier()] == list(spec.labels)


def test_teis_names_count_as_tei_does():
    metrics = ModelMetrics("m", has_tei_names=True)
    assert metrics.tei is not None and tei_lines([ModelMetrics("n")]) == b""
    metrics.tei.on_call("embed", 4)
    metrics.tei.on_answer("embed", 4, 40, (0.5, 0.001, 0.2, 0.3))
    metrics.tei.on_call("predict", 1)
    metrics.tei.on_failure(Overloaded("full"))
    text = tei_lines([metrics]).decode()
    for line in (
        "# TYPE te_request_count counter", 'te_request_count{method="single"} 1',
        'te_request_count{method="batch"} 1', 'te_request_success{method="batch"} 1',
        'te_request_failure{err="overloaded"} 1', "te_embed_count 4", "te_embed_success 4",
        "te_predict_count 1",
        "te_predict_success 0", "te_request_queue_duration_sum 0.2", "te_embed_inference_duration_count 4",
        'te_embed_duration_bucket{le="0.25"} 0', 'te_embed_duration_bucket{le="0.5"} 4',
        'te_request_input_length_bucket{le="16"} 4', "te_request_input_length_sum 40.0", "te_queue_size 0",
        "te_batch_next_size_count 0",
    ):  # fmt: skip
        assert line in text.splitlines(), line
