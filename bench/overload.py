"""Ten times more load than the server can carry, for a minute: what is answered, what is refused, how fast.

    python bench/overload.py                                  # Hilbert, 60 seconds, 8 texts per request
    python bench/overload.py --texts 1 --seconds 20
    python bench/overload.py --servers hilbert,infinity-torch

Capacity is what a closed loop of 32 connections gets from the same server with the same bodies (`load.py`,
before and after, the better of the two); the open loop then sends ten times as many per second, whatever is
answered. Answers count from when the queue has been filled and emptied twice. Prints JSON. The generator runs
on the same machine and takes its share of it: `cpu_shares` says how much of all CPUs each of the three took,
and `lag_p99_ms` how late the generator was itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import INFINITY, MODEL, TMP, make_all, make_model
from process import MemorySampler, process_cpu_seconds, tree_cpu_seconds, tree_memory
from servers import Live, Server, hilbert_server, infinity_servers, running
from workloads import Corpus, mixed, write_bodies

LOAD = Path(__file__).with_name("load.py")
TIMES = 10
CLOSED_CONNECTIONS = 32
MAX_CONCURRENT = 64
CAPACITY_SECONDS = 8.0
AGAIN_SECONDS = 3.0


def load(live: Live, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(LOAD), *words, "--port", str(live.port), "--path", live.server.path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def closed(live: Live, bodies: Path, seconds: float) -> float:
    """Requests per second that the server carries."""
    words = ("--bodies", str(bodies), "--connections", str(CLOSED_CONNECTIONS), "--seconds", str(seconds))
    return float(load(live, "closed", *words)["requests_per_second"])


def cpu_seconds(live: Live) -> tuple[float, float]:
    """Processor time that the HTTP process, and all others of the server, have used."""
    front = process_cpu_seconds(live.pid)
    return front, tree_cpu_seconds(live.pid) - front


def measure(server: Server, bodies: Path, seconds: float, connections: int) -> dict[str, Any]:
    with running(server) as live:
        closed(live, bodies, 2.0)
        start = cpu_seconds(live)
        capacity = closed(live, bodies, CAPACITY_SECONDS)
        front_per_answer = (cpu_seconds(live)[0] - start[0]) / (capacity * CAPACITY_SECONDS)
        before = tree_memory(live.pid)
        start = cpu_seconds(live)
        with MemorySampler(live.pid, interval_seconds=1.0) as sampler:
            flood = load(
                live, "open", "--bodies", str(bodies), "--rate", str(TIMES * capacity),
                "--connections", str(connections), "--seconds", str(seconds),
                "--warm-up", str(2 * MAX_CONCURRENT / capacity),
            )  # fmt: skip
        front, others = (now - then for now, then in zip(cpu_seconds(live), start, strict=True))
        again = closed(live, bodies, AGAIN_SECONDS)  # its process is up within half a second
        capacity = max(capacity, closed(live, bodies, CAPACITY_SECONDS))
        after = tree_memory(live.pid)
    num_refused, whole = flood["rejected"]["requests"], (os.cpu_count() or 1) * flood["seconds"]
    refusing = front - flood["accepted"]["requests"] * front_per_answer
    peak = max((sample["rss_mb"] for sample in sampler.samples), default=0.0)
    return {
        "command": server.shown(),
        "capacity_per_second": capacity,
        "sent_per_second": round(flood["requests"] / flood["seconds"], 1),
        "goodput_share": round(flood["goodput_per_second"] / capacity, 3),
        "front_us_per_refusal": round(refusing / max(1, num_refused) * 1e6, 1),
        "cpu_shares": {
            "front": round(front / whole, 3),
            "workers": round(others / whole, 3),
            "generator": round(flood["generator_cpu_seconds"] / whole, 3),
        },
        "full_queue_seconds": round(MAX_CONCURRENT / capacity, 3),
        "again_share": round(again / capacity, 3),
        "rss_mb": {"before": before["rss_mb"], "peak": peak, "after": after["rss_mb"]},
        "flood": flood,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--texts", type=int, default=8, help="texts per request")
    parser.add_argument("--connections", type=int, default=512, help="of the open loop")
    parser.add_argument("--servers", default="hilbert")
    options = parser.parse_args()
    names = options.servers.split(",")
    make_model(with_onnx=False) if names == ["hilbert"] or INFINITY.exists() else make_all()
    texts = mixed(Corpus(MODEL / "tokenizer.json"), 1024).texts
    groups = [texts[i : i + options.texts] for i in range(0, len(texts) - options.texts + 1, options.texts)]
    (TMP / "bodies").mkdir(parents=True, exist_ok=True)
    bodies = write_bodies(TMP / "bodies" / "overload.jsonl", groups, "bench")
    known = [hilbert_server("--max-concurrent-requests", str(MAX_CONCURRENT)), *infinity_servers()]
    found = {
        server.name: measure(server, bodies, options.seconds, options.connections)
        for server in known
        if server.name in names
    }
    about = {"texts_per_request": options.texts, "seconds": options.seconds, "cpus": os.cpu_count()}
    print(json.dumps(about | found, indent=1))


if __name__ == "__main__":
    main()
