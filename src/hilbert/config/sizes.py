"""Amounts of memory as people write them: ``8GB``, ``512MiB``, ``70%``."""

from __future__ import annotations

import re

from hilbert.config.values import LARGEST

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(%)|([kmgt]i?)?b?)", re.IGNORECASE)
# Of what is free at start: the rest is for everybody else on the machine.
_DEFAULT_SHARE = 0.9


def size_remedy(text: str) -> str | None:
    """What is wrong with an amount, or None."""
    if text == "auto":
        return None
    found = _SIZE.fullmatch(text.strip())
    is_good = found is not None and 0 < float(found[1]) <= (100 if found[2] else LARGEST)
    return None if is_good else "give an amount such as 8GB, 512MiB or 70%, or auto"


def size_bytes(text: str, available_bytes: int) -> int:
    """The amount in bytes.

    Args:
        text: one that `size_remedy` has nothing against.
        available_bytes: what ``auto`` and percentages are a share of.
    """
    if text == "auto":
        return int(_DEFAULT_SHARE * available_bytes)
    found = _SIZE.fullmatch(text.strip())
    assert found is not None, text
    if found[2]:
        return int(available_bytes * float(found[1]) / 100)
    return int(float(found[1]) * _UNITS[(found[3] or "").lower()])
