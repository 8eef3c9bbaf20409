"""What a caller may hand over, and how it goes over the wire."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hilbert.core import Picture, as_png
from hilbert.errors import InvalidInput, MediaError

Input = str | bytes | Path | Picture
"""A text; or an image, as the bytes of its file, a path, or what Pillow opened."""

_SOUNDS = {".wav": "wav", ".flac": "flac", ".ogg": "ogg", ".mp3": "mpeg"}


def listed(given: Input | Iterable[Input]) -> list[Input]:
    """Several as they are, a lone one as one.

    Raises:
        InvalidInput: one is of a type that no server reads.
    """
    items = [given] if isinstance(given, str | bytes | Path | Picture) else list(given)
    for index, item in enumerate(items):
        if not isinstance(item, str | bytes | Path | Picture):
            raise InvalidInput(
                f"input[{index}] is a {type(item).__name__}; give a text, or an image as bytes, a Path "
                "or a Pillow image.",
                param="input",
                index=index,
            )
    return items


def listed_texts(given: str | Iterable[str], field: str) -> list[str]:
    """As `listed`, for texts alone.

    Raises:
        InvalidInput: one is no text.
    """
    items = [given] if isinstance(given, str) else list(given)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInput(
                f"{field}[{index}] is a {type(item).__name__}; give texts.", param=field, index=index
            )
    return items


def weight(item: Input) -> int:
    """About how many bytes an input is, without reading it."""
    if isinstance(item, str | bytes):
        return len(item)
    if isinstance(item, Path):
        return item.stat().st_size if item.is_file() else 0
    width, height = item.size
    return 2 * int(width) * int(height)


def as_json(item: Input, modality: str | None) -> str | dict[str, str]:
    """An input of `/v1/embeddings`. Reads the file that it names.

    Raises:
        MediaError: the file cannot be read.
    """
    if isinstance(item, str):
        return item
    text = binascii.b2a_base64(_content(item), newline=False).decode()
    if modality:
        return text
    sound = _sound(item)
    return {"audio_url": f"data:audio/{sound};base64,{text}"} if sound else {"image": text}


def as_item(item: Input) -> dict[str, Any]:
    """An item of `/v1/encode`, in msgpack. Reads the file that it names.

    Raises:
        MediaError: the file cannot be read.
    """
    if isinstance(item, str):
        return {"text": item}
    file = {"data": _content(item)}
    return {"audio": file} if _sound(item) else {"images": [file]}


def _sound(item: Input) -> str | None:
    return _SOUNDS.get(item.suffix.lower()) if isinstance(item, Path) else None


def _content(item: bytes | Path | Picture) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, Picture):
        return as_png(item)
    try:
        return item.read_bytes()
    except OSError as error:
        raise MediaError(f"{item} cannot be read: {error.strerror}.", param="input") from None
