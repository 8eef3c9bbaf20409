"""Large files of a repository, fetched so that a restart goes on where the last process was stopped.

huggingface_hub writes a download to a file whose name is new each time, so what a killed process has left
is never used again. Here the transfer is the client's own (`http_get`), but the file has a name that the
next process finds. What has arrived is checked against the SHA-256 that the hub named, and only then
becomes a blob of the client's cache, where `snapshot_download` finds it.

Not for files in Xet storage, whose own client is used where it is installed: it fetches pieces in any order.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hilbert.hub.digests import sha256_file
from hilbert.hub.snapshots import SHA256, is_small, repository_folder

_NUM_TRANSFERS = 4  # huggingface_hub takes 8 at once, small files included


@dataclass(frozen=True, slots=True)
class Place:
    """A commit of a repository, and the cache that it goes into."""

    model_id: str
    commit: str
    cache_dir: Path
    token: str | None
    endpoint: str


def fetch_large(place: Place, names: Iterable[str]) -> None:
    """Bring the large ones of these files into the cache, or as far as the connection holds.

    Raises:
        OSError: the disk is full.
        Exception: whatever the client meets.
    """
    snapshot = repository_folder(place.model_id, place.cache_dir) / "snapshots" / place.commit
    large = [name for name in names if not is_small(name) and not (snapshot / name).exists()]
    if large:
        with ThreadPoolExecutor(min(len(large), _NUM_TRANSFERS), "hilbert-fetch") as pool:
            list(pool.map(partial(_fetch, place), large))


def _fetch(place: Place, name: str) -> None:
    """One file, unless only the client itself can fetch it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    utils: Any = importlib.import_module("huggingface_hub.utils")  # its lock is not typed as an export
    url = hf_hub_url(place.model_id, name, revision=place.commit, endpoint=place.endpoint)
    about = get_hf_file_metadata(url, token=place.token, library_name="hilbert", endpoint=place.endpoint)
    has_digest = about.etag is not None and SHA256.fullmatch(about.etag) is not None
    if not has_digest or about.size is None or (about.xet_file_data is not None and utils.is_xet_available()):
        return
    repository = repository_folder(place.model_id, place.cache_dir)
    blob = repository / "blobs" / str(about.etag)
    lock = place.cache_dir / ".locks" / repository.name / f"{about.etag}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with utils.WeakFileLock(lock):  # the client's own: it waits for us, and we for it
        if not blob.exists():
            _transfer(url, place.token, blob, about.size, name)


def _transfer(url: str, token: str | None, blob: Path, size: int, shown: str) -> None:
    """Fetch what is missing of a file, and publish it when it is what the hub said."""
    from huggingface_hub.file_download import http_get

    unfinished = blob.with_name(f"{blob.name}.hilbert.incomplete")
    _adopt(blob, unfinished)
    with unfinished.open("ab") as file:
        num_bytes = file.tell()
        if num_bytes > size:
            num_bytes = file.truncate(0)
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        # The address is the hub's, not the one that it redirects to: that one may have expired by a retry.
        http_get(
            url,
            file,
            resume_size=num_bytes,
            headers=headers,
            expected_size=size,
            displayed_filename=shown,
        )
    if sha256_file(unfinished) != blob.name:
        unfinished.unlink()
        raise OSError(f"Consistency check failed: what arrived has another SHA-256 than {blob.name}")
    os.replace(unfinished, blob)


def _adopt(blob: Path, unfinished: Path) -> None:
    """Go on with the longest piece of this file that a process has left, be it ours or the client's."""
    pieces = {piece: piece.stat().st_size for piece in blob.parent.glob(f"{blob.name}.*incomplete")}
    if not pieces:
        return
    longest = max(pieces, key=pieces.__getitem__)
    os.replace(longest, unfinished)
    for piece in pieces.keys() - {longest, unfinished}:
        piece.unlink(missing_ok=True)
