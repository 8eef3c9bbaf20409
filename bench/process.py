"""Processes under test: their whole tree's memory, and the time from exec to the first vector."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """`root` and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold spaces; the parent is the second field after it.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


def _rollup(pid: int) -> dict[str, int]:
    fields: dict[str, int] = {}
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return fields
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            fields[name] = int(rest.split()[0])
    return fields


def tree_memory(root: int) -> dict[str, float]:
    """MB (10^6 bytes) of the tree: RSS summed (counts shared pages once per process) and PSS (once)."""
    rollups = [_rollup(pid) for pid in process_tree(root)]
    return {
        "rss_mb": round(sum(r.get("Rss", 0) for r in rollups) * 1024 / 1e6, 1),
        "pss_mb": round(sum(r.get("Pss", 0) for r in rollups) * 1024 / 1e6, 1),
        "processes": sum(bool(r) for r in rollups),
    }


def process_cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process; 0 where it has ended."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(root: int) -> float:
    """The same for the tree's living processes together."""
    return sum(map(process_cpu_seconds, process_tree(root)))


@dataclass
class MemorySampler:
    """Samples the tree's memory from a thread while a load runs.

    The load's own count cannot be seen from here, so time stands for it: a closed loop has a steady rate.
    """

    root: int
    interval_seconds: float = 2.0
    samples: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> MemorySampler:
        self._stop = threading.Event()
        self._start = time.perf_counter()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            sample = tree_memory(self.root)
            sample["seconds"] = round(time.perf_counter() - self._start, 1)
            self.samples.append(sample)

    def slope(self, requests: int) -> dict[str, float]:
        """MB per 1,000 requests over the second half of the samples, by least squares, and the peak."""
        half = self.samples[len(self.samples) // 2 :]
        if len(half) < 3:
            return {}
        per_second = requests / self.samples[-1]["seconds"]
        x = [s["seconds"] * per_second / 1000 for s in half]
        line = {
            f"{kind}_slope_mb_per_1000": round(
                statistics.linear_regression(x, [s[f"{kind}_mb"] for s in half]).slope, 4
            )
            for kind in ("rss", "pss")
        }
        return line | {
            f"{kind}_peak_mb": max(s[f"{kind}_mb"] for s in self.samples) for kind in ("rss", "pss")
        }


def post(port: int, path: str, body: bytes, timeout: float = 120.0) -> tuple[int, bytes]:
    """One request on a fresh connection: status and body. ConnectionRefusedError while nobody listens."""
    request = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout) as link:
        link.sendall(request.encode() + body)
        received = bytearray()
        while chunk := link.recv(1 << 20):
            received += chunk
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    return (int(head[9:12]) if len(head) > 12 else 0), answer


def first_vector(port: int, path: str, body: bytes, alive: Callable[[], bool], limit: float) -> None:
    """Return at the first answer with status 200; `alive()` tells whether to go on.

    Raises:
        RuntimeError: the process ended, or `limit` seconds passed.
    """
    end = time.perf_counter() + limit
    last = "nobody listens"
    while time.perf_counter() < end:
        if not alive():
            raise RuntimeError("the server ended before its first answer")
        try:
            status, answer = post(port, path, body)
        except OSError:
            time.sleep(0.001)
            continue
        if status == 200:
            return
        last = f"{status} {answer[:200]!r}"
        time.sleep(0.005)
    raise RuntimeError(f"no vector within {limit:.0f} s; last: {last}")
