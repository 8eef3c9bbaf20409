"""Model id to `ModelSpec`: the one way in. Local first, the network last.

Decides where a model's files come from: a folder, an exported folder, the hub's cache, the bundled
package, the hub. A model that is already here is resolved in milliseconds, with neither torch nor the
hub's client imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from hilbert.core import ModelSpec
from hilbert.errors import ModelError, ModelUnavailable
from hilbert.hub import bundled
from hilbert.hub.artifacts import MANIFEST, read_manifest
from hilbert.hub.digests import combined, digests_of
from hilbert.hub.reading import read_spec
from hilbert.hub.snapshots import Cached, check_names, find_cached, hub_cache, write_listing

DEFAULT_REVISION = "main"
DECIDING_SUFFIXES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".jinja", ".metadata")
CODE_AND_WEIGHTS = (".safetensors", ".bin", ".pt", ".py")


def deciding_files(spec: ModelSpec) -> list[str]:
    """Files of a folder that its vectors depend on, relative to `spec.path`."""
    root = Path(spec.path)
    folders = {"", spec.transformer_folder, *(getattr(module, "folder", "") for module in spec.modules)}
    if spec.static_queries is not None:
        folders.add(spec.static_queries.folder)
    suffixes: tuple[str, ...] = DECIDING_SUFFIXES
    names = {
        *(f"{spec.transformer_folder}/{name}".lstrip("/") for name in spec.weights),
        *spec.graph_files,
        *(name.removesuffix(".xml") + ".bin" for name in spec.graph_files if name.endswith(".xml")),
    }
    for folder in folders - {""}:
        names.update(
            f"{folder}/{path.name}"
            for path in (root / folder).iterdir()
            if path.suffix in (*DECIDING_SUFFIXES, *CODE_AND_WEIGHTS)
        )
    if spec.kind == "other" or spec.remote_code:
        suffixes = DECIDING_SUFFIXES + CODE_AND_WEIGHTS
    names.update(path.name for path in root.iterdir() if path.suffix in suffixes)
    if (root / "modules.json").is_file():
        # Pooling and the modules of kind "other" keep a config.json each; folders are one level deep.
        names.update(str(path.relative_to(root)) for path in root.glob("*/config.json") if path.is_file())
    return sorted(name for name in names if (root / name).is_file())


def _of_folder(
    folder: Path, model_id: str, trust_remote_code: bool, own_cache: str | Path | None
) -> ModelSpec:
    folder = folder.absolute()
    if (exported := _of_exported(folder, model_id)) is not None:
        return exported
    spec = read_spec(folder, model_id=model_id, trust_remote_code=trust_remote_code)
    digest = combined(digests_of(folder, deciding_files(spec), own_cache))
    return msgspec.structs.replace(spec, digest=digest)


def _of_exported(folder: Path, model_id: str) -> ModelSpec | None:
    """The spec inside a folder that `hilbert export` wrote; None for any other folder.

    Raises:
        ModelUnavailable: it was written by a version that this one does not understand.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    try:
        spec = msgspec.convert(manifest["spec"] if manifest else None, ModelSpec)
    except msgspec.ValidationError as error:
        raise ModelUnavailable(
            f"{folder / MANIFEST} was not written by this version of Hilbert ({error}); export the model "
            "again with `hilbert export`."
        ) from error
    # The graph and the tokenizer lie side by side here; the original's weights are not here at all.
    return msgspec.structs.replace(
        spec, model_id=model_id, path=str(folder), transformer_folder="", weights=(), graph_files=()
    )


def _of_snapshot(cached: Cached, model_id: str, trust_remote_code: bool) -> ModelSpec:
    spec = read_spec(
        cached.path, model_id=model_id, commit=cached.commit, trust_remote_code=trust_remote_code
    )
    return msgspec.structs.replace(spec, digest=combined({"commit": cached.commit}))


def is_folder_name(model_id: str) -> bool:
    """Whether an id can only mean a folder of this machine, as no hub has such names."""
    return model_id.startswith((".", "/", "~")) or "\\" in model_id or model_id.count("/") > 1


def is_folder(model_id: str) -> bool:
    """Whether an id names a folder that is there; an unknown user's home is none, nor is an endless name."""
    return os.path.isdir(os.path.expanduser(model_id))


