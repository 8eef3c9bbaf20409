"""Images and sounds that are broken, too large or not there: each refused by index and reason."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from hilbert.core import (
    AudioProcessing,
    EmbedRequest,
    ImageProcessing,
    Media,
    Modality,
    Sequence,
    TextTower,
    Tower,
)
from hilbert.errors import InvalidInput, MediaError, MissingDependency
from hilbert.processors import audio, images, media
from hilbert.processors.audio import audio_features, decode_audio
from hilbert.processors.images import decode_image, image_features
from hilbert.processors.sides import shaped


def png(width: int, height: int) -> bytes:
    """A PNG that says it has this size and holds no pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", len(data) - 4)
        + data
        + struct.pack(">I", zlib.crc32(data))
    )


def jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def wav(seconds: float, rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((int(seconds * rate), channels), np.float32), rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (jpeg()[:900], "cannot be decoded"),
        (png(20, 20), "cannot be decoded"),
        (png(60_000, 60_000), "more than 178,956,970 pixels"),
        (png(12_000, 12_000), "at most 89,478,485 pixels"),
        (png(30_000, 2), "200 times"),
    ],
    ids=["empty", "svg", "eps", "torn", "hollow", "bomb", "large", "stripe"],
)
def test_bad_images(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason) as caught:
        decode_image(data, 3)
    assert caught.value.index == 3
    assert caught.value.param == "input"
    assert "input[3]" in caught.value.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read as a sound"),
        (b"RIFF....WAVEfmt ", "cannot be read as a sound"),
        (jpeg(), "cannot be read as a sound"),
        (wav(0), "without a sample"),
        (wav(3, 8000), "at most 2 s"),
        (wav(0.1, 8000, 20), "20 channels"),
    ],
    ids=["empty", "torn", "image", "silent", "long", "wide"],
)
def test_bad_sounds(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason) as caught:
        decode_audio(data, 8000, 2, max_seconds=2)
    assert caught.value.index == 2
    assert "input[2]" in caught.value.message


def test_a_short_sound_of_too_many_samples() -> None:
    """A rate that nobody hears makes gigabytes of a file that is nearly empty."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", samplerate=655_350, channels=8, format="FLAC") as sound:
        for _ in range(12):
            sound.write(np.zeros((655_350, 8), np.int16))
    assert len(file.getvalue()) < 1 << 20
    with pytest.raises(MediaError, match=r"62,913,600 samples in all its channels at 655,350 Hz.*57,600,000"):
        decode_audio(file.getvalue(), 8000, 2)


def test_not_a_number_is_no_sound() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.array([0, np.nan], np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(MediaError, match="finite"):
        decode_audio(file.getvalue(), 8000, 0)


@pytest.mark.parametrize("size", [(5, 9), (64, 33), (33, 64), (32, 32), (7, 200)])
def test_a_crop_is_the_middle_whatever_the_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 51))
    pixels = image_features(image, ImageProcessing(crop_height=32, crop_width=32))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32 and pixels.flags.c_contiguous
    kept = min(size[0], 32) * min(size[1], 32)
    assert pixels[0].sum() == kept
    assert pixels[2].sum() == pytest.approx(0.2 * kept)


def test_a_long_sound_has_one_vector() -> None:
    processing = AudioProcessing(sampling_rate=8000, hop=128, max_seconds=1, max_hertz=4000)
    samples = np.random.default_rng(2).standard_normal(30_000).astype(np.float32)
    first, second = (audio_features(samples, processing) for _ in range(2))
    assert first.shape == (4, 63, 64)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("hide", "module", "extra"), [("PIL", images, "image"), ("soundfile", audio, "audio")]
)
def test_a_missing_library_is_named(hide, module, extra, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module._pillow if extra == "image" else module._libraries
    load.cache_clear()
    data = jpeg() if extra == "image" else wav(1)
    monkeypatch.setitem(sys.modules, hide, None)
    try:
        with pytest.raises(MissingDependency, match=rf"hilbert\[{extra}\]"):
            decode_image(data, 0) if extra == "image" else decode_audio(data, 8000, 0)
    finally:
        load.cache_clear()


def test_a_request_may_have_so_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_REQUEST_BYTES", 40_000)

    class Spec:
        model_id = "m"
        towers = (Tower(Modality.IMAGE, (3, 32, 32), 5, ImageProcessing(height=32, width=32)),)

    processor = media.MediaProcessor(Spec())  # type: ignore[arg-type]  # all that is read of it
    given = Media(Modality.IMAGE, jpeg())
    processor.check_together([given] * 3)
    with pytest.raises(InvalidInput, match=r"4 images or sounds.*about 3"):
        processor.check_together(["text", *[given] * 4])
    monkeypatch.setattr(media, "MAX_REQUEST_PIXELS", 2 * images.count_pixels(given.data))
    processor.check_together([given, "text", Media(Modality.IMAGE, b"broken"), given])
    with pytest.raises(MediaError, match=r"input\[3\]: .* at most") as caught:
        processor.check_together([given, "text", given, given])
    assert caught.value.index == 3
    sequence = processor.encode(given, 7, 2)
    assert (sequence.request_id, sequence.index, sequence.num_tokens) == (7, 2, 5)


def test_a_request_may_have_so_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_REQUEST_SAMPLES", 2 * 1600)

    class Spec:
        model_id = "m"
        towers = (Tower(Modality.AUDIO, (1, 63, 64), 5, AudioProcessing(max_seconds=1)),)

    processor = media.MediaProcessor(Spec())  # type: ignore[arg-type]  # all that is read of it
    given = Media(Modality.AUDIO, wav(0.1, 8000, 2))
    processor.check_together([given, "text", Media(Modality.AUDIO, b"broken"), given])
    with pytest.raises(
        MediaError, match=r"input\[3\]: .* sounds of the request have 4,800 samples"
    ) as caught:
        processor.check_together([given, "text", given, given])
    assert caught.value.index == 3


@pytest.mark.parametrize(
    ("tower", "ids"),
    [
        (TextTower(), [5, 9, 2, 9, 1]),
        (TextTower(end_id=9), [5, 9]),
        (TextTower(end_id=-1), [5, 9]),
        (TextTower(end_id=8), [5]),
        (TextTower(length=7, padding_id=3), [5, 9, 2, 9, 1, 3, 3]),
        (TextTower(length=7, padding_id=3, pads_left=True), [3, 3, 5, 9, 2, 9, 1]),
    ],
)
def test_tokens_in_the_shape_of_a_text_tower(tower: TextTower, ids: list[int]) -> None:
    given = Sequence(0, 0, np.array([5, 9, 2, 9, 1], np.int32))
    assert shaped(given, tower).input_ids.tolist() == ids


def test_media_are_not_shown_in_messages() -> None:
    assert len(repr(EmbedRequest((Media(Modality.IMAGE, jpeg()),)))) < 500
