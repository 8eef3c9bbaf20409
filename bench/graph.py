"""Where the time of one batch goes, and whether one traced graph is faster than another.

    python bench/graph.py BEFORE [AFTER ...]

Each argument is a folder that `hilbert export` wrote. All are run in turn in one process, so that a busy
machine slows them alike; medians. The operations of the last one follow, by kind, with their share.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine

from hilbert.core import Sequence
from hilbert.runtimes import ov
from hilbert.runtimes.packing import NUM_GROUPS, pack

SEED = 1
ROUNDS = 15


def batches() -> dict[str, list[int]]:
    """Lengths of the batches that are timed."""
    drawn = np.clip(np.random.default_rng(SEED).lognormal(4.3, 0.75, 400).astype(int), 5, 256)
    mixed = drawn[: int(np.searchsorted(np.cumsum(drawn), 1024))].tolist()
    return {"mixed, 1024 tokens": mixed, "64 texts of 15": [15] * 64, "one of 98": [98], "one of 15": [15]}


def feed(lengths: list[int]) -> list[np.ndarray]:
    """Random token ids, laid out as the runtime does."""
    random = np.random.default_rng(SEED)
    ids = [random.integers(0, 1000, n).astype(np.int32) for n in lengths]
    part = pack(tuple(Sequence(0, i, row) for i, row in enumerate(ids)), NUM_GROUPS)
    return [
        part.input_ids,
        part.position_ids,
        part.token_type_ids,
        part.unpad,
        *part.slots,
        *part.group_lengths,
    ]


def request(folder: Path, profile: bool = False):
    """A compiled graph, ready to infer."""
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if ov.is_native_bf16() else "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": machine.num_threads(),
        "PERF_COUNT": profile,
    }
    return ov.compile_graph(folder / "model.xml", config).create_infer_request()


def seconds(infer_request, inputs: list[np.ndarray]) -> float:
    """One inference."""
    start = time.perf_counter()
    infer_request.infer(inputs, share_inputs=True)
    return time.perf_counter() - start


def compare(folders: list[Path]) -> None:
    requests = {folder: request(folder) for folder in folders}
    for name, lengths in batches().items():
        inputs = feed(lengths)
        times: dict[Path, list[float]] = {folder: [] for folder in folders}
        for _ in range(ROUNDS):
            for folder, infer_request in requests.items():
                seconds(infer_request, inputs)  # the other graph has emptied the caches
                times[folder].append(seconds(infer_request, inputs))
        first = statistics.median(times[folders[0]])
        for folder in folders:
            median = statistics.median(times[folder])
            print(f"{name:20s} {median * 1e3:8.2f} ms  {first / median:5.2f}x  {folder.name}")


def show_operations(folder: Path) -> None:
    infer_request = request(folder, profile=True)
    inputs = feed(next(iter(batches().values())))
    for _ in range(5):
        seconds(infer_request, inputs)
    spent: Counter[str] = Counter()
    for operation in infer_request.profiling_info:
        spent[f"{operation.node_type}, {operation.exec_type}"] += operation.real_time.total_seconds() * 1e3
    for kind, milliseconds in spent.most_common(12):
        print(f"{milliseconds:8.2f} ms {100 * milliseconds / spent.total():5.1f} %  {kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exports", nargs="+", type=Path)
    chosen = parser.parse_args().exports
    compare(chosen)
    show_operations(chosen[-1])
