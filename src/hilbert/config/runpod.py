"""``hilbert runpod``: the variables that users of RunPod's embedding worker have set already.

They are bare names (`MODEL_NAMES`, `DTYPES`), so they count for this verb alone. Flags, `HILBERT_*` and
`INFINITY_*` win over them. `RUNPOD_MAX_CONCURRENCY` and `HTTP_CLIENT_*` are settings like any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hilbert.config.sources import BadSetting, Given, Source
from hilbert.config.values import LARGEST

# Where the platform mounts a network volume.
VOLUME = Path("/runpod-volume")

# What the worker's queue holds where nothing is said, in items, and what an item is counted as here.
_QUEUED_ITEMS = 48_000
_TOKENS_PER_ITEM = 512
# The platform's own time limit of a job.
_JOB_SECONDS = 600.0

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
# By our name: the worker's names, the first that is set wins.
_LISTS = {
    "model_id": ("MODEL_NAMES", "MODEL_NAME"),
    "max_batch_requests": ("BATCH_SIZES",),
    "dtype": ("DTYPES",),
    "engine": ("BACKEND",),
}


def runpod_source(environ: Mapping[str, str]) -> Source:
    """What the worker's own variables say.

    Raises:
        BadSetting: the size of the queue is no number.
    """
    given: dict[str, Given] = {}
    for name, variables in _LISTS.items():
        for variable in variables:
            texts = [text.strip() for text in environ.get(variable, "").split(";") if text.strip()]
            if texts:
                words = _DTYPES if name == "dtype" else {}
                given[name] = Given(variable, tuple(words.get(text, text) for text in texts))
                break
    size = environ.get("INFINITY_QUEUE_SIZE", "").strip()
    if size:
        most = LARGEST // _TOKENS_PER_ITEM
        if not re.fullmatch(r"[0-9]{1,99}", size) or not 1 <= int(size) <= most:
            raise BadSetting(
                f"INFINITY_QUEUE_SIZE {size!r} cannot be used: give a whole number from 1 to {most}"
            )
        given["max_queued_tokens"] = Given("INFINITY_QUEUE_SIZE", (str(int(size) * _TOKENS_PER_ITEM),))
    return given


def runpod_defaults(volume: Path = VOLUME) -> dict[str, Any]:
    """Defaults that differ from those of ``hilbert serve``.

    The platform is the queue: what the worker has taken must not be refused for want of room.
    """
    defaults: dict[str, Any] = {
        "max_queued_tokens": _QUEUED_ITEMS * _TOKENS_PER_ITEM,
        "request_timeout": _JOB_SECONDS,
    }
    if _is_usable(volume):
        defaults["cache_dir"] = str(volume / "hilbert")
    return defaults


def volume_environment(environ: Mapping[str, str], volume: Path = VOLUME) -> dict[str, str]:
    """Variables to be set before anything is fetched: where the hub's files are kept between starts."""
    if environ.get("HF_HOME") or environ.get("HF_HUB_CACHE") or not _is_usable(volume):
        return {}
    return {"HF_HOME": str(volume)}


def _is_usable(volume: Path) -> bool:
    return volume.is_dir() and os.access(volume, os.W_OK)
