"""Many models in one server: coming, going and sharing, over real HTTP.

    python bench/many.py [--minutes 10] [--only turns,first,share,flood]

- ``turns``: ten models (the bundled MiniLM ten times) under a budget that holds a few of them, random traffic
  from eight clients: requests, failures, p50 and p99, loads, and resident memory ten times a second.
- ``first``: from a cached, unloaded model to its first answer.
- ``share``: two models under load at once; the sum of their rates over the rate of one alone.
- ``flood``: p99 of a lone client while another model is flooded, over its p99 alone.

Prints JSON. The peers of this machine must be idle; numbers are per machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

HILBERT = [sys.executable, "-c", "import sys; from hilbert.cli import main; sys.exit(main())"]
BUDGET_MB = 700
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def server(num_models: int, *flags: str) -> Iterator[tuple[str, int]]:
    """A running server with models m0, m1, …; its address and its process id."""
    names = [word for i in range(num_models) for word in ("-m", "bundled", "--served-model-name", f"m{i}")]
    process = subprocess.Popen(
        [*HILBERT, "serve", *names, "--port", "0", "--log-level", "error", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        url = url or next((word for word in line.split() if word.startswith("http://")), "")
        if line.startswith("  curl"):
            break
    try:
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for one in (str(pid), *children.read_text().split()):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
    return total / 1e6


def texts(rng: random.Random, low: int, high: int, count: int) -> list[str]:
    return [" ".join(rng.choice(("room", "guest", "hotel", "vector")) for _ in range(rng.randint(low, high)))
            for _ in range(count)]  # fmt: skip


class Clients:
    """Closed-loop clients, each in a thread, until `stop`."""

    def __init__(self, url: str, names: list[str], num: int, words: tuple[int, int], count: int) -> None:
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(url, names, words, count, seed)) for seed in range(num)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, names: list[str], words: tuple[int, int], count: int, seed: int) -> None:
        rng = random.Random(seed)
        with httpx2.Client(timeout=120) as client:
            while not self._stop.is_set():
                name, body = rng.choice(names), texts(rng, *words, count)
                start = time.perf_counter()
                reply = client.post(
                    url + "/v1/embeddings", json={"model": name, "input": body, "encoding_format": "base64"}
                )
                self.seconds.append(time.perf_counter() - start)
                if reply.status_code != 200 or reply.json()["model"] != name:
                    self.failures.append(f"{reply.status_code}: {reply.text[:200]}")

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        ordered = sorted(self.seconds)
        at = lambda share: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)  # noqa: E731
        return {
            "requests": len(ordered),
            "failures": len(self.failures),
            "first_failures": self.failures[:3],
            "p50_seconds": at(0.5),
            "p99_seconds": at(0.99),
            "max_seconds": ordered[-1],
        }


def turns(minutes: float) -> dict[str, Any]:
    with server(10, "--memory", f"{BUDGET_MB}MB") as (url, pid):
        clients = Clients(url, [f"m{i}" for i in range(10)], 8, (1, 120), 3)
        samples = []
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            samples.append(resident_mb(pid))
            time.sleep(0.1)
        found = clients.stop()
        models = httpx2.get(url + "/v1/models").json()["data"]
    quarter = len(samples) // 4
    return found | {
        "budget_mb": BUDGET_MB,
        "peak_mb": round(max(samples)),
        "median_mb_of_first_and_last_quarter": [
            round(statistics.median(samples[:quarter])),
            round(statistics.median(samples[-quarter:])),
        ],
        "loads": sum(model["stats"]["loads"] for model in models),
        "unloads": sum(model["stats"]["unloads"] for model in models),
    }


def first(num_tries: int = 10) -> dict[str, Any]:
    seconds = []
    with server(1) as (url, _):
        for _ in range(num_tries):
            httpx2.post(url + "/admin/models/unload", json={"model": "m0"}, timeout=60)
            start = time.perf_counter()
            httpx2.post(
                url + "/v1/embeddings", json={"model": "m0", "input": "a room"}, timeout=60
            ).raise_for_status()
            seconds.append(round(time.perf_counter() - start, 3))
    return {"seconds": seconds, "median_seconds": statistics.median(seconds)}


def share(seconds: float = 8.0) -> dict[str, Any]:
    def rate(url: str, *groups: list[str]) -> float:
        """Texts per second of all groups together."""
        all_clients = [Clients(url, names, 8 // len(groups), (60, 120), 16) for names in groups]
        start = time.perf_counter()
        time.sleep(seconds)
        total = sum(clients.stop()["requests"] for clients in all_clients)
        return total * 16 / (time.perf_counter() - start)

    with server(2) as (url, _):
        rate(url, ["m0"], ["m1"])
        alone, both, again = rate(url, ["m0"]), rate(url, ["m0"], ["m1"]), rate(url, ["m0"])
    reference = (alone + again) / 2
    return {"alone": [round(alone, 1), round(again, 1)], "both": round(both, 1), "ratio": both / reference}


def flood(seconds: float = 8.0) -> dict[str, Any]:
    with server(2) as (url, _):

        def lone() -> dict[str, Any]:
            clients = Clients(url, ["m0"], 1, (20, 60), 1)
            time.sleep(seconds)
            return clients.stop()

        lone()
        alone = lone()
        flooding = Clients(url, ["m1"], 16, (60, 120), 16)
        time.sleep(1)
        beside = lone()
        flood = flooding.stop()
    return {
        "alone": alone,
        "beside": beside,
        "flood": flood,
        "p99_ratio": beside["p99_seconds"] / alone["p99_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="turns,first,share,flood")
    options = parser.parse_args()
    measures = {"turns": lambda: turns(options.minutes), "first": first, "share": share, "flood": flood}
    found = {name: measures[name]() for name in options.only.split(",")}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
