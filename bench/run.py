"""`make bench`: Hilbert and its peers side by side, one load for all; raw numbers, a table, a plot.

    python bench/run.py                  # about 25 minutes; results in bench/results/
    python bench/run.py --quick          # four minutes: does everything work? Writes under bench/tmp/
    python bench/run.py --only hilbert   # without the peers (no ratios then)

Three rounds. In each round every server is started, loaded and stopped, one after another, so that slow
drifts of the machine meet all of them; then the engines without HTTP; the ceiling is measured in each round
too. What is reported is the median over rounds. Only one server is up at a time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import machine
import peers
import report
from flops import EncoderShape
from peers import BENCH, MODEL, TMP, TOOLS, offline_env, python_of
from process import MemorySampler, post, tree_cpu_seconds, tree_memory
from servers import Live, Server, hilbert_server, infinity_servers, infinity_versions, running
from workloads import Corpus, even, even_groups, mixed, random_requests, short, write_bodies

NUM_CHECKED = 64


@dataclass(frozen=True)
class Durations:
    """Seconds of each load in one round, and the counts."""

    rounds: int = 3
    warm: float = 4
    mixed: float = 15
    batch: float = 25
    short: float = 10
    one: float = 8
    beside: float = 10
    inprocess: float = 4
    ceiling: float = 2
    starts: int = 3
    random_requests: int = 20_000
    texts: int = 1000


QUICK = Durations(1, 1, 3, 3, 2, 2, 2, 0.5, 0.5, 1, 300, 96)


class Loads:
    """The request bodies, written once, the same bytes for every server."""

    def __init__(self, durations: Durations) -> None:
        self.folder = TMP / "bodies"
        self.folder.mkdir(parents=True, exist_ok=True)
        corpus = Corpus(MODEL / "tokenizer.json")
        self.mixed = mixed(corpus, durations.texts)
        self.short = short(corpus, 2 * durations.texts)
        self.even = even(corpus, max(32, durations.texts // 3))
        bulk = replace(mixed(corpus, 2048, seed=5), name="2048 texts")
        write = self._write
        self.bodies = {
            "mixed": write("mixed", [[t] for t in self.mixed.texts]),
            "batch": write("batch", even_groups(self.mixed, 32)),
            "short": write("short", [[t] for t in self.short.texts]),
            "bulk": write("bulk", [bulk.texts]),
            "random": write("random", random_requests(corpus, durations.random_requests)),
        }
        self.checked = json.dumps({"model": "bench", "input": self.mixed.texts[:NUM_CHECKED]}).encode()
        workloads = [self.mixed, self.even, self.short]
        self.texts_file = self.folder / "texts.json"
        self.texts_file.write_text(
            json.dumps({w.name: {"texts": w.texts, "num_tokens": w.num_tokens} for w in workloads})
        )
        self.description = {w.name: w.describe() for w in [*workloads, bulk]}

    def _write(self, name: str, requests: list[list[str]]) -> Path:
        return write_bodies(self.folder / f"{name}.jsonl", requests, "bench")


def generate(live: Live, *arguments: str) -> dict[str, Any]:
    """Run the load generator against a server and return what it measured."""
    command = [sys.executable, str(BENCH / "load.py"), *arguments]
    command += ["--port", str(live.port), "--path", live.server.path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failed"]:
        say(f"    {found['failed']} of {found['requests']} requests FAILED")
    return found


def say(text: str) -> None:
    print(text, flush=True)


def closed(live: Live, loads: Loads, name: str, connections: int, seconds: float) -> dict[str, Any]:
    """One closed loop, with the processor time that the server's processes spent on it."""
    before = tree_cpu_seconds(live.pid)
    found = generate(
        live,
        *("closed", "--bodies", str(loads.bodies[name])),
        *("--connections", str(connections), "--seconds", str(seconds)),
    )
    found["server_cpu_seconds"] = round(tree_cpu_seconds(live.pid) - before, 2)
    say(f"    {name:>6} x {connections}: {found['requests_per_second']:.1f}/s, p50 {found['p50_ms']:.1f} ms")
    return found


def load_server(server: Server, loads: Loads, d: Durations, with_bulk: bool) -> dict[str, Any]:
    """One server, started, put under every load, and stopped."""
    say(f"  {server.label}")
    with running(server) as live:
        found: dict[str, Any] = {"start_seconds": round(live.start_seconds, 3)}
        say(f"    first vector after {live.start_seconds:.2f} s")
        status, answer = post(live.port, server.path, loads.checked)
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}: {answer[:300]!r}")
        vectors = np.array([row["embedding"] for row in json.loads(answer)["data"]], np.float32)
        np.save(TMP / f"{server.name}.npy", vectors)
        closed(live, loads, "mixed", 32, d.warm)
        found["idle_memory"] = tree_memory(live.pid)
        found["mixed_32"] = closed(live, loads, "mixed", 32, d.mixed)
        found["memory_after_mixed"] = tree_memory(live.pid)
        found["batch_4"] = closed(live, loads, "batch", 4, d.batch)
        found["short_64"] = closed(live, loads, "short", 64, d.short)
        found["mixed_1"] = closed(live, loads, "mixed", 1, d.one)
        if with_bulk:
            found["bulk_2048"] = bulk(live, loads, d)
            found["memory_after_bulk"] = tree_memory(live.pid)
        memory = found["memory_after_mixed"]
        say(f"    {memory['rss_mb']:.0f} MB resident, {memory['pss_mb']:.0f} MB proportional, after mixed")
    return found


