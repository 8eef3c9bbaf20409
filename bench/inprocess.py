"""Hilbert's engine without HTTP: token ids into the engine's queue, in arrival order, on all threads.

    python bench/inprocess.py --texts texts.json --seconds 8 --vectors rows.npy

Prints one line of JSON. Two loads, each of requests with one text:

- ``bulk``: all requests are queued at once, so every batch is as full as the budget allows;
- ``in_flight_32``: 32 are in work at any moment, the next one enters when one is answered. It is the load
  that 32 HTTP connections make, without HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hilbert.core import Request, Sequence
from hilbert.engine import Device, Engine
from hilbert.hub import resolve
from hilbert.runtimes import Runtime, RuntimeSettings, load_runtime
from hilbert.scheduler import Scheduler

IN_FLIGHT = 32
NUM_CHECKED = 64


@contextlib.contextmanager
def running_engine(runtime: Runtime[Any], max_batch_tokens: int | None = None) -> Iterator[Engine[Any]]:
    """An engine around a loaded runtime, with the runtime's own token budget unless told otherwise."""
    engine = Engine(runtime, Scheduler(max_batch_tokens or runtime.info.max_batch_tokens), Device("bench"))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def feed(engine: Engine[Any], inputs: Iterable[Any], in_flight: int | None = None) -> float:
    """Send each of the token id arrays as a request of its own and return the seconds until all are answered.

    Args:
        in_flight: how many are in work at once; None queues all at the start.
    """
    ids = itertools.count()
    requests = (Request(i, (Sequence(i, 0, x),)) for i, x in zip(ids, inputs, strict=False))
    lock = threading.Lock()
    is_done = threading.Event()
    num_open = 0
    failures: list[Any] = []

    def submit_next() -> None:
        nonlocal num_open
        with lock:
            request = next(requests, None)
            if request is None:
                if not num_open:
                    is_done.set()
                return
            num_open += 1
        engine.submit(request, deliver)

    def deliver(output: Any) -> None:
        nonlocal num_open
        if output.errors:
            failures.append(output.errors)
        with lock:
            num_open -= 1
        submit_next()

    start = time.perf_counter()
    if in_flight is None:
        prepared = list(requests)
        requests = iter(())
        num_open = len(prepared)
        start = time.perf_counter()
        for request in prepared:
            engine.submit(request, deliver)
    else:
        for _ in range(in_flight):
            submit_next()
    is_done.wait()
    seconds = time.perf_counter() - start
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed, first {failures[0]}")
    return seconds


def rate(engine: Engine[Any], ids: list[Any], in_flight: int | None, min_seconds: float) -> dict[str, float]:
    """Feed the texts again and again for at least `min_seconds`; sentences and tokens per second."""
    tokens = sum(map(len, ids))
    seconds, rounds = 0.0, 0
    while seconds < min_seconds:
        seconds += feed(engine, ids, in_flight)
        rounds += 1
    return {
        "seconds": round(seconds, 3),
        "sentences_per_second": round(rounds * len(ids) / seconds, 1),
        "tokens_per_second": round(rounds * tokens / seconds, 1),
    }


def token_ids(texts: list[str], model_folder: Path) -> list[Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return [np.array(e.ids, np.int32) for e in tokenizer.encode_batch_fast(texts)]


def rows_of(engine: Engine[Any], ids: list[Any]) -> Any:
    """The vectors of some inputs, each asked for alone but all at once; normalised, ``[N, E]``."""
    rows: list[Any] = [None] * len(ids)
    left = threading.Semaphore(0)

    def deliver(output: Any) -> None:
        rows[output.request_id] = output.dense[0]
        left.release()

    for i, x in enumerate(ids):
        engine.submit(Request(i, (Sequence(i, 0, x),)), deliver)
    for _ in ids:
        left.acquire()
    stacked = np.stack(rows)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--cache-dir", default="")
    parser.add_argument("--vectors", type=Path)
    a = parser.parse_args()
    spec = resolve(None)
    runtime = load_runtime(spec, RuntimeSettings(cache_dir=a.cache_dir))
    info = runtime.info
    found: dict[str, Any] = {
        "runtime": {"engine": info.engine, "dtype": info.dtype, "program": info.program},
        "max_batch_tokens": info.max_batch_tokens,
    }
    workloads = json.loads(a.texts.read_text())
    with running_engine(runtime) as engine:
        for name, workload in workloads.items():
            ids = token_ids(workload["texts"], Path(spec.path))
            feed(engine, ids[:200], IN_FLIGHT)
            found[name] = {
                "bulk": rate(engine, ids, None, a.seconds),
                "in_flight_32": rate(engine, ids, IN_FLIGHT, a.seconds),
            }
        if a.vectors:
            texts = workloads["mixed"]["texts"][:NUM_CHECKED]
            np.save(a.vectors, rows_of(engine, token_ids(texts, Path(spec.path))))
    runtime.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