def resolve(
    model_id: str | None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: bool | None = None,
    own_cache: str | Path | None = None,
) -> ModelSpec:
    """Find a model and describe it.

    Args:
        model_id: a folder, a hub id (``org/name``), or None or ``"bundled"`` for the packaged model.
        revision: branch, tag or commit; ``main`` by default.
        token: for private repositories; ``HF_TOKEN`` by default.
        cache_dir: the hub's cache folder; ``HF_HUB_CACHE`` and its fallbacks by default.
        trust_remote_code: fetch and allow the repository's own code.
        progress: show a download's progress; None shows it on a terminal only.
        own_cache: Hilbert's cache, which remembers digests; see `digests.cache_root`.
    Raises:
        ModelUnavailable: unknown, private, broken or out of reach.
        ModelError: the repository contradicts itself.
    """
    if model_id is None or model_id == "bundled":
        return _of_folder(bundled.bundled_folder(own_cache), bundled.MODEL_ID, trust_remote_code, own_cache)
    if not model_id:
        raise ModelUnavailable(
            "The model id is empty; give a folder or a hub id like BAAI/bge-small-en-v1.5."
        )
    if is_folder(model_id):
        folder = Path(model_id).expanduser()
        return _of_folder(folder, model_id, trust_remote_code, own_cache)
    if is_folder_name(model_id) or os.path.exists(model_id):
        raise ModelUnavailable(f"There is no model folder {model_id!r} here (seen from {os.getcwd()}).")

    wanted = revision or DEFAULT_REVISION
    check_names(model_id, wanted)
    root = Path(cache_dir).expanduser() if cache_dir else hub_cache()
    names = _names_on_hub(model_id)
    partial: Cached | None = None
    for name in names:
        cached = find_cached(name, wanted, root, trust_remote_code=trust_remote_code, own_cache=own_cache)
        if cached is not None and cached.is_whole:
            return _of_snapshot(cached, model_id, trust_remote_code)
        partial = partial or cached
    if model_id in bundled.NAMES and revision is None and bundled.find_bundled() is not None:
        return _of_folder(bundled.bundled_folder(own_cache), bundled.MODEL_ID, trust_remote_code, own_cache)
    return _fetch(names, partial, model_id, wanted, token, root, trust_remote_code, progress, own_cache)


def is_here(
    model_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    own_cache: str | Path | None = None,
) -> bool:
    """Whether `resolve` would find the whole model on this machine and ask nobody. Arguments as there."""
    if model_id == "bundled" or is_folder(model_id):
        return True
    if is_folder_name(model_id):
        return False
    wanted = revision or DEFAULT_REVISION
    check_names(model_id, wanted)
    root = Path(cache_dir).expanduser() if cache_dir else hub_cache()
    for name in _names_on_hub(model_id):
        cached = find_cached(name, wanted, root, trust_remote_code=trust_remote_code, own_cache=own_cache)
        if cached is not None and cached.is_whole:
            return True
    return model_id in bundled.NAMES and revision is None and bundled.find_bundled() is not None


def _names_on_hub(model_id: str) -> list[str]:
    """A bare name is one of sentence-transformers' own models, or one of the hub's oldest."""
    return [model_id] if "/" in model_id else [f"sentence-transformers/{model_id}", model_id]


def _fetch(
    names: list[str],
    partial: Cached | None,
    model_id: str,
    revision: str,
    token: str | None,
    root: Path,
    trust_remote_code: bool,
    progress: bool | None,
    own_cache: str | Path | None,
) -> ModelSpec:
    """Download what is missing; with the hub out of reach, make do with a snapshot of unknown wholeness."""
    from hilbert.hub.download import HubOutOfReach, NotOnHub, download

    missing: NotOnHub | None = None
    for name in names:
        try:
            cached, listing = download(
                name,
                revision,
                token=token,
                cache_dir=root,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        except NotOnHub as error:
            missing = missing or error
            continue
        except HubOutOfReach:
            if partial is None or partial.is_whole is False:
                raise
            try:
                return _of_snapshot(partial, model_id, trust_remote_code)
            except ModelError:
                pass
            raise
        write_listing(cached.path, listing, own_cache)
        return _of_snapshot(cached, model_id, trust_remote_code)
    assert missing is not None
    raise missing


def pull(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: bool | None = None,
    own_cache: str | Path | None = None,
) -> ModelSpec:
    """As `resolve`, but asks the hub first: a moved branch is followed. Arguments and errors as there."""
    if model_id == "bundled" or is_folder(model_id) or is_folder_name(model_id):
        return resolve(model_id, revision=revision, trust_remote_code=trust_remote_code, own_cache=own_cache)
    wanted = revision or DEFAULT_REVISION
    check_names(model_id, wanted)
    root = Path(cache_dir).expanduser() if cache_dir else hub_cache()
    return _fetch(
        _names_on_hub(model_id), None, model_id, wanted, token, root, trust_remote_code, progress, own_cache
    )