def bulk(live: Live, loads: Loads, d: Durations) -> dict[str, Any]:
    """2048 texts in one request, again and again for a while (once, if once takes longer), a query beside."""
    found = generate(
        live,
        *("beside", "--bulk", str(loads.bodies["bulk"]), "--bodies", str(loads.bodies["short"])),
        *("--seconds", str(d.beside)),
    )
    seconds, p50, p90 = found["bulk_seconds"], found["p50_ms"], found["p90_ms"]
    say(f"    2048 texts: {seconds} s; a query beside: p50 {p50:.0f}, p90 {p90:.0f} ms")
    return found


def start_times(server: Server, count: int) -> list[float]:
    """Seconds from exec to the first vector, everything cached on disk."""
    found = []
    for _ in range(count):
        with running(server) as live:
            found.append(round(live.start_seconds, 4))
    say(f"  {server.label} from exec to first vector: {found}")
    return found


def memory_over_requests(server: Server, loads: Loads, d: Durations) -> dict[str, Any]:
    """Memory of the whole tree over many requests of random sizes."""
    say(f"  {server.label}: {d.random_requests:,} random requests")
    with running(server) as live:
        generate(
            live, "closed", "--bodies", str(loads.bodies["mixed"]), "--connections", "32", "--count", "200"
        )
        with MemorySampler(live.pid, 2.0 if d.random_requests > 1000 else 0.2) as sampler:
            load = generate(
                live,
                *("closed", "--bodies", str(loads.bodies["random"])),
                *("--connections", "32", "--count", str(d.random_requests)),
            )
        found = {
            "requests": d.random_requests,
            "load": load,
            "end": tree_memory(live.pid),
            **sampler.slope(d.random_requests),
            "samples": sampler.samples,
        }
    end = found["end"]
    slope = found.get("rss_slope_mb_per_1000")
    say(f"    {end['rss_mb']:.0f} MB resident, {end['pss_mb']:.0f} proportional; slope {slope} MB per 1,000")
    return found


