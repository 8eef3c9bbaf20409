"""How much a caller may ask for, and the words for it: ``rate=80 burst=50 tokens=100000 concurrent=16``.

One grammar for the flags, the settings file and the keys file. Pure; who counts is `access/limiter.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hilbert.config.values import LARGEST

_WORDS = "rate (requests per second), burst (requests), tokens (per minute), concurrent (requests)"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller, or all of them together, may ask for; None is no limit.

    Attributes:
        rate: requests per second, on average.
        burst: requests that may come at once after a pause; None for as many as come in a second.
        tokens: tokens per minute.
        concurrent: requests that may be in work at a time.
    """

    rate: float | None = None
    burst: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    @property
    def requests_at_once(self) -> int:
        """The burst, given or following from the rate."""
        return self.burst if self.burst is not None else max(1, math.ceil(self.rate or 1))

    def over(self, others: Limits) -> Limits:
        """These limits, and those of `others` where these say nothing; rate and burst go together."""
        rate, burst = (others.rate, others.burst) if self.rate is None else (self.rate, self.burst)
        return Limits(
            rate=rate,
            burst=burst,
            tokens=others.tokens if self.tokens is None else self.tokens,
            concurrent=others.concurrent if self.concurrent is None else self.concurrent,
        )


NO_LIMITS = Limits()


def parse_limits(text: str) -> Limits:
    """Read limits; words are divided by blanks or commas, and nothing means no limits.

    Raises:
        ValueError: a word is unknown or its number is no good; the message is the remedy.
    """
    values: dict[str, float | int] = {}
    for word in re.split(r"[,\s]+", text.strip()):
        if word:
            name, _, number = word.partition("=")
            values[name] = _number(name, number)
    if "burst" in values and "rate" not in values:
        raise ValueError("burst= needs rate= beside it")
    if not values:
        return NO_LIMITS
    return Limits(**values)  # type: ignore[arg-type]  # the names are those of the fields, checked above


def _number(name: str, text: str) -> float | int:
    if name not in ("rate", "burst", "tokens", "concurrent"):
        raise ValueError(f"{name!r} is no limit; write name=number with one of {_WORDS}")
    try:
        number = float(text) if name == "rate" else int(text)
    except ValueError:
        number = 0
    if not 0 < number <= LARGEST:
        kind = "a number" if name == "rate" else "a whole number"
        raise ValueError(f"{name}= takes {kind} above 0, of at most {LARGEST}")
    return number


def wrong_limits(text: str) -> str | None:
    """What is wrong with a text of limits, or None."""
    try:
        parse_limits(text)
    except ValueError as error:
        return str(error)
    return None
