"""The cache of traced models: one folder per fingerprint, every file with its SHA-256.

Decides what an artifact is called, whether it can be trusted, and how it appears: whole or not at all.
Knows neither torch nor openvino. Corrupt weight bytes load silently, so nothing unchecked is handed out:
a folder with a wrong digest is removed, and the caller builds it again.

Layout: ``<cache>/artifacts/<fingerprint>/{hilbert.json, model.xml, model.bin}`` and
``<cache>/compiled/<name>/`` for what a runtime compiles from it (made again whenever it is in doubt).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from hilbert.core import ModelSpec
from hilbert.errors import ModelError
from hilbert.hub.digests import cache_root

MANIFEST = "hilbert.json"
FORMAT = 1

# The instruction sets that change which kernels a compiled graph holds.
_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def cpu_isa() -> str:
    """The instruction sets of this CPU that matter to a compiled graph, ``""`` where they cannot be told."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                have = set(line.partition(":")[2].split())
                return "+".join(flag for flag in _ISA_FLAGS if flag in have)
    return ""


def fingerprint(
    spec: ModelSpec, *, program_version: int, dtype: str, runtime_version: str, cpu_isa: str, extra: str = ""
) -> str:
    """A folder name that changes whenever the vectors or the meaning of the files may change."""
    facts: list[Any] = [
        FORMAT,
        spec.digest,
        spec.config,
        [msgspec.to_builtins(m) for m in spec.modules],
        spec.transformer_folder,
        program_version,
        dtype,
        runtime_version,
        cpu_isa,
        extra,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class Exported(msgspec.Struct, frozen=True):
    """What a folder made by `hilbert export` was made of, and how its graph runs."""

    model_id: str
    revision: str
    program: str
    reason: str = ""
    dtype: str = "unknown dtype"
    openvino: str = ""
    program_version: int = 0

    def __str__(self) -> str:
        """One line for a person."""
        engine = f"openvino {self.openvino}".rstrip()
        return f"{self.model_id} at {self.revision}, for engine {engine} in {self.dtype}"


def exported_of(folder: Path) -> Exported | None:
    """What a folder says that it is an export of; None for any other folder."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    spec: dict[str, Any] = manifest["spec"]
    revision = spec.get("commit") or f"digest {str(spec.get('digest'))[:16]}"
    about = {"model_id": spec.get("model_id"), "revision": revision, **manifest["program"]}
    return msgspec.convert(about, Exported)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none that this version can read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    usable = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if usable and {"spec", "program", "files"} <= manifest.keys() else None


def write_manifest(folder: Path, spec: ModelSpec, program: dict[str, Any]) -> None:
    """Describe every file of a folder, digests included."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    files = {
        name: {"sha256": digest, "bytes": (folder / name).stat().st_size}
        for name, digest in _digests(folder, names).items()
    }
    manifest = {"format": FORMAT, "spec": msgspec.to_builtins(spec), "program": program, "files": files}
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    manifest["sha256"] = _digest_of(manifest)
    _write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def is_intact(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether a manifest is as it was written, and every file there with its size and digest.

    45 MB take 30 ms. Folders that were exported before manifests had a digest of their own are taken without.
    """
    if manifest.get("sha256", digest := _digest_of(manifest)) != digest:
        return False
    try:
        files: dict[str, dict[str, Any]] = manifest["files"]
        if any((folder / name).stat().st_size != about["bytes"] for name, about in files.items()):
            return False
        return all(files[name]["sha256"] == digest for name, digest in _digests(folder, list(files)).items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False  # missing, unreadable, or a manifest that is none


class ArtifactStore:
    """The artifacts of one cache folder; safe for several processes at once."""

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self._root = cache_root(cache_dir)
        self._artifacts = self._root / "artifacts"

    def open(self, key: str) -> Path | None:
        """The folder of an artifact whose digests are right; a broken one is removed."""
        self._sweep()
        folder = self._artifacts / key
        if not folder.is_dir():
            return None
        manifest = read_manifest(folder)
        if manifest is not None and "sha256" in manifest and is_intact(folder, manifest):
            return folder
        _remove(folder)
        return None

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """An empty folder to build in; gone afterwards unless it was committed.

        Raises:
            ModelError: the disk is full, or the cache folder cannot be written.
            OSError: something else is wrong while it is built.
        """
        try:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            work, lock = self._make_work(key)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield work
        except OSError as error:
            if self._is_elsewhere(error):
                raise
            raise self._unwritable(error) from error
        except ModelError as error:  # a library may have its own words for a full disk
            if _is_full(work):
                raise self._unwritable(OSError(errno.ENOSPC, str(error))) from error
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            _close(lock)

    def commit(self, key: str, work: Path, spec: ModelSpec, program: dict[str, Any]) -> Path:
        """Publish a built folder under its key, in one rename.

        Returns:
            The artifact's folder: ours, or that of another process which was first.
        """
        write_manifest(work, spec, program)
        publish(work)
        folder = self._artifacts / key
        try:
            os.rename(work, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if self.open(key) is None:  # what stood there was broken, and is gone now
                os.rename(work, folder)
        return folder

    def compiled(self, name: str) -> Path | None:
        """A folder for compiled forms, emptied if it is in doubt; None where none can be written."""
        folder = self._root / "compiled" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        if not os.access(folder, os.W_OK):
            return None
        names = _payload(folder)
        if names and not _is_sealed(folder, names):
            for stale in names:
                (folder / stale).unlink(missing_ok=True)
        return folder

    def _make_work(self, key: str) -> tuple[Path, int | None]:
        """A folder to build in, and the file that holds its lock for as long as somebody builds there."""
        while True:
            work = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self._artifacts))
            lock = _lock(work, is_patient=True)
            if work.exists():  # else it was swept before it was locked
                return work, lock
            _close(lock)

    def _sweep(self) -> None:
        """Remove what builders that were killed have left: work folders that nobody has locked."""
        for folder in self._artifacts.glob(".*-*"):
            if (lock := _lock(folder, is_patient=False)) is not None:
                shutil.rmtree(folder, ignore_errors=True)  # by name: one that was just published stays
                _close(lock)

    def _is_elsewhere(self, error: OSError) -> bool:
        """Whether an error is about another file, or about what processes may have."""
        named = error.filename
        is_named = isinstance(named, str | bytes)
        is_other_file = is_named and not Path(os.fsdecode(named)).is_relative_to(self._root)
        return is_other_file or error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)

    def _unwritable(self, error: OSError) -> ModelError:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
        return ModelError(
            f"the cache folder {self._root} cannot be written: {why}; free some space, or name another "
            "folder with --cache-dir or HILBERT_CACHE_DIR"
        )


def publish(folder: Path) -> None:
    """Give a folder made by `tempfile` the rights that this process gives to what it makes."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def seal(folder: Path) -> None:
    """Note the digests of compiled files, so that the next start can tell whether they are whole."""
    with suppress(OSError):
        _write_synced(folder / MANIFEST, json.dumps(_digests(folder, _payload(folder))).encode())


def _is_sealed(folder: Path, names: list[str]) -> bool:
    try:
        sealed = json.loads((folder / MANIFEST).read_bytes())
        return bool(sealed == _digests(folder, names))
    except (OSError, ValueError):
        return False


def _payload(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", MANIFEST)))


def _digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says but this."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 by name; hashing frees the GIL, so big files run side by side."""

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _write_synced(file: Path, content: bytes) -> None:
    """Write a whole file or none of it."""
    handle, name = tempfile.mkstemp(prefix=".", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _lock(folder: Path, *, is_patient: bool) -> int | None:
    """Lock a folder until the file that is returned is closed, or this process ends.

    None where that cannot be done: somebody else has it, or the file system knows no locks.
    """
    try:
        import fcntl

        file = os.open(folder, os.O_RDONLY)
    except (ModuleNotFoundError, OSError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
    except OSError:
        os.close(file)
        return None
    return file


def _is_full(folder: Path) -> bool:
    """Whether not even a megabyte can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def _close(file: int | None) -> None:
    if file is not None:
        os.close(file)


def _remove(folder: Path) -> None:
    """Take a folder out of the way in one step, then delete it."""
    with suppress(OSError):
        grave = Path(tempfile.mkdtemp(prefix=".broken-", dir=folder.parent))
        lock = _lock(grave, is_patient=True)
        try:
            os.rename(folder, grave / folder.name)
        finally:
            shutil.rmtree(grave, ignore_errors=True)
            _close(lock)
