"""Requests and tokens of each key, by label."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Labels come from the keys file, which may change for years; further ones are counted together.
_MAX_LABELS = 10_000
_OTHERS = "others"
_MAIL = re.compile(r"\s*<[^<>]*>\s*")


class Usage:
    """Counts since the start."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def count(self, label: str, num_tokens: int, num_requests: int = 1) -> None:
        """A request of this key was answered, or a job of a request that was."""
        try:
            counts = self._counts[label]
        except KeyError:
            counts = self._counts.setdefault(label if len(self._counts) < _MAX_LABELS else _OTHERS, [0, 0])
        counts[0] += num_requests
        counts[1] += num_tokens

    def rows(self) -> Iterator[tuple[str, int, int]]:
        """Label, requests, tokens; labels without their mail address, as anybody may read metrics."""
        totals: dict[str, list[int]] = {}
        for label, (requests, tokens) in list(self._counts.items()):
            row = totals.setdefault(_MAIL.sub(" ", label).strip() or "unnamed", [0, 0])
            row[0] += requests
            row[1] += tokens
        for label, (requests, tokens) in totals.items():
            yield label, requests, tokens
