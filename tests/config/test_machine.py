import os
from pathlib import Path

import pytest

from hilbert.config import available_memory_bytes, available_threads

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def tree(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:  1024000 kB\n", **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/box/inner\n"
V1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "1600000 100000\n"}, 8),
        # A limit of the parent binds too.
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
                "sys/fs/cgroup/box/cpu.max": "200000 100000\n",
            },
            2,
        ),
        # In a container with its own namespace the limit lies at the root.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        # The listed path is the host's and not mounted here.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "garbage\n"}, 8),
    ],
)
def test_threads(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    assert available_threads(tree(tmp_path, files)) == threads


def test_affinity_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    files = {"proc/self/cgroup": V2, "sys/fs/cgroup/box/inner/cpu.max": "300000 100000\n"}
    assert available_threads(tree(tmp_path, files)) == 1


def test_memory_without_limits(tmp_path: Path) -> None:
    assert available_memory_bytes(tree(tmp_path, {})) == 1000 * MIB


def test_memory_of_cgroup_2(tmp_path: Path) -> None:
    inner = "sys/fs/cgroup/box/inner/"
    files = {
        "proc/self/cgroup": V2,
        inner + "memory.max": str(500 * MIB),
        inner + "memory.current": str(300 * MIB),
        inner + "memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
    }
    assert available_memory_bytes(tree(tmp_path, files)) == 300 * MIB
    files[inner + "memory.max"] = "max"
    assert available_memory_bytes(tree(tmp_path, files)) == 1000 * MIB
    files["sys/fs/cgroup/box/memory.max"] = str(64 * MIB)
    files["sys/fs/cgroup/box/memory.current"] = str(100 * MIB)
    assert available_memory_bytes(tree(tmp_path, files)) == 0


def test_memory_of_cgroup_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": V1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(500 * MIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(300 * MIB),
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {100 * MIB}\n",
    }
    assert available_memory_bytes(tree(tmp_path, files)) == 300 * MIB


def test_this_machine() -> None:
    assert available_threads() >= 1
    assert available_memory_bytes() > MIB
