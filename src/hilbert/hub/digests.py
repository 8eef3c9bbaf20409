"""SHA-256 of files, remembered: a warm start compares five numbers per file instead of reading it.

A remembered digest counts only while device, inode, size, mtime and ctime are unchanged; ctime cannot be set
back by a program that restores mtime. A file that changed just before it was hashed is not remembered,
as a second change within the clock's tick would go unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from hilbert.errors import ModelUnavailable

# A file younger than this is hashed again next time. Coarser than any kernel's timestamp tick.
RACY_NANOSECONDS = 100_000_000
# Files below this are hashed by the calling thread: a pool costs more.
THREADED_BYTES = 4 * 1024 * 1024

Stamp = tuple[int, int, int, int, int]
Memo = dict[str, tuple[Stamp, str]]


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Hilbert's cache: the argument, else ``HILBERT_CACHE_DIR``, else ``hilbert`` in the user's cache."""
    if named := cache_dir or os.environ.get("HILBERT_CACHE_DIR"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "hilbert"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes. Frees the GIL while it hashes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Digests in order; big files side by side on threads."""
    if len(paths) < 2 or sum(path.stat().st_size for path in paths) < THREADED_BYTES:
        return [sha256_file(path) for path in paths]
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1), "hilbert-sha256") as pool:
        return list(pool.map(sha256_file, paths))


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _memo_file(folder: Path, cache_dir: str | Path | None) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:32]
    return cache_root(cache_dir) / "digests" / f"{name}.json"


def _read_memo(path: Path) -> Memo:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memo)
    except (OSError, msgspec.MsgspecError):
        return {}  # a lost memory costs one hashing, never a wrong answer


def _write_memo(path: Path, memo: Memo) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    # A read-only or full cache folder only makes the next start slower.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(msgspec.json.encode(memo))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def digests_of(folder: Path, names: Iterable[str], cache_dir: str | Path | None = None) -> dict[str, str]:
    """SHA-256 by name of files in `folder`, from memory where the file is unchanged.

    Args:
        folder: where the files are.
        names: relative to it.
        cache_dir: Hilbert's cache, which holds the memory; see `cache_root`.
    Raises:
        ModelUnavailable: a file is gone or unreadable.
    """
    memo_file = _memo_file(folder, cache_dir)
    memo = _read_memo(memo_file)
    names = list(names)
    try:
        now = time.time_ns()
        stamps = {name: _stamp(folder / name) for name in names}
        stale = [name for name in names if name not in memo or memo[name][0] != stamps[name]]
        if stale:
            for name, digest in zip(stale, sha256_files([folder / name for name in stale]), strict=True):
                memo[name] = (stamps[name], digest)
            settled = {
                name: entry for name, entry in memo.items() if max(entry[0][3:]) < now - RACY_NANOSECONDS
            }
            if settled:
                _write_memo(memo_file, settled)
    except OSError as error:
        raise ModelUnavailable(f"{error.filename or folder} cannot be read: {error.strerror}.") from error
    return {name: memo[name][1] for name in names}


def combined(digests: dict[str, str]) -> str:
    """One digest over names and contents, independent of order."""
    whole = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        whole.update(f"{len(name)}:{name}={digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
