"""What the border between the front and a worker costs a request, with a runtime that needs no time.

    python bench/round_trip.py [--requests 5000] [--connections 1 32] [--repeats 5]

A real worker process behind a real supervisor, called from an event loop in this process: token ids in,
rows out, with the deadline that every request of the server carries. Prints JSON: the median and the 99th
percentile of the time until the answer, and the CPU time of either process per request, in microseconds;
medians of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Request, Sequence
from hilbert.core.request import DENSE_ONLY
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings

NUM_TOKENS = 98  # the mean of the `mixed` workload
DIMENSIONS = 384


class InstantRuntime:
    """Rows that were there before."""

    num_slots = 2
    info = RuntimeInfo("none", "cpu", "float32", "none", "", DIMENSIONS, frozenset({OutputType.DENSE}), 2048)

    def __init__(self) -> None:
        self._rows = np.random.default_rng(0).standard_normal((2048, DIMENSIONS), dtype=np.float32)

    def prepare(self, batch: Batch) -> int:
        """How many rows are wanted."""
        return len(batch.sequences)

    def run(self, prepared: int) -> BatchOutput:
        """So many."""
        return BatchOutput(dense=self._rows[:prepared])

    def close(self) -> None:
        """Nothing to release."""


def make(spec: ModelSpec, settings: RuntimeSettings) -> InstantRuntime:
    """The worker's `--runtime-factory`."""
    return InstantRuntime()


def cpu_seconds(pid: int) -> float:
    """Time of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def measure(num_requests: int, num_connections: int, repeats: int) -> dict[str, float]:
    """One kind of load, several times; medians."""
    from hilbert.hub import resolve
    from hilbert.worker.settings import SupervisorSettings
    from hilbert.worker.supervisor import Supervisor

    supervisor = Supervisor(SupervisorSettings(runtime_factory="round_trip:make", log_level="warning"))
    await supervisor.start()
    model = await supervisor.load("bench", resolve("bundled"), RuntimeSettings())
    ids = np.arange(NUM_TOKENS, dtype=np.int32)
    left, seconds = 0, []

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            request = Request(left, (Sequence(left, 0, ids),), DENSE_ONLY, time.monotonic() + 60)
            output = await model.run(request)
            seconds.append(time.perf_counter() - start)
            assert output.dense is not None and output.dense.shape == (1, DIMENSIONS)

    runs: list[dict[str, float]] = []
    assert supervisor.pid is not None
    for _ in range(repeats + 1):
        left, seconds = num_requests, []
        before = cpu_seconds(os.getpid()), cpu_seconds(supervisor.pid)
        await asyncio.gather(*(client() for _ in range(num_connections)))
        after = cpu_seconds(os.getpid()), cpu_seconds(supervisor.pid)
        seconds.sort()
        runs.append(
            {
                "p50_us": seconds[len(seconds) // 2] * 1e6,
                "p99_us": seconds[len(seconds) * 99 // 100] * 1e6,
                "front_cpu_us": (after[0] - before[0]) / num_requests * 1e6,
                "worker_cpu_us": (after[1] - before[1]) / num_requests * 1e6,
            }
        )
    await supervisor.drain()
    return {name: round(statistics.median(run[name] for run in runs[1:]), 1) for name in runs[0]}


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    results: dict[str, Any] = {
        f"{number} at a time": uvloop.run(measure(arguments.requests, number, arguments.repeats))
        for number in arguments.connections
    }
    about = {
        "requests": arguments.requests,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    print(json.dumps({"round_trip": results, **about}, indent=2))


if __name__ == "__main__":
    main()
