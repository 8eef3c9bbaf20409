"""Draw a result of run.py as SVG: python bench/plot.py bench/results/….json (in bench/tmp/tools-venv)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from report import LABELS, ceiling_share

STYLE = {
    # Text stays text, and the same numbers give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "hilbert",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
OURS, THEIRS, QUIET = "#2a6f97", "#b5b5b5", "#555555"


def bars(axes: Any, title: str, values: dict[str, float], form: str) -> None:
    names = list(values)
    colours = [OURS if n.startswith("hilbert") else THEIRS for n in names]
    places = range(len(names))
    axes.barh(places, list(values.values()), color=colours)
    axes.set_yticks(places, [LABELS.get(n, n) for n in names])
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max(values.values()) * 1.2)
    for place, value in zip(places, values.values(), strict=True):
        axes.text(value, place, " " + form.format(value), va="center", color=QUIET)


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams.update(STYLE)
    source = Path(sys.argv[1])
    result = json.loads(source.read_text())
    medians = result["medians"]
    http, engines = medians["http"], medians["engines"]
    figure, grid = plt.subplots(2, 3, figsize=(13, 5.5), layout="constrained")

    def rates(load: str) -> dict[str, float]:
        return {name: found[load]["requests_per_second"] for name, found in http.items()}

    bars(grid[0][0], "mixed, 32 connections: requests/s", rates("mixed_32"), "{:.0f}")
    bars(grid[0][1], "32 texts per request, 4 connections: requests/s", rates("batch_4"), "{:.1f}")
    bars(grid[0][2], "short, 64 connections: requests/s", rates("short_64"), "{:.0f}")
    waits = {name: found["mixed_1"]["p50_ms"] for name, found in http.items()}
    bars(grid[1][0], "one connection, p50 in ms (less is better)", waits, "{:.1f}")
    tokens = {
        name: found["mixed"].get("bulk", found["mixed"])["tokens_per_second"]
        for name, found in engines.items()
    }
    axes = grid[1][1]
    bars(axes, "engines without HTTP: tokens/s on mixed", tokens, "{:,.0f}")
    ceiling = tokens["hilbert-engine"] / ceiling_share(result, tokens["hilbert-engine"])
    axes.set_xlim(0, ceiling * 1.15)
    axes.axvline(ceiling, color=QUIET, linestyle=":")
    axes.text(ceiling, len(tokens) - 0.5, f"bf16 GEMM {ceiling:,.0f} ", ha="right", va="bottom", color=QUIET)
    axes = grid[1][2]
    memory = result.get("memory_over_random_requests")
    if memory and memory["samples"]:
        scale = memory["requests"] / memory["samples"][-1]["seconds"]
        x = [s["seconds"] * scale for s in memory["samples"]]
        axes.plot(x, [s["rss_mb"] for s in memory["samples"]], color=OURS, label="resident")
        axes.plot(x, [s["pss_mb"] for s in memory["samples"]], color=THEIRS, label="proportional")
        axes.set_ylim(0, 450)
        axes.axhline(400, color=QUIET, linestyle=":")
        axes.set_xlabel("random requests")
        axes.legend(frameon=False, loc="lower right")
        axes.set_title("memory of all of Hilbert's processes, MB")
    else:
        axes.set_axis_off()
    machine = result["machine"]
    figure.suptitle(
        f"all-MiniLM-L6-v2 on {machine['cpu']}, {machine['threads']} threads, {result['date']}, "
        f"medians of {result['rounds']} rounds",
        ha="left",
        x=0.01,
    )
    figure.savefig(source.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
