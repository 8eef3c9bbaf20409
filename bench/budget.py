"""Sweep of the token budget on this CPU, through the engine in-process: where the default comes from.

    python bench/budget.py              # about five minutes; writes bench/results/<date>-<cpu>-budget.json
    python bench/budget.py --quick

Per budget: tokens per second with all texts queued (`bulk`) and with 32 in flight, for `mixed` and
`short`; and how long a short query takes beside a request of 2048 texts, as a batch that runs must end
first. A larger budget wins throughput until the caches are full; a smaller one wins that wait. Budgets
alternate within each round; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import machine
from hilbert.core import Request, Sequence
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime
from inprocess import IN_FLIGHT, feed, rate, running_engine, token_ids
from peers import BENCH, TMP
from workloads import Corpus, mixed, short

BUDGETS = [512, 1024, 1536, 2048, 3072, 4096, 8192]


def query_beside(engine: Any, bulk: list[Any], queries: list[Any], seconds: float) -> dict[str, float]:
    """Seconds of short queries, one every 50 ms, beside requests of 2048 texts that run one after another."""
    is_over = threading.Event()
    is_bulk_over = threading.Event()

    def start_bulk(output: Any = None) -> None:
        if is_over.is_set():
            is_bulk_over.set()
            return
        start_bulk.turn -= 1
        sequences = tuple(Sequence(start_bulk.turn, i, x) for i, x in enumerate(bulk))
        engine.submit(Request(start_bulk.turn, sequences), start_bulk)

    start_bulk.turn = -1  # ids below zero, so that they never meet a query's
    start_bulk()
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        is_answered = threading.Event()
        number = len(latencies)
        start = time.perf_counter()
        sequence = Sequence(number, 0, queries[number % len(queries)])
        engine.submit(Request(number, (sequence,)), lambda _, e=is_answered: e.set())
        is_answered.wait()
        latencies.append(time.perf_counter() - start)
        time.sleep(0.05)
    is_over.set()
    is_bulk_over.wait()
    latencies.sort()
    return {
        "query_p50_ms": round(latencies[len(latencies) // 2] * 1e3, 1),
        "query_p90_ms": round(latencies[len(latencies) * 9 // 10] * 1e3, 1),
    }


def measure(runtime: Any, budget: int, inputs: dict[str, list[Any]], seconds: float) -> dict[str, float]:
    with running_engine(runtime, budget) as engine:
        feed(engine, inputs["mixed"][:100], IN_FLIGHT)
        found = {
            f"{name}_{load}_tokens_per_second": rate(engine, ids, in_flight, seconds)["tokens_per_second"]
            for name, ids in inputs.items()
            for load, in_flight in (("bulk", None), ("in_flight_32", IN_FLIGHT))
        }
        bulk = (inputs["mixed"] * 3)[:2048]
        return found | query_beside(engine, bulk, inputs["short"], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work: one round, tiny loads")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    a = parser.parse_args()
    rounds, seconds = (1, 0.2) if a.quick else (3, 2.0)
    spec = resolve(None)
    corpus = Corpus(Path(spec.path) / "tokenizer.json")
    count = 60 if a.quick else 1000
    workloads = [mixed(corpus, count), short(corpus, count)]
    inputs = {w.name: token_ids(w.texts, Path(spec.path)) for w in workloads}
    runtime = load_runtime(spec, RuntimeSettings(cache_dir=str(TMP / "hilbert-cache")))
    samples: dict[int, list[dict[str, float]]] = {budget: [] for budget in a.budgets}
    for turn in range(rounds):
        for budget in a.budgets:
            samples[budget].append(measure(runtime, budget, inputs, seconds))
            print(f"round {turn + 1}, {budget} tokens: {samples[budget][-1]}", flush=True)
    medians = {
        budget: {key: statistics.median(s[key] for s in found) for key in found[0]}
        for budget, found in samples.items()
    }
    result = {
        "what": "token budget of a batch, engine in-process, all-MiniLM-L6-v2",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "dtype": runtime.info.dtype,
        "default_max_batch_tokens": runtime.info.max_batch_tokens,
        "rounds": rounds,
        "medians": medians,
        "samples": samples,
    }
    runtime.close()
    out = (TMP if a.quick else BENCH / "results") / f"{machine.slug()}-budget.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    keys = list(next(iter(medians.values())))
    print("| max_batch_tokens | " + " | ".join(k.replace("_", " ") for k in keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for budget, row in medians.items():
        print(f"| {budget} | " + " | ".join(f"{row[k]:,.0f}" for k in keys) + " |")


if __name__ == "__main__":
    main()
