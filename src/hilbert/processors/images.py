"""An image file to what an image tower reads: decode, turn upright, resize, crop, scale, normalise.

Pillow and numpy alone; the numbers equal those of transformers' Pillow image processors. What is too large
is refused by its header, before a pixel is decoded. Pillow is imported when the first image comes.
"""

from __future__ import annotations

import io
import math
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hilbert.core import ImageProcessing
from hilbert.core.request import FloatArray
from hilbert.errors import MediaError, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's own limit before it warns: 89 million pixels, 270 MB decoded. No tower sees a millionth of it.
MAX_PIXELS = 89_478_485
# Of all images of a request together: they are decoded in seconds.
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS
# A stripe 1 pixel wide, resized to a shorter edge of 224, would be 224 times as long as it is.
MAX_ASPECT = 200
# Formats whose decoders are plain and well tried; Pillow knows fifty more.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def count_pixels(data: bytes) -> int:
    """Width times height as the file's header says; 0 for what `decode_image` refuses anyway."""
    pillow, _ = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = pillow.open(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # Pillow raises whatever it meets in a broken file
        return 0
    return int(size[0] * size[1])


def decode_image(data: bytes, index: int, max_pixels: int = MAX_PIXELS) -> Image:
    """An upright RGB image.

    Args:
        data: the file.
        index: of the input, for messages.
        max_pixels: width times height of the largest image that is decoded.

    Raises:
        MediaError: it is no image, a broken one, or too large.
        MissingDependency: Pillow is not installed.
    """
    pillow, ops = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is checked here, or changes no pixel
            image = pillow.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.size, index, max_pixels)
            upright: Image = ops.exif_transpose(image)
            return upright.convert("RGB")
    except MediaError:
        raise
    except pillow.DecompressionBombError:  # Pillow's own check of the header, at twice its limit
        what = f"an image of more than {2 * MAX_PIXELS:,} pixels; at most {max_pixels:,} are decoded"
        raise _refused(index, what, "Send a smaller one.") from None
    except pillow.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        what = f"{len(data):,} bytes that are no image of a known format"
        raise _refused(index, what, f"Send one of {known}.") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet in a broken file
        what = f"an image that cannot be decoded ({type(error).__name__}: {error})"
        raise _refused(index, what, "Send the whole file.") from None


def image_features(image: Image, processing: ImageProcessing) -> FloatArray:
    """``[3, H, W]`` float32, C-contiguous.

    Source: transformers' `PilBackend`, tests/parity/test_towers.py.
    """
    if processing.max_pixels and image.width * image.height > processing.max_pixels:
        share = math.sqrt(processing.max_pixels / (image.width * image.height))
        smaller = (max(1, int(image.width * share)), max(1, int(image.height * share)))
        image = image.resize(smaller, resample=processing.resample)
    size = _resized(image.size, processing)
    if size is not None:
        image = image.resize(size, resample=processing.resample)
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    if processing.crop_height:
        pixels = _middle(pixels, processing.crop_height, processing.crop_width)
    pixels = pixels * np.float32(processing.scale)
    if processing.mean:
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (processing.mean, processing.std))
        pixels = (pixels - mean) / std
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _check_size(size: tuple[int, int], index: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        what = f"an image of {width:,} x {height:,} pixels; at most {max_pixels:,} pixels are decoded"
        raise _refused(index, what, "Send a smaller one.")
    if max(size) > MAX_ASPECT * max(1, min(size)):
        what = f"an image of {width:,} x {height:,} pixels; one side may be {MAX_ASPECT} times the other"
        raise _refused(index, what, "Crop it.")


def _resized(size: tuple[int, int], processing: ImageProcessing) -> tuple[int, int] | None:
    """Width and height to resize to; None for not at all."""
    if processing.height:
        return processing.width, processing.height
    if not processing.shortest_edge:
        return None
    width, height = size
    edge = processing.shortest_edge
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _middle(pixels: FloatArray, height: int, width: int) -> FloatArray:
    """The middle of an image, with black around it where it is smaller."""
    _, rows, columns = pixels.shape
    if rows < height or columns < width:
        canvas = np.zeros((3, max(rows, height), max(columns, width)), np.float32)
        above, left = math.ceil((canvas.shape[1] - rows) / 2), math.ceil((canvas.shape[2] - columns) / 2)
        canvas[:, above : above + rows, left : left + columns] = pixels
        pixels, rows, columns = canvas, canvas.shape[1], canvas.shape[2]
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, top : top + height, left : left + width]


@cache
def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingDependency(f"images need Pillow ({error}): pip install 'hilbert[image]'") from error
    return Image, ImageOps


def _refused(index: int, what: str, remedy: str) -> MediaError:
    return MediaError(f"input[{index}] is {what}. {remedy}", param="input", index=index)
