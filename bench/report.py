"""From raw numbers to a table: what was promised, what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LABELS = {
    "hilbert": "Hilbert",
    "infinity-optimum": "Infinity 0.0.77 optimum",
    "infinity-torch": "Infinity 0.0.77 torch",
    "hilbert-engine": "Hilbert's engine",
    "sentence-transformers-float32": "sentence-transformers float32",
    "sentence-transformers-bfloat16": "sentence-transformers bf16",
    "onnxruntime-float32": "ONNX Runtime float32",
}


def _peers(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for name, found in result["medians"]["http"].items() if name != "hilbert"]


def ceiling_share(result: dict[str, Any], tokens_per_second: float, workload: str = "mixed") -> float:
    """What part of the measured bf16 matrix product rate the model's own FLOP amount to."""
    flop = result["mega_flop_per_token"][workload] * 1e6
    return float(tokens_per_second * flop / (result["medians"]["ceiling_gflops"]["bfloat16"] * 1e9))


@dataclass(frozen=True)
class Verdict:
    """One measure against what was promised.

    Attributes:
        unit: ``"x"`` a ratio, ``"%"`` a share (1 is all), ``"s"``, ``"MB"``.
        must: the limit that has to hold, None where nothing was promised.
        aim: the better limit.
    """

    measure: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    higher_is_better: bool = False

    def holds(self, limit: float | None) -> bool | None:
        if limit is None:
            return None
        return self.value >= limit if self.higher_is_better else self.value <= limit

    def as_row(self) -> dict[str, Any]:
        row = asdict(self) | {"must_held": self.holds(self.must), "aim_held": self.holds(self.aim)}
        return row | {"value": round(self.value, 4)}


def _against_peers(ours: dict[str, Any], peers: list[dict[str, Any]]) -> list[Verdict]:
    loads = [
        ("mixed, 32 connections", "mixed_32", 5, 7),
        ("32 texts per request, 4 connections", "batch_4", 6, 8),
        ("short, 64 connections", "short_64", 3, 4),
    ]
    found = []
    for words, load, must, aim in loads:
        best = max(p[load]["requests_per_second"] for p in peers)
        ratio = ours[load]["requests_per_second"] / best
        found.append(Verdict(f"{words}: requests/s against Infinity's best", ratio, "x", must, aim, True))
    best = min(p["mixed_1"]["p50_ms"] for p in peers)
    ratio = ours["mixed_1"]["p50_ms"] / best
    return [*found, Verdict("one connection: p50 against Infinity's best", ratio, "x", 0.6, 0.45)]


