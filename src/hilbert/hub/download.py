"""Fetching a snapshot through huggingface_hub, with its failures put into words.

Decides what to retry and what each failure means to the user. Imported only when something is missing
from the cache: the client costs 0.3 s to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hilbert.errors import ModelUnavailable
from hilbert.hub.snapshots import Cached


class NotOnHub(ModelUnavailable):
    """The hub answered: it does not have this, or does not show it to us."""


class HubOutOfReach(ModelUnavailable):
    """The hub did not answer."""


def download(
    model_id: str,
    revision: str,
    *,
    token: str | None,
    cache_dir: Path,
    trust_remote_code: bool,
    progress: bool | None,
) -> tuple[Cached, Sequence[str]]:
    """TODO."""
    raise HubOutOfReach("not yet")
