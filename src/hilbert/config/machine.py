"""What this process may use of the machine: CPUs and memory, with container limits counted.

Reads ``/proc`` and ``/sys/fs/cgroup`` (both versions); elsewhere it falls back on what Python knows.
A container that is given one CPU of sixty-four must not start sixty-four threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def available_threads(root: Path = _ROOT) -> int:
    """CPUs that this process may keep busy: the smaller of affinity and cgroup quota, at least 1.

    A quota of 1.5 CPUs gives 1: a second thread would be throttled half of the time, and every batch
    waits for its slowest thread (p99 of 72 ms against 23 with a quota of one CPU and two threads).
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cpus = os.cpu_count() or 1
    quotas = [
        quota / period
        for folder in _cgroup_folders(root, "cpu")
        for quota, period in _cpu_quotas(folder)
        if quota > 0 and period > 0
    ]
    return max(1, int(min([cpus, *quotas])))


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Bytes that may still be used: the smaller of the system's free memory and what cgroups leave.

    File cache counts as free, since the kernel gives it back.
    """
    free = [_system_memory(root)]
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free.append(max(0, limit - used + _file_cache(folder)))
    return min(free)


def resident_bytes(pid: int | None = None) -> int:
    """Memory that a process has in use, this one by default; 0 where it cannot be told or is gone."""
    try:
        with open(f"/proc/{pid or 'self'}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def give_memory_back() -> None:
    """Return what the allocator keeps for later to the system; about a millisecond for a large process."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process, from its own up to the mount's root, both versions.

    Inside a container the listed path may be the host's and not be mounted: missing folders are
    skipped, and the mount's root is then the container's own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount if not controllers else _version_1_mount(mount, controller, controllers)
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:depth])
            if ".." not in parts[:depth] and folder.is_dir():
                yield folder


def _version_1_mount(mount: Path, controller: str, controllers: str) -> Path:
    joined = mount / controllers  # "cpu,cpuacct" is one mount, usually with a link for each
    return joined if joined.is_dir() else mount / controller


def _cpu_quotas(folder: Path) -> Iterator[tuple[int, int]]:
    """Microseconds of CPU per microseconds of time, where there is a limit."""
    quota = _number(folder / "cpu.cfs_quota_us")
    period = _number(folder / "cpu.cfs_period_us")
    if quota is not None and period is not None:
        yield quota, period
    try:
        first, second = (folder / "cpu.max").read_text().split()
        if first != "max":
            yield int(first), int(second)
    except (OSError, ValueError):
        return


def _system_memory(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_cache(folder: Path) -> int:
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except OSError:
        pass
    return 0


def _number(*candidates: Path) -> int | None:
    """The number in the first of these files that has one; ``max`` is none."""
    for path in candidates:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None
