"""Images in `hilbert.Model`: what is taken, what is refused, and where the work is done."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from hilbert.core import Media, Modality
from hilbert.errors import InvalidInput, MediaError, UnsupportedTask
from hilbert.models import local
from hilbert.models.local import Model
from hilbert.processors import media
from hilbert.processors.images import count_pixels
from hilbert.processors.media import MediaProcessor
from hilbert.testing.models import tiny_model
from hilbert.testing.towers import tiny_dual


def picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    return file.getvalue()


def test_a_text_model_refuses_by_index(tmp_path: Path) -> None:
    with Model(str(tiny_model("static", tmp_path / "text"))) as model:
        with pytest.raises(UnsupportedTask, match=r"input\[1\] is image; .* takes text only") as caught:
            model.embed(["a", Media(Modality.IMAGE, picture())])
        assert caught.value.index == 1
        with pytest.raises(UnsupportedTask, match=r"input\[0\] is audio"):
            model.embed_audio(b"")


def test_a_dual_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    encode = MediaProcessor.encode

    def recorded(*args: object) -> object:
        threads.append(threading.current_thread().name)
        return encode(*args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(MediaProcessor, "encode", recorded)
    folder = tiny_dual("clip", tmp_path / "clip")
    with Model(str(folder), engine="torch", dtype="float32", device="cpu") as model:
        assert model.embed_image(picture(), dimensions=7, normalize=True).shape == (1, 7)
        assert all(name.startswith("hilbert-front-media") for name in threads) and threads
        with pytest.raises(MediaError, match=r"input\[1\].*no image") as caught:
            model.embed_image([picture(), b"nothing"])
        assert caught.value.index == 1
        with pytest.raises(MediaError, match=r"input\[0\]: .*missing.png cannot be read"):
            model.embed_image(tmp_path / "missing.png")
        with pytest.raises(InvalidInput, match=r"input\[0\] is a float"):
            model.embed_image([1.5])
        with pytest.raises(UnsupportedTask, match="takes text and image only"):
            model.embed_audio(picture())
        with pytest.raises(UnsupportedTask, match="multi_embed"):
            model.embed_multivector(["a"])
        result = model.encode([picture_media := Media(Modality.IMAGE, picture()), "a text", picture_media])
        assert result.num_tokens > 2 * 17  # each image is its 16 patches and a class token
        # More than one piece; the index is that of the whole list.
        many = [picture_media] * 130 + [Media(Modality.IMAGE, b"broken")]
        with pytest.raises(MediaError, match=r"input\[130\]") as caught:
            model.embed(many)
        assert caught.value.index == 130
        # Photographs that are too many pixels for one request.
        for module in (media, local):
            monkeypatch.setattr(module, "MAX_REQUEST_PIXELS", 3 * count_pixels(picture()))
        with pytest.raises(MediaError, match=r"input\[6\].*no image"):
            model.embed_image([picture()] * 6 + [b"broken"])
        assert model.embed_image([picture()] * 7).shape == (7, model.dimensions)


def test_sounds_that_are_too_many_samples_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((800, 2), np.float32), 8000, format="WAV")
    sound = Media(Modality.AUDIO, file.getvalue())
    monkeypatch.setattr(local, "MAX_REQUEST_SAMPLES", 3200)
    assert local._runs((sound,) * 5, 128, has_media=True) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert local._runs((sound,) * 5, 128) == [slice(0, 5)]
