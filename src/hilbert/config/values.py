"""From the text that a person typed to a value, or to a sentence that says what to type instead.

Pure; knows nothing of flags or environment. Raises `ValueError` whose text is the remedy.
"""

from __future__ import annotations

import json
import math
from typing import Any

from hilbert.config.option import Option

_TRUE = frozenset({"true", "t", "1", "yes", "y"})
_FALSE = frozenset({"false", "f", "0", "no", "n"})
# Nothing that is counted here comes near it, and what is larger fits no counter and no float.
LARGEST = 2**63 - 1


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
    if option.kind is list:
        return _list(text)
    if option.kind is dict:
        return _pairs(text)
    text = dict(option.synonyms).get(text, text)
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


def _list(text: str) -> tuple[str, ...]:
    """``a, b``, or a JSON list where an item has a comma in it."""
    if not text.startswith("["):
        return tuple(item for part in text.split(",") if (item := part.strip()))
    try:
        items = json.loads(text)
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("give names, divided by commas")
    return tuple(items)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """``{"query": "query: "}``."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError('give a JSON object of texts such as {"query": "query: "}')
    return tuple(found.items())


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
    except ValueError:  # int() reads 4300 digits at most
        raise ValueError(remedy) from None
    # `not (low <= value)` also turns NaN away; infinity is no time that anybody can wait for.
    if (
        abs(value) == math.inf
        or (low is not None and not low <= value)
        or (high is not None and not value <= high)
    ):
        raise ValueError(remedy)
    if abs(value) > LARGEST:
        raise ValueError(f"give {noun} of at most {LARGEST}")
    return value
