"""The hub's cache folder, read by hand: a cached model starts without the network and without its client.

Decides whether a cached snapshot is whole. The layout is huggingface_hub's:
``models--org--name/refs/<revision>`` names a commit, ``snapshots/<commit>/`` holds its files,
``trees/<commit>.json`` lists what the repository has.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from hilbert.errors import ModelUnavailable
from hilbert.hub.digests import cache_root

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,249}")

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja", "*.metadata")
# Whole or in shards; not the variants (``model.fp16.safetensors``, ``consolidated.safetensors``).
SAFE_WEIGHTS = re.compile(r"(?:.*/)?model(?:-\d+-of-\d+)?\.safetensors")
PICKLED_WEIGHTS = re.compile(r"(?:.*/)?(?:pytorch_model(?:-\d+-of-\d+)?\.bin|(?:pytorch_)?model\.pt)")
# The heads that bge-m3 keeps beside its weights, whatever form these have.
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
# By preference: OpenVINO's own format, then ONNX with the data that it may keep beside itself.
GRAPHS = (
    re.compile(r"(?:openvino/)?openvino_model\.(?:xml|bin)"),
    re.compile(r"(?:onnx/)?model\.onnx(?:[._]data)?"),
)
# Folders that hold the same weights for other programs, or training state.
FOREIGN_FOLDERS = ("onnx/", "openvino/", "checkpoint", "coreml/", "tflite/", "gguf/", "original/", ".")


def wanted_files(
    names: Iterable[str], *, trust_remote_code: bool = False, prefer_graphs: bool = False
) -> list[str]:
    """The files of a repository that a model is served from.

    JSON and tokenizer files; safetensors, or pickles where a folder has no safetensors; code only when
    it is trusted. Shipped graphs come instead of the weights where they are preferred or alone.
    """
    names = sorted(names)
    own = [name for name in names if not name.startswith(FOREIGN_FOLDERS)]
    safe = [name for name in own if SAFE_WEIGHTS.fullmatch(name)] or [
        name for name in own if name.endswith(".safetensors")
    ]
    covered = {name.rpartition("/")[0] for name in safe}
    pickled = [
        name for name in own if PICKLED_WEIGHTS.fullmatch(name) and name.rpartition("/")[0] not in covered
    ]
    weights = safe + pickled
    graphs = next((found for kind in GRAPHS if (found := [n for n in names if kind.fullmatch(n)])), [])
    if graphs and (prefer_graphs or not weights):
        # Modules in folders of their own (Dense) keep their weights: no graph holds them.
        weights = [*graphs, *(name for name in weights if "/" in name)]
    small = [name for name in own if is_small(name)]
    code = [name for name in own if name.endswith(".py")] if trust_remote_code else []
    return sorted({*small, *weights, *code, *(name for name in own if name in HEADS)})


def is_small(name: str) -> bool:
    """Whether a file describes a model or its tokenizer, rather than being its weights."""
    return any(fnmatchcase(name, pattern) for pattern in SMALL_FILES)


def hub_cache() -> Path:
    """Where the hub's client keeps snapshots: ``$HF_HUB_CACHE``, else ``$HF_HOME/hub``, else its default."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def check_names(model_id: str, revision: str) -> None:
    """Refuse what cannot be a hub id or revision, before it becomes part of a path or an address.

    Raises:
        ModelUnavailable: with what an id looks like.
    """
    parts = model_id.split("/")
    if (
        len(parts) > 2
        or not all(NAME.fullmatch(part) for part in parts)
        or "--" in model_id
        or ".." in model_id
    ):
        raise ModelUnavailable(
            f"{model_id!r} is neither a folder here nor a hub id (`org/name`, at most 96 letters, digits, "
            "'-', '_' and '.')."
        )
    if not REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise ModelUnavailable(f"{revision!r} is not a revision: give a branch, a tag or a commit.")


def _listing_file(snapshot: Path, own_cache: str | Path | None) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.abspath(snapshot))).hexdigest()[:32]
    return cache_root(own_cache) / "listings" / f"{key}.json"


def write_listing(snapshot: Path, names: Iterable[str], own_cache: str | Path | None = None) -> None:
    """Remember what the repository has at this commit, so that a cut download is known as such."""
    path = _listing_file(snapshot, own_cache)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    # Without it the next start asks the hub again.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(sorted(names)))
        temporary.replace(path)


def _listing(snapshot: Path, own_cache: str | Path | None) -> list[str] | None:
    """File names of the repository at the snapshot's commit, from our own note or the client's."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_listing_file(snapshot, own_cache).read_bytes(), type=list[str])
    tree = snapshot.parent.parent / "trees" / f"{snapshot.name}.json"
    with suppress(OSError, msgspec.MsgspecError):
        value = msgspec.json.decode(tree.read_bytes())
        entries = value.get("files", value) if isinstance(value, dict) else value
        if isinstance(entries, dict):
            return [str(name) for name in entries]
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            return [str(entry["path"]) for entry in entries if "path" in entry]
    return None


class Cached(msgspec.Struct, frozen=True):
    """A snapshot on disk. `is_whole` is None where nothing says what the repository has."""

    path: Path
    commit: str
    is_whole: bool | None


def repository_folder(model_id: str, cache_dir: Path) -> Path:
    """Where the cache keeps a repository's refs and snapshots."""
    return cache_dir / f"models--{model_id.replace('/', '--')}"


def cached_revisions(model_id: str, cache_dir: Path) -> list[str]:
    """Branches and tags of a repository whose commit has a snapshot in the cache, whole or not."""
    folder = repository_folder(model_id, cache_dir)
    found = []
    for ref in sorted((folder / "refs").rglob("*")):
        with suppress(OSError):
            if ref.is_file() and (folder / "snapshots" / ref.read_text().strip()).is_dir():
                found.append(ref.relative_to(folder / "refs").as_posix())
    return found


def find_cached(
    model_id: str,
    revision: str,
    cache_dir: Path,
    *,
    trust_remote_code: bool = False,
    own_cache: str | Path | None = None,
) -> Cached | None:
    """The snapshot of a revision, if the cache has any part of it. Touches no network."""
    repository = repository_folder(model_id, cache_dir)
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (repository / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not COMMIT.fullmatch(commit):
            return None
    path = repository / "snapshots" / commit
    if not path.is_dir():
        return None
    listing = _listing(path, own_cache)
    if listing is None:
        return Cached(path, commit, None)
    # Either choice serves: a machine without torch may have traced the weights while it had torch.
    plans = (
        wanted_files(listing, trust_remote_code=trust_remote_code, prefer_graphs=prefer_graphs)
        for prefer_graphs in (False, True)
    )
    return Cached(path, commit, any(all((path / name).is_file() for name in plan) for plan in plans))