def offline(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run an engine without HTTP in a process of its own."""
    command = [str(python), str(BENCH / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=offline_env())
    if done.returncode:
        raise RuntimeError(f"{script} {arguments[0]} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def offline_engines(loads: Loads, d: Durations, with_peers: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """One round of the engines without HTTP, and of the ceiling."""
    texts = ["--texts", str(loads.texts_file)]
    here = Path(sys.executable)
    vectors = lambda name: ["--vectors", str(TMP / f"{name}.npy")]  # noqa: E731
    cache = ["--cache-dir", str(TMP / "hilbert-cache"), "--seconds", str(d.inprocess)]
    # Just before and just after Hilbert's engine, the better of the two: a ceiling is a maximum.
    before = ceilings(d.ceiling)
    found = {"hilbert-engine": offline(here, "inprocess.py", *texts, *cache, *vectors("hilbert-engine"))}
    after = ceilings(d.ceiling)
    ceiling = {dtype: max(before[dtype], after[dtype]) for dtype in before}
    if with_peers:
        peer = [*texts, "--model", str(MODEL), "--threads", str(machine.num_threads())]
        for dtype in ("float32", "bfloat16"):
            name = f"sentence-transformers-{dtype}"
            arguments = ["sentence-transformers", "--dtype", dtype, *peer, *vectors(name)]
            found[name] = offline(here, "offline.py", *arguments)
        name = "onnxruntime-float32"
        found[name] = offline(python_of(TOOLS), "offline.py", "onnxruntime", *peer, *vectors(name))
    for name, row in found.items():
        rate = row["mixed"].get("bulk", row["mixed"])["tokens_per_second"]
        say(f"  {name}: {rate:,.0f} tokens/s on mixed")
    return found, ceiling


def ceilings(seconds: float) -> dict[str, float]:
    """GFLOP/s of the matrix product, in a process of its own so that torch's threads end with it."""
    code = "import json, sys; sys.path.insert(0, sys.argv[1]); import ceiling;"
    code += "print(json.dumps({d: ceiling.cpu_gemm_gflops(d, seconds=float(sys.argv[2]))"
    code += " for d in ('bfloat16', 'float32')}))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(BENCH), str(seconds)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    say(f"  ceiling: {found['bfloat16']:,.0f} GFLOP/s in bf16, {found['float32']:,.0f} in float32")
    return found


def cosines(names: list[str]) -> dict[str, dict[str, float]]:
    """Worst cosine and largest difference of each system's vectors against sentence-transformers in float32.

    A system that answers fast and wrong has no place in the table.
    """
    truth_file = TMP / "sentence-transformers-float32.npy"
    if not truth_file.exists():
        return {}
    truth = np.load(truth_file).astype(np.float64)
    found = {}
    for name in names:
        rows = np.load(TMP / f"{name}.npy").astype(np.float64)
        found[name] = {
            "worst_cosine": round(float((truth * rows).sum(1).min()), 7),
            "largest_difference": float(f"{np.abs(truth - rows).max():.2e}"),
        }
    return found


def median_tree(samples: list[Any]) -> Any:
    """The median of every number at the same place in the rounds' results."""
    first = samples[0]
    if isinstance(first, dict):
        keys = [k for k in first if all(k in s for s in samples)]
        return {k: median_tree([s[k] for s in samples]) for k in keys}
    if isinstance(first, list):
        # Repetitions within a round: all of them are samples of one number.
        return round(statistics.median(x for s in samples for x in s), 4)
    if isinstance(first, int | float) and not isinstance(first, bool):
        return round(statistics.median(samples), 4)
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of tiny loads")
    parser.add_argument("--only", choices=["hilbert"], help="without the peers")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--skip-memory", action="store_true", help="without the 20,000 random requests")
    a = parser.parse_args()
    d = QUICK if a.quick else Durations()
    rounds = a.rounds or d.rounds
    with_peers = a.only is None
    began = time.perf_counter()
    TMP.mkdir(exist_ok=True)
    if with_peers:
        peers.make_all()
    else:
        peers.make_environment(TOOLS, peers.TOOLS_STEPS)
        peers.make_model(with_onnx=False)
    for stale in TMP.glob("*.npy"):
        stale.unlink()
    loads = Loads(d)
    hilbert = hilbert_server()
    servers = [hilbert, *(infinity_servers() if with_peers else [])]
    busy = machine.busy_share()
    if busy > 0.1:
        say(f"WARNING: {busy:.0%} of this machine is busy with something else; ratios will suffer")

    say("first start of Hilbert (traces the model if the cache is empty)")
    with running(hilbert):
        pass
    http: dict[str, list[Any]] = {server.name: [] for server in servers}
    engines: list[dict[str, Any]] = []
    ceiling: list[dict[str, float]] = []
    starts: list[float] = []
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for server in servers:
            # Infinity needs minutes for a request of 2048 texts: once is enough for it.
            with_bulk = server is hilbert or (turn == 0 and not a.quick)
            http[server.name].append(load_server(server, loads, d, with_bulk))
        found, limit = offline_engines(loads, d, with_peers)
        engines.append(found)
        ceiling.append(limit)
        starts += start_times(hilbert, d.starts)
    memory = None if a.skip_memory else memory_over_requests(hilbert, loads, d)

    shape = EncoderShape.of(MODEL)
    flop = {w.name: shape.flop(w.num_tokens) for w in (loads.mixed, loads.even, loads.short)}
    tokens = {w.name: w.total_tokens for w in (loads.mixed, loads.even, loads.short)}
    result: dict[str, Any] = {
        "what": "Hilbert and its peers, all-MiniLM-L6-v2, side by side",
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe() | {"busy_share_before": busy},
        "versions": {"hilbert": machine.versions()}
        | ({"infinity": infinity_versions()} if with_peers else {}),
        "commands": {s.name: s.shown() for s in servers},
        "workloads": loads.description,
        "mega_flop_per_token": {n: round(flop[n] / tokens[n] / 1e6, 3) for n in flop},
        "rounds": rounds,
        "seconds_in_all": 0,
        "medians": {
            "ceiling_gflops": median_tree(ceiling),
            "http": {name: median_tree(found) for name, found in http.items()},
            "engines": median_tree(engines),
            "start_seconds": {"hilbert": statistics.median(starts)},
        },
        "vectors": cosines([*http, *engines[0]]),
        "memory_over_random_requests": memory,
        "samples": {"ceiling_gflops": ceiling, "http": http, "engines": engines, "start_seconds": starts},
    }
    for name, found in http.items():
        # Only round one has the bulk load for the peers, so the medians above leave it out.
        if name != "hilbert" and "bulk_2048" in found[0]:
            for key in ("bulk_2048", "memory_after_bulk"):
                result["medians"]["http"][name][key] = median_tree([found[0][key]])
    result["seconds_in_all"] = round(time.perf_counter() - began)
    result["verdicts"] = report.verdicts(result)

    folder = TMP if a.quick else BENCH / "results"
    folder.mkdir(exist_ok=True)
    stem = folder / machine.slug()
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    table = report.markdown(result)
    stem.with_suffix(".md").write_text(table)
    subprocess.run([python_of(TOOLS), str(BENCH / "plot.py"), str(stem.with_suffix(".json"))], check=True)
    say(table)
    say(f"{result['seconds_in_all']} s in all; wrote {stem.name}.json, .md and .svg in {folder.name}/")


if __name__ == "__main__":
    main()
