"""Fetching a snapshot through huggingface_hub, with its failures put into words.

Decides what is tried again and what each failure means to the user. Imported only when something is
missing from the cache; the client itself costs 0.3 s to import and is imported later still.
"""

from __future__ import annotations

import errno
import importlib
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hilbert.errors import MissingDependency, ModelUnavailable
from hilbert.hub.chain import read_entries
from hilbert.hub.files import read_object, safe_folder
from hilbert.hub.partial import Place, fetch_large
from hilbert.hub.snapshots import COMMIT, Cached, cached_revisions, repository_folder, wanted_files

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# Pauses between tries, where the hub names none: 0.5, 1, 2, 4 s, each with up to as much again.
FIRST_PAUSE_SECONDS = 0.5
MAX_TRIES = 5
# A hub that asks for a longer pause than this is reported instead of waited for.
MAX_RETRY_AFTER_SECONDS = 60.0
LISTING_TIMEOUT_SECONDS = 10.0
DEFAULT_ENDPOINT = "https://huggingface.co"


class NotOnHub(ModelUnavailable):
    """The hub answered: it does not have this, or does not show it to us."""


class HubOutOfReach(ModelUnavailable):
    """The hub did not answer, or would not answer now."""


def endpoint() -> str:
    """Address of the hub or of its mirror (``HF_ENDPOINT``)."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids asking the hub."""
    yes = {"1", "ON", "YES", "TRUE"}
    return any(os.environ.get(name, "").upper() in yes for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it; the client wraps the telling one."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _retry_after(error: BaseException) -> float | None:
    """Seconds that a 429 or 503 asks for, if it says."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        if headers is not None and "retry-after" in headers:
            try:
                return max(0.0, float(headers["retry-after"]))
            except ValueError:
                return None  # an HTTP date: rare, and the back-off does as well
    return None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked of the hub, for messages."""

    model_id: str
    revision: str
    has_token: bool
    cache_dir: Path


def _translate(error: Exception, wanted: _Wanted, num_tries: int) -> ModelUnavailable:
    """What an exception of the client means, in the user's words."""
    names, status, hub = _names(error), _status(error), endpoint()
    model_id, revision = wanted.model_id, wanted.revision
    if any(isinstance(c, OSError) and c.errno == errno.ENOSPC for c in _causes(error)):
        return ModelUnavailable(
            f"The disk is full while downloading {model_id}. Free some space, or set HF_HUB_CACHE to a "
            "folder on another disk; what was downloaded is kept."
        )
    if isinstance(error, OSError) and error.filename is not None:  # no socket has one
        return ModelUnavailable(
            f"{model_id} cannot be written to {wanted.cache_dir}: {error.strerror} ({error.filename}). Set "
            "HF_HUB_CACHE to a folder that can be written."
        )
    if "RevisionNotFoundError" in names:
        return NotOnHub(
            f"{model_id} has no revision {revision!r} on {hub}. Give a branch, tag or commit with --revision."
        )
    if "GatedRepoError" in names or status == 403:
        return NotOnHub(
            f"{model_id} is gated on {hub}: accept its terms on its page there, then set HF_TOKEN "
            "(or pass --token) to a token of that account."
        )
    if status == 401:
        shown = "the token given does not open it" if wanted.has_token else "no token was given"
        return NotOnHub(
            f"{model_id} is not on {hub}, or it is private or gated and {shown} (401). Check the id, or set "
            "HF_TOKEN (or pass --token) to a token that may read it."
        )
    if status == 404 or "RepositoryNotFoundError" in names:
        return NotOnHub(f"{model_id} is not on {hub} (404). Check the id and --revision.")
    wait = _retry_after(error)
    if status == 429:
        hint = f"try again in {wait:.0f} s" if wait is not None else "try again later"
        return HubOutOfReach(
            f"{hub} limits the rate of requests (429) and still did after {_tries(num_tries)}; {hint}, or "
            "set HF_TOKEN (or pass --token) for a higher limit.",
            retry_after_seconds=wait,
        )
    if status is not None:
        return HubOutOfReach(
            f"{hub} answered {status} for {model_id} after {_tries(num_tries)}; try again later. "
            f"{_remedy(wanted)}"
        )
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = "nobody listens there" if "ConnectError" in names else "the connection broke again and again"
    return HubOutOfReach(
        f"{model_id} at {revision!r} is not whole in {wanted.cache_dir}, and {hub} cannot be reached: {what} "
        f"({_tries(num_tries)}; {type(error).__name__}: {detail[:200]}). {_remedy(wanted)}"
    )


def _tries(number: int) -> str:
    return "1 try" if number == 1 else f"{number} tries"


def _remedy(wanted: _Wanted) -> str:
    """What can be done while the hub is away."""
    cached = cached_revisions(wanted.model_id, wanted.cache_dir)
    if cached:
        names = ", ".join(map(repr, cached))
        first = (
            f"In the cache are: {names}; name one with --revision, and set HF_HUB_OFFLINE=1 to ask nobody."
        )
    else:
        first = "No other revision is in the cache."
    return (
        f"{first} Otherwise set HF_ENDPOINT to a mirror, or run `hilbert models pull {wanted.model_id}` "
        "where there is a connection and copy the cache. What has arrived is kept."
    )


def _is_worth_another_try(error: Exception) -> bool:
    """Rate limits, server errors and transfers that broke; not what will fail the same way again."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    names = _names(error)
    if "ConnectError" in names:
        return False  # nobody listens there: waiting ten seconds would only hide it
    # A file of the wrong size is what the client makes of a transfer that ended early.
    return "TransportError" in names or "Consistency check" in str(error)


def _patiently(action: Callable[[], T], wanted: _Wanted) -> T:
    """Run an action of the client, again where that may help; honour Retry-After."""
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, MAX_TRIES + 1):
        try:
            return action()
        except Exception as error:
            wait = _retry_after(error)
            too_long = wait is not None and wait > MAX_RETRY_AFTER_SECONDS
            if attempt == MAX_TRIES or too_long or not _is_worth_another_try(error):
                raise _translate(error, wanted, attempt) from error
            # Jitter: many servers that start together should not come back together.
            time.sleep(wait if wait is not None else pause * (1 + random.random()))
            pause *= 2
    raise AssertionError("unreachable")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars inside."""
    utils: Any = importlib.import_module("huggingface_hub.utils")  # its switches are not typed as exports

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _write_ref(model_id: str, revision: str, commit: str, cache_dir: Path) -> None:
    """Let the revision point at the commit, now that the commit is whole."""
    path = repository_folder(model_id, cache_dir) / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(commit)
    temporary.replace(path)


def download(
    model_id: str,
    revision: str,
    *,
    token: str | None,
    cache_dir: Path,
    trust_remote_code: bool,
    progress: bool | None,
) -> tuple[Cached, Sequence[str]]:
    """Bring the snapshot of a revision into the hub's cache; only what is missing is transferred.

    The branch is resolved to its commit first, and the cache's ref moves only when every file has
    arrived: a cut download leaves the previous snapshot in use.

    Returns:
        The whole snapshot, and the names of all files that the repository has.
    Raises:
        NotOnHub: unknown id or revision, private or gated.
        HubOutOfReach: offline, unreachable, rate limited, or a transfer that breaks again and again.
        ModelUnavailable: the disk is full, or the cache cannot be written.
        ModelError: a file name leaves the repository.
        MissingDependency: the hub's client is not installed.
    """
    if is_offline():
        raise HubOutOfReach(
            f"{model_id} at {revision!r} is not whole in {cache_dir}, and HF_HUB_OFFLINE forbids asking the "
            f"hub. Where there is a connection, run `hilbert models pull {model_id}`."
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(
            f"Downloading {model_id} needs huggingface_hub: `pip install 'hilbert[serve]'`, or give a folder."
        ) from error

    has_token = bool(token or huggingface_hub.get_token())
    asked = _Wanted(model_id, revision, has_token, cache_dir)
    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token, library_name="hilbert")

    def look_up() -> tuple[str, list[str]]:
        info = api.model_info(model_id, revision=revision, timeout=LISTING_TIMEOUT_SECONDS)
        return info.sha or "", [sibling.rfilename for sibling in info.siblings or []]

    commit, listing = _patiently(look_up, asked)
    if not COMMIT.fullmatch(commit):
        raise HubOutOfReach(f"{endpoint()} names no commit for {model_id} at {revision!r}, but {commit!r}.")
    wanted = wanted_files(listing, trust_remote_code=trust_remote_code)
    if not wanted:
        raise NotOnHub(f"{model_id} at {revision!r} holds no model files, only {sorted(listing)[:5]}.")

    for name in wanted:
        safe_folder(name, Path(model_id))  # a mirror is not trusted to name files well

    place = Place(model_id, commit, cache_dir, token or huggingface_hub.get_token(), endpoint())

    def fetch(names: Sequence[str]) -> Path:
        def transfer() -> str:
            fetch_large(place, names)
            return huggingface_hub.snapshot_download(
                model_id,
                revision=commit,
                cache_dir=cache_dir,
                allow_patterns=[_literal(name) for name in names],
                token=token,
                endpoint=endpoint(),
                library_name="hilbert",
            )

        return Path(_patiently(transfer, asked))

    shown = sys.stderr.isatty() if progress is None else progress
    with nullcontext() if shown else _quiet():
        graphs = wanted_files(listing, trust_remote_code=trust_remote_code, prefer_graphs=True)
        if graphs != wanted and find_spec("torch") is None:
            # The graph saves torch; but an embedding table needs neither, and only the JSON tells.
            both = [name for name in wanted if name in graphs]
            wanted = wanted if _is_static(fetch(both)) else graphs
        path = fetch(wanted)
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise HubOutOfReach(
            f"{model_id}: {len(missing)} files did not arrive, first {missing[0]}; try again."
        )
    _write_ref(model_id, revision, commit, cache_dir)
    return Cached(path, commit, True), listing


def _is_static(snapshot: Path) -> bool:
    """Whether the model is an embedding table, which is served from its weights without torch."""
    entries = read_entries(snapshot)
    if entries is not None:
        return entries[0].name == "StaticEmbedding"
    return read_object(snapshot / "config.json").get("model_type") == "model2vec"


def _literal(name: str) -> str:
    """A glob pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
