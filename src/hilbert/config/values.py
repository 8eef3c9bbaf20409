"""From the text that a person typed to a value, or to a sentence that says what to type instead.

Pure; knows nothing of flags or environment. Raises `ValueError` whose text is the remedy.
"""

from __future__ import annotations

import math
from typing import Any

from hilbert.config.option import Option

_TRUE = frozenset({"true", "t", "1", "yes", "y"})
_FALSE = frozenset({"false", "f", "0", "no", "n"})


def parse(option: Option, text: str) -> Any:
    """The value that `text` means for `option`.

    Empty text is None for a number that may be left open (the machine or the model decides).

    Raises:
        ValueError: it means none; the message is the remedy.
    """
    if text == "" and option.default is None:
        return None
    if option.kind is bool:
        return _bool(text)
    if option.kind is int or option.kind is float:
        return _number(option, text)
    if option.choices and text not in option.choices:
        raise ValueError("give one of " + ", ".join(option.choices))
    if option.check is not None and (remedy := option.check(text)):
        raise ValueError(remedy)
    return text


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("give true or false")
    return word in _TRUE


def _number(option: Option, text: str) -> int | float:
    low, high = option.minimum, option.maximum
    noun = "a whole number" if option.kind is int else "a number"
    if low is not None and high is not None:
        remedy = f"give {noun} from {low} to {high}"
    elif low is not None:
        remedy = f"give {noun} of at least {low}"
    else:
        remedy = f"give {noun}"
    try:
        value: int | float = option.kind(text)
    except ValueError:
        raise ValueError(remedy) from None
    # `not (low <= value)` also turns NaN away; infinity is no time that anybody can wait for.
    if (
        math.isinf(value)
        or (low is not None and not low <= value)
        or (high is not None and not value <= high)
    ):
        raise ValueError(remedy)
    return value
