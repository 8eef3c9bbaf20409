"""What the inputs of an embeddings request are: texts, token ids, images or sounds.

A request says so by `modality`, or item by item; where it does neither, a model that can see or hear takes
the URL of an image or a sound, and a data URI, for what it names. A model of texts takes any string as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from hilbert.api.body import MalformedRequest, about, check_number
from hilbert.core import Input, MediaRef, Modality
from hilbert.core.request import IntArray
from hilbert.errors import UnsupportedTask
from hilbert.processors import token_array

INPUT_FORMS = (
    "a string, a list of strings, a list of token ids, a list of lists of token ids, or a list of objects "
    "with `text` or `image_url`"
)

_DATA = re.compile(r"data:(image|audio)/[^\s,]*,", re.IGNORECASE)
_FILES = {
    Modality.IMAGE: "jpe?g|png|gif|webp|bmp|tiff?|avif",
    Modality.AUDIO: "wav|flac|mp3|ogg|oga|opus|m4a|aac",
}
_URLS = {
    modality: re.compile(rf"https?://[^\s?#]+\.(?:{endings})(?:[?#]\S*)?", re.IGNORECASE)
    for modality, endings in _FILES.items()
}


class Source(msgspec.Struct):
    """Where an image or a sound is."""

    url: Annotated[str, about("An http(s) URL or a data URI.")]


class Sound(msgspec.Struct):
    """A sound as OpenAI's chat takes it."""

    data: Annotated[str, about("The file in base64.")]
    format: Annotated[str | None, about("Ignored: files say themselves what they are.")] = None


class Part(msgspec.Struct, kw_only=True):
    """One input as an object: a text, an image or a sound."""

    type: Annotated[str | None, about("`text`, `image_url`, `audio_url` or `input_audio`; not needed.")] = (
        None
    )
    text: str | None = None
    image_url: str | Source | None = None
    audio_url: str | Source | None = None
    input_audio: Sound | None = None
    image: Annotated[str | None, about("As `image_url`; base64, too.")] = None
    image_base64: Annotated[str | None, about("A data URI, or base64 alone.")] = None
    audio: Annotated[str | None, about("As `audio_url`; base64, too.")] = None


class Contents(msgspec.Struct):
    """One input as a list of pieces, of which a model that makes one vector of one thing takes one."""

    content: str | list[Part]


Item = str | int | list[int] | Part
Given = str | list[Item] | Part | None


def to_modality(name: str | None) -> Modality | None:
    """What the request says its inputs are; None where it does not.

    Raises:
        MalformedRequest: it is unknown.
    """
    if name is None or name in tuple(Modality):
        return None if name is None else Modality(name)
    raise MalformedRequest(f"modality {name!r} is unknown; use {', '.join(Modality)}.", param="modality")


def to_inputs(value: Given, max_inputs: int, modality: Modality | None = None) -> tuple[Input, ...]:
    """The inputs of a request: one text or id list alone counts as one.

    Raises:
        MalformedRequest: none, too many, a mixture of texts and token ids, or an object that says nothing.
    """
    if isinstance(value, str | Part):
        value = [value]
    if not value:
        check_number(value, "input", INPUT_FORMS, max_inputs)
    assert value is not None
    kinds = set(map(type, value))
    if len(kinds) > 1:
        _check_kinds(value)
    if int in kinds:
        value = [value]  # type: ignore[list-item]  # all ints, checked above
    check_number(value, "input", INPUT_FORMS, max_inputs)
    if kinds == {str} and modality in (None, Modality.TEXT):  # by far the most requests
        return tuple(value)  # type: ignore[arg-type]  # all strings
    return tuple([_input(item, index, modality) for index, item in enumerate(value)])


def _check_kinds(items: list[Item]) -> None:
    """Texts and objects go together; token ids and lists of them do not."""
    first, *others = (str if isinstance(item, Part) else type(item) for item in items)
    for index, kind in enumerate(others, 1):
        if kind is not first:
            raise MalformedRequest(
                f"`input` mixes kinds: input[0] is {_called(items[0])} and input[{index}] is "
                f"{_called(items[index])}. Send {INPUT_FORMS}.",
                param="input",
                index=index,
            )