def _of_memory(memory: dict[str, Any]) -> list[Verdict]:
    name = f"resident after {memory['requests']:,} random requests"
    found = [Verdict(name, memory["end"]["rss_mb"], "MB", 400, 300)]
    if "rss_slope_mb_per_1000" in memory:
        slope = memory["rss_slope_mb_per_1000"]
        # Flat: a million requests may not double the process.
        name = "its slope over the second half, per 1,000 requests"
        found.append(Verdict(name, slope, "MB", 0.3, 0.1))
    return found


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the target table. What needs a part that was not measured is left out."""
    ours = result["medians"]["http"]["hilbert"]
    engine = result["medians"]["engines"]["hilbert-engine"]["mixed"]
    all_queued, in_flight = engine["bulk"], engine["in_flight_32"]
    rps = ours["mixed_32"]["requests_per_second"]
    peers = _peers(result)
    found = _against_peers(ours, peers) if peers else []
    share = ceiling_share(result, all_queued["tokens_per_second"])
    found.append(
        Verdict("engine in arrival order: share of the bf16 GEMM ceiling", share, "%", 0.6, 0.75, True)
    )
    share = ceiling_share(result, in_flight["tokens_per_second"])
    found.append(Verdict("the same with 32 requests in flight", share, "%"))
    share = rps / all_queued["sentences_per_second"]
    found.append(Verdict("HTTP with 32 connections against the engine alone", share, "%", 0.75, 0.9, True))
    share = rps / in_flight["sentences_per_second"]
    found.append(Verdict("HTTP with 32 connections against the engine with 32 in flight", share, "%"))
    start = result["medians"]["start_seconds"]["hilbert"]
    found.append(Verdict("start from the cache: exec to first vector over HTTP", start, "s", 1.0, 0.5))
    memory = ours["memory_after_mixed"]
    found.append(Verdict("resident after the mixed load, all processes", memory["rss_mb"], "MB", 400, 300))
    found.append(Verdict("proportional set size after it", memory["pss_mb"], "MB"))
    if result.get("memory_over_random_requests"):
        found += _of_memory(result["memory_over_random_requests"])
    if "bulk_2048" in ours:
        beside = ours["bulk_2048"]
        found.append(Verdict("2048 texts in one request, a query beside it", beside["bulk_seconds"], "s"))
        found.append(Verdict("the short query beside it: p50", beside["p50_ms"] / 1e3, "s"))
        found.append(Verdict("the short query beside it: p90", beside["p90_ms"] / 1e3, "s", 0.5, 0.5))
    return [verdict.as_row() for verdict in found]


def _failures(result: dict[str, Any]) -> list[str]:
    """Every load of every round in which a server did not answer 200."""
    return [
        f"{LABELS.get(name, name)}, round {turn + 1}, {load}: {row['failed']} of {row['requests']}"
        for name, rounds in result["samples"]["http"].items()
        for turn, found in enumerate(rounds)
        for load, row in found.items()
        if isinstance(row, dict) and row.get("failed")
    ]


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "%":
        return f"{value:.0%}"
    if unit == "MB":
        return f"{value:,.0f} MB" if abs(value) >= 10 else f"{value:.2f} MB"
    if unit == "s":
        return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"
    return f"{value:.2f}{unit}"


def _verdict(row: dict[str, Any]) -> str:
    if row["must_held"] is None:
        return ""
    if not row["must_held"]:
        return "**missed**"
    return "aim" if row["aim_held"] else "must"


def markdown(result: dict[str, Any]) -> str:
    """The whole report: targets, servers, engines, vectors, and where it was measured."""
    machine = result["machine"]
    medians = result["medians"]
    flags = ", ".join(machine["flags"])
    lines = [
        f"# {result['what']}",
        "",
        f"{result['date']}, {machine['cpu']} ({flags}), {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, Python {machine['python']}, commit `{result['commit']}`. "
        f"Medians of {result['rounds']} rounds, all systems in each round.",
        "",
        "## Targets",
        "",
        "| | measured | must | aim | held |",
        "|---|---|---|---|---|",
    ]
    for row in result["verdicts"]:
        cells = [row["measure"], *(_number(row[k], row["unit"]) for k in ("value", "must", "aim"))]
        lines.append("| " + " | ".join([*cells, _verdict(row)]) + " |")
    lines += [
        "",
        "## Over HTTP",
        "",
        "| server | mixed, 32 connections, req/s | p50 / p99 ms "
        "| 32 texts per request, 4 connections, req/s | short, 64 connections, req/s "
        "| one connection p50, ms | 2048 texts, s | query beside, p50 / p90 ms "
        "| start, s | resident / proportional, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in medians["http"].items():
        beside = found.get("bulk_2048")
        start = medians["start_seconds"].get(name, found["start_seconds"])
        cells = [
            LABELS.get(name, name),
            f"{found['mixed_32']['requests_per_second']:.1f}",
            f"{found['mixed_32']['p50_ms']:.0f} / {found['mixed_32']['p99_ms']:.0f}",
            f"{found['batch_4']['requests_per_second']:.2f}",
            f"{found['short_64']['requests_per_second']:.0f}",
            f"{found['mixed_1']['p50_ms']:.1f}",
            f"{beside['bulk_seconds']:.1f}" if beside else "-",
            f"{beside['p50_ms']:.0f} / {beside['p90_ms']:.0f}" if beside else "-",
            f"{start:.2f}",
            f"{found['memory_after_mixed']['rss_mb']:.0f} / {found['memory_after_mixed']['pss_mb']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Without HTTP",
        "",
        f"Ceiling: {medians['ceiling_gflops']['bfloat16']:,.0f} GFLOP/s in bf16, "
        f"{medians['ceiling_gflops']['float32']:,.0f} in float32 (torch, [2048, 384] by [384, 1536], "
        f"all threads). "
        f"A token of `mixed` costs {result['mega_flop_per_token']['mixed']:.1f} MFLOP.",
        "",
        "| engine | mixed, sentences/s | 128 | short | mixed, tokens/s | share of the bf16 ceiling |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in medians["engines"].items():
        for load in ("bulk", "in_flight_32") if name == "hilbert-engine" else (None,):
            rows = {w: found[w][load] if load else found[w] for w in ("mixed", "128", "short")}
            words = {"bulk": ", all queued", "in_flight_32": ", 32 in flight", None: ", sorted"}[load]
            cells = [LABELS.get(name, name) + words]
            cells += [f"{rows[w]['sentences_per_second']:,.0f}" for w in rows]
            tokens = rows["mixed"]["tokens_per_second"]
            cells += [f"{tokens:,.0f}", f"{ceiling_share(result, tokens):.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    if result["vectors"]:
        lines += [
            "",
            "## The vectors, against sentence-transformers in float32",
            "",
            "| system | worst cosine | largest difference |",
            "|---|---|---|",
        ]
        for name, found in result["vectors"].items():
            cells = [LABELS.get(name, name), f"{found['worst_cosine']:.6f}"]
            lines.append("| " + " | ".join([*cells, f"{found['largest_difference']:.1e}"]) + " |")
    failed = _failures(result)
    if failed:
        lines += ["", "## Requests that failed", "", *(f"- {line}" for line in failed)]
    lines += ["", "## Commands", ""]
    lines += [f"- {LABELS.get(name, name)}: `{command}`" for name, command in result["commands"].items()]
    lines += [""]
    return "\n".join(lines)
