"""What an input is besides text: an image or a sound, as encoded bytes or as a reference to them.

A dialect makes `MediaRef`, a loader turns it into `Media`, a processor turns that into features. Nothing
here fetches or decodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Modality(StrEnum):
    """What kind of thing an input is."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a sound as a file's bytes (PNG, JPEG, WAV, …), not yet decoded."""

    modality: Modality
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Where an image or a sound is to be had.

    Attributes:
        modality: what it is meant to be.
        source: an http(s) URL, a data URI or base64.
    """

    modality: Modality
    source: str = field(repr=False)
