"""What a result file says of where it was made: processor, threads, versions, commit. No names, no paths."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent

# The instruction sets that decide how fast a matrix product can be.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
PACKAGES = (
    "hilbert",
    "openvino",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "orjson",
    "msgspec",
)


def _cpuinfo(field: str) -> str:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{field}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def num_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.machine()


def describe() -> dict[str, Any]:
    present = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    memory = _cpuinfo_memory()
    return {
        "cpu": cpu_name(),
        "cpu_family_model": f"{_cpuinfo('cpu family')}/{_cpuinfo('model')}",
        "threads": num_threads(),
        "flags": [f for f in FLAGS if f in present],
        "memory_gb": memory,
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }


def _cpuinfo_memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """The commit that was measured; ``-dirty`` when tracked files of src differ from it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(BENCH.parent)]
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src"], capture_output=True)
        return name.stdout.decode().strip() + ("-dirty" if changed.returncode else "")
    return "unknown"


def slug() -> str:
    """Date and processor, for file names."""
    cpu = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|processor|cpu", "", cpu_name().lower())).strip("-")
    return f"{datetime.date.today().isoformat()}-{cpu}-{num_threads()}t"


def busy_share(seconds: float = 1.0) -> float:
    """Share of all processors that is in use right now, by others: the quietness of the machine."""

    def read() -> tuple[int, int]:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(ticks), ticks[3] + ticks[4]

    with contextlib.suppress(OSError, ValueError, IndexError):
        before = read()
        time.sleep(seconds)
        after = read()
        total = after[0] - before[0]
        return round(1 - (after[1] - before[1]) / total, 3) if total else 0.0
    return 0.0