def to_content_inputs(items: Sequence[Contents], field: str, max_inputs: int) -> tuple[Input, ...]:
    """Inputs that are lists of pieces, each of one piece.

    Raises:
        MalformedRequest: there is none, there are too many, or one has no piece, or several.
    """
    check_number(items, field, "at least one", max_inputs)
    found: list[Input] = []
    for index, item in enumerate(items):
        if isinstance(item.content, str):
            found.append(item.content)
            continue
        if len(item.content) != 1:
            raise MalformedRequest(
                f"{field}[{index}] has {len(item.content)} pieces; the models served here make one vector of "
                "one text, one image or one sound. Send each piece as an input of its own.",
                param=field,
                index=index,
            )
        found.append(_part(item.content[0], index))
    return tuple(found)


def named_places(value: Given) -> frozenset[int]:
    """The places of the inputs that say themselves what they are."""
    if isinstance(value, Part):
        return frozenset((0,))
    if not isinstance(value, list):
        return frozenset()
    return frozenset(index for index, item in enumerate(value) if isinstance(item, Part))


def for_model(
    inputs: Sequence[Input],
    named: frozenset[int],
    modality: Modality | None,
    model: str,
    modalities: Sequence[Modality],
) -> tuple[Input, ...]:
    """The inputs as a model takes them: what nobody has called a text may be more.

    Args:
        inputs: of one request.
        named: the places of those that say what they are.
        modality: what the request says that they are.
        model: the model's name.
        modalities: what it can read.
    Raises:
        UnsupportedTask: the request says what the model cannot read.
    """
    if modality is not None and modality not in modalities:
        raise UnsupportedTask(
            f"The model {model} does not support modality {modality.value!r}. It takes "
            f"{' and '.join(modalities)}.",
            param="modality",
        )
    if modality is not None or len(modalities) == 1:
        return tuple(inputs)
    return tuple(
        [
            _seen(given, modalities) if isinstance(given, str) and index not in named else given
            for index, given in enumerate(inputs)
        ]
    )


def _seen(text: str, modalities: Sequence[Modality]) -> Input:
    data = _DATA.match(text)
    if data is not None:
        return MediaRef(Modality(data[1].lower()), text)
    if text[:4].lower() == "http":
        for modality, url in _URLS.items():
            if modality in modalities and url.fullmatch(text):
                return MediaRef(modality, text)
    return text


def _input(item: Item, index: int, modality: Modality | None) -> Input:
    is_media = modality is not None and modality is not Modality.TEXT
    if isinstance(item, str):
        return MediaRef(modality, item) if modality is not None and is_media else item
    if isinstance(item, Part):
        return _part(item, index)
    if is_media:
        raise MalformedRequest(
            f"input[{index}] is a list of token ids, and modality is {modality}; send URLs, data URIs or "
            "base64.",
            param="input",
            index=index,
        )
    assert isinstance(item, list)
    return _tokens(item, index)


def _part(part: Part, index: int) -> Input:
    if part.text is not None and part.type in (None, "text"):
        return part.text
    for modality, given in (
        (Modality.IMAGE, part.image_url),
        (Modality.AUDIO, part.audio_url),
        (Modality.AUDIO, part.input_audio),
        (Modality.IMAGE, part.image),
        (Modality.IMAGE, part.image_base64),
        (Modality.AUDIO, part.audio),
    ):
        if given is not None:
            return MediaRef(modality, _source(given))
    raise MalformedRequest(
        f"input[{index}] is an object without `text`, `image_url` or `audio_url`.", param="input", index=index
    )


def _source(given: str | Source | Sound) -> str:
    if isinstance(given, str):
        return given
    return given.url if isinstance(given, Source) else given.data


def _tokens(ids: list[int], index: int) -> IntArray:
    if not ids:
        raise MalformedRequest(f"input[{index}] is an empty list of token ids.", param="input", index=index)
    return token_array(ids, index)


def _called(item: Item) -> str:
    if isinstance(item, Part):
        return "an object"
    return "a string" if isinstance(item, str) else "a token id" if isinstance(item, int) else "a list"
