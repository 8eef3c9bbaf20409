"""Images that Pillow opened, known without importing Pillow."""

from __future__ import annotations

import io
from typing import Any, Protocol, runtime_checkable

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@runtime_checkable
class Picture(Protocol):
    """What Pillow's images can do, as far as it matters here."""

    mode: Any
    size: Any

    def save(self, fp: Any, format: Any = None) -> Any:
        """Write a file."""
        ...

    def convert(self, mode: Any = None) -> Any:
        """The same in another mode."""
        ...


def as_png(picture: Picture) -> bytes:
    """A file that loses nothing, but for modes that PNG lacks, which become RGB."""
    file = io.BytesIO()
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(file, "PNG")
    return file.getvalue()
