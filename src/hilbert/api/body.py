"""Request bodies: bytes to msgspec types, and every complaint about their form in one wording."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sized
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import orjson

from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput

Body = TypeVar("Body")

# An escape in a JSON text: a pair of surrogates, one alone, or any other.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.S
)
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
_MAX_SHOWN = 50

# What to send in fields that several dialects have.
DIMENSIONS = (
    "an integer from 1 to the length of the model's vectors (`dimensions` in GET /v1/models), or leave it "
    "out for all"
)
_FORMS = {
    "dimensions": DIMENSIONS,
    "output_dimension": DIMENSIONS,
    "top_n": "an integer, 1 or more, or leave it out for all",
    "top_k": "an integer, 1 or more, or leave it out for all",
    "model": "a name that GET /v1/models lists",
}


def about(text: str) -> msgspec.Meta:
    """What a field means, for the OpenAPI document."""
    return msgspec.Meta(description=text)


class Usage(msgspec.Struct):
    """Real tokens, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


def usage(num_tokens: int) -> dict[str, int]:
    """`Usage`, ready to be written."""
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def short_floats(values: FloatArray) -> list[float]:
    """``[n]`` float32 as Python floats that are written with no more digits than they have."""
    # orjson writes float32 in its shortest form, and that read back is the float wanted.
    written = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    found: list[float] = orjson.loads(written)
    return found


def truncates(*said: object) -> bool | None:
    """Whether long inputs are cut, from the fields that may say so; None where none does.

    A false one wins.
    """
    return False if False in said else True if True in said else None


class MalformedRequest(InvalidInput):
    """The body has not the form that the route asks for (as opposed to values that a model refuses)."""


class UnreadableBody(MalformedRequest):
    """The body is no JSON (or no msgpack) at all."""


def check_number(items: Sized | None, field: str, forms: str, max_items: int) -> None:
    """Refuse a list that is missing, empty or too long.

    Args:
        items: the list, or what else has a length.
        field: what it is called.
        forms: what to send.
        max_items: that one request may have.
    Raises:
        MalformedRequest: it is.
    """
    if not items:
        what = "is missing" if items is None else "is an empty list"
        raise MalformedRequest(f"`{field}` {what}; send {forms}.", param=field)
    if len(items) > max_items:
        raise MalformedRequest(
            f"`{field}` has {len(items)} items; one request may have {max_items} (--max-client-batch-size).",
            param=field,
        )


class BodyDecoder(Generic[Body]):
    """Parses bodies of one type, in JSON or msgpack.

    Args:
        type_: a msgspec Struct.
        forms: by field, what to send; said after a complaint about its type.
    """

    def __init__(self, type_: type[Body], forms: Mapping[str, str] | None = None) -> None:
        self._decoder = msgspec.json.Decoder(type_)
        self._msgpack = msgspec.msgpack.Decoder(type_)
        self._forms = {**_FORMS, **(forms or {})}

    def decode(self, body: bytes) -> Body:
        """Parse a body.

        Raises:
            UnreadableBody: it is not JSON in UTF-8, holds half a surrogate pair or is nested too deeply.
            MalformedRequest: it is not an object, or a field has a wrong type; `param` names the field.
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise self._wrong_type(str(error), orjson.loads, body) from None
        except UnicodeDecodeError as error:
            raise UnreadableBody(f"The body is not valid UTF-8: {error.reason}.") from None
        except RecursionError:
            raise UnreadableBody("The body's JSON is nested too deeply.") from None
        except ValueError as error:
            lone = next((escape[1] for escape in _ESCAPE.finditer(body) if escape[1]), None)
            if lone is not None:
                raise UnreadableBody(
                    f"The request body holds {lone.decode()}, half of a surrogate pair, which is no "
                    "character; send both halves, or the character itself in UTF-8."
                ) from None
            what = "is empty" if not body.strip() else f"is not valid JSON: {error}"
            raise UnreadableBody(f"The request body {what}.") from None

    def decode_msgpack(self, body: bytes) -> Body:
        """Parse a body of msgpack.

        Raises:
            UnreadableBody: it is not msgpack.
            MalformedRequest: it is not a map, or a field has a wrong type.
        """
        try:
            return self._msgpack.decode(body)
        except msgspec.ValidationError as error:
            raise self._wrong_type(str(error), msgspec.msgpack.decode, body) from None
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError included
            raise UnreadableBody(f"The request body is not valid msgpack: {error}.") from None

    def _wrong_type(self, message: str, read: Callable[[bytes], Any], body: bytes) -> MalformedRequest:
        place = _PLACE.search(message)
        if place is None:
            whole = "a JSON object" if read is orjson.loads else "an object in msgpack"
            return MalformedRequest(f"The request body must be {whole}: {message.lower()}.")
        steps = [name for _, name in _STEP.findall(place[1]) if name] or [place[1]]
        param = steps[0]
        said = message[: place.start()]
        form = self._forms.get(param) or _FORMS.get(steps[-1])
        wanted = f" Send {form}." if form else ""
        value = _shown(read, body, place[1])
        return MalformedRequest(f"{place[1]}{value}: {said[:1].lower()}{said[1:]}.{wanted}", param=param)


def _shown(read: Callable[[bytes], Any], body: bytes, place: str) -> str:
    """`` is 'value'`` where that is short to say, else nothing: a number, a word, no list and no object."""
    try:
        value = read(body)
        for index, name in _STEP.findall(place):
            value = value[int(index) if index else name]
    except (
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ):  # the place is no path: `[...]`, or a key with dots
        return ""
    if not isinstance(value, str | int | float):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return f" is {text}" if len(text) <= _MAX_SHOWN else f" is {text[:_MAX_SHOWN]}…"
