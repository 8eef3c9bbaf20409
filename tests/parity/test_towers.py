"""Images, sounds and texts of dual models against transformers and sentence-transformers, in one space."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from remote_house import remote_dual

from hilbert.core import Media, Modality, Task
from hilbert.errors import ModelUnavailable, UnsupportedArchitecture
from hilbert.hub import resolve
from hilbert.models.local import Model
from hilbert.testing.towers import tiny_dual, tiny_retriever

TEXTS = ["a", "the little river in winter", "hotel guest, sentence. Query!", " ".join(["music"] * 40)]
RATE = 8000
TOLERANCE = 1e-4


def image_file(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    random = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(random.integers(0, 256, (6, 5, 4), dtype=np.uint8), "RGBA").convert(
        "RGB" if mode == "P" else mode
    )
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    return image_file(64, 40, kind="JPEG", exif=exif, quality=90)


def images() -> list[bytes]:
    return [
        image_file(50, 37),
        image_file(20, 61, "L"),
        image_file(32, 32, "RGBA"),
        image_file(7, 5, "P"),
        turned(),
        image_file(41, 90, kind="WEBP", lossless=True),
    ]


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * f * times * (1 + 0.3 * times)) for f in random.uniform(100, 2500, 4))
    return (0.15 * tones + 0.02 * random.standard_normal(len(times))).astype(np.float32)


def sound_file(samples: np.ndarray, kind: str = "WAV", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    subtype = {"subtype": "FLOAT"} if kind == "WAV" else {}
    soundfile.write(file, samples, rate, format=kind, **subtype)
    return file.getvalue()


def close(mine: np.ndarray, theirs: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(theirs).max()))
    assert mine.shape == theirs.shape
    assert float(np.abs(mine - theirs).max()) <= TOLERANCE * scale


def reference_images(folder: Path, files: list[bytes]) -> np.ndarray:
    import torch
    from transformers import AutoImageProcessor, AutoModel
    from transformers.image_utils import load_image

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = []
    for number, data in enumerate(files):
        path = folder / f"picture-{number}"
        path.write_bytes(data)
        with torch.inference_mode():
            pixels = processor(images=[load_image(str(path))], return_tensors="pt")
            rows.append(model.get_image_features(**pixels).pooler_output[0].numpy())
    return np.stack(rows)


def reference_texts(folder: Path, padding: bool | str) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        tokens = tokenizer([text], padding=padding, truncation=True, return_tensors="pt")
        arguments = {"input_ids": tokens["input_ids"]}  # the padding is seen: SigLIP's has no mask
        with torch.inference_mode():
            rows.append(model.get_text_features(**arguments).pooler_output[0].numpy())
    return np.stack(rows)


def serve(folder: Path, engine: str, cache: Path) -> Model:
    return Model(str(folder), engine=engine, dtype="float32", device="cpu", cache_dir=str(cache))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_both_sides_equal_transformers_and_a_mixed_batch_equals_its_parts(
    family: str, engine: str, tmp_path: Path
) -> None:
    folder = tiny_dual(family, tmp_path / "model")
    files = images()
    with serve(folder, engine, tmp_path / "cache") as model:
        assert model.info.program == "packed"
        texts, pictures = model.embed(TEXTS), model.embed_image(files)
        close(pictures, reference_images(folder, files))
        close(texts, reference_texts(folder, "max_length" if family == "siglip" else False))
        media = [Media(Modality.IMAGE, data) for data in files]
        mixed = model.embed([media[0], TEXTS[0], *media[1:4], TEXTS[3], TEXTS[1], *media[4:], TEXTS[2]])
        together = np.concatenate([mixed[[0, 2, 3, 4, 7, 8]], mixed[[1, 6, 9, 5]]])
        np.testing.assert_allclose(together, np.concatenate([pictures, texts]), atol=2e-5)
        alone = np.concatenate([model.embed_image(data) for data in files])
        np.testing.assert_allclose(alone, pictures, atol=2e-5)


def test_more_images_than_run_together_and_a_picture_that_was_opened(tmp_path: Path) -> None:
    folder = tiny_dual("clip", tmp_path / "model")
    files = [image_file(30 + n, 40) for n in range(40)]
    with serve(folder, "openvino", tmp_path / "cache") as model:
        rows = model.embed_image(files)
        close(rows, reference_images(folder, files))
        opened = [Image.open(io.BytesIO(data)) for data in files[:2]]
        np.testing.assert_allclose(model.embed_image(opened), rows[:2], atol=2e-5)
        (tmp_path / "one.png").write_bytes(files[3])
        np.testing.assert_allclose(model.embed_image(tmp_path / "one.png")[0], rows[3], atol=2e-5)
        ranked = model.rerank(TEXTS[0], TEXTS)
        assert ranked[0].document == TEXTS[0]


def test_clip_with_the_old_end_id_pools_at_the_highest_token(tmp_path: Path) -> None:
    folder = tiny_dual("clip", tmp_path / "model", text={"eos_token_id": 2})
    with serve(folder, "torch", tmp_path / "cache") as model:
        close(model.embed(TEXTS), reference_texts(folder, False))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 40}, "resample": 2},
        {"do_center_crop": False, "size": {"height": 32, "width": 32}},
        {"do_resize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.1, 0.9], "image_std": [1.0, 0.5, 2.0]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_preprocessor_config_is_followed(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_dual("clip", tmp_path / "model", preprocessor=settings)
    files = images()
    with serve(folder, "torch", tmp_path / "cache") as model:
        close(model.embed_image(files), reference_images(folder, files))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("layout", ["clip-module", "transformer"])
def test_sentence_transformers_layouts(layout: str, engine: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_dual("clip", tmp_path / "model", layout=layout)
    files = images()[:4]
    theirs = SentenceTransformer(str(folder), device="cpu")
    with serve(folder, engine, tmp_path / "cache") as model:
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        close(model.embed_image(files), theirs.encode(opened, batch_size=1))
        close(model.embed(TEXTS), theirs.encode(TEXTS, batch_size=1))
        assert model.dimensions == (24 if layout == "transformer" else 48)


@pytest.fixture
def same_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feature extractor takes its parts where ours does, not at random."""
    monkeypatch.setattr(np.random, "randint", lambda low, high=None: 0)
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("is_fused", [False, True], ids=["cut", "fused"])
def test_clap_equals_transformers(is_fused: bool, engine: str, tmp_path: Path, same_parts: None) -> None:
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    folder = tiny_dual("clap", tmp_path / "model", is_fused=is_fused)
    sounds = [sound(seconds, seed) for seed, seconds in enumerate([0.3, 1.0, 0.05, 1.005, 2.7, 0.61])]
    sounds.append(sound(0.3)[:3])
    theirs, extract = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    rows = []
    for samples in sounds:
        features = extract(samples, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            rows.append(theirs.get_audio_features(**features).pooler_output[0].numpy())
    with serve(folder, engine, tmp_path / "cache") as model:
        mine = model.embed_audio([sound_file(samples) for samples in sounds])
        close(mine, np.stack(rows))
        close(model.embed(TEXTS), reference_texts(folder, False))
        mixed = model.embed([Media(Modality.AUDIO, sound_file(sounds[4])), TEXTS[1]])
        np.testing.assert_allclose(mixed[0], mine[4], atol=2e-5)


def test_sounds_are_mixed_down_resampled_and_read_from_four_formats(tmp_path: Path) -> None:
    import soxr

    folder = tiny_dual("clap", tmp_path / "model", layout="transformer")
    samples = sound(0.8)
    both = np.stack([samples, sound(0.8, 5)], axis=1)
    with serve(folder, "torch", tmp_path / "cache") as model:
        plain = model.embed_audio(sound_file(both.mean(axis=1)))
        np.testing.assert_allclose(model.embed_audio(sound_file(both)), plain, atol=1e-4)
        high = soxr.resample(samples, RATE, 44_100)
        again = soxr.resample(high, 44_100, RATE)
        close(model.embed_audio(sound_file(high, rate=44_100)), model.embed_audio(sound_file(again)))
        for kind in ("FLAC", "OGG", "MP3"):
            row = model.embed_audio(sound_file(samples, kind))[0]
            assert float(row @ model.embed_audio(sound_file(samples))[0]) > 0.9, kind


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_other_dual_models_run_through_sentence_transformers(engine: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_dual("chinese_clip", tmp_path / "model")
    files = images()[:4]
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    theirs = SentenceTransformer(str(folder), device="cpu")
    with serve(folder, engine, tmp_path / "cache") as model:
        assert model.info.program == "sentence-transformers"
        mixed = model.embed([TEXTS[0], *(Media(Modality.IMAGE, data) for data in files), TEXTS[1]])
        close(mixed[1:5], theirs.encode(opened, batch_size=1))
        close(mixed[[0, 5]], theirs.encode(TEXTS[:2], batch_size=1))
        media = Media(Modality.IMAGE, image_file(56, 28))
        assert model.encode([media]).num_tokens == 2  # one for each 28 by 28 pixels
        large = image_file(1500, 1200)  # scaled down on its way, so near and not equal
        row = model.embed_image(large)[0]
        own = theirs.encode([Image.open(io.BytesIO(large))])[0]
        assert float(row @ own) / float(np.linalg.norm(row) * np.linalg.norm(own)) > 0.999


def test_siglip_2_lower_cases_and_pads_as_its_tokenizer(tmp_path: Path) -> None:
    folder = tiny_dual("siglip", tmp_path / "model")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "Siglip2Tokenizer"}
    del config["padding_side"]
    file.write_text(json.dumps(config))
    with serve(folder, "torch", tmp_path / "cache") as model:
        close(model.embed(TEXTS), reference_texts(folder, "max_length"))
        upper = model.embed([text.upper() for text in TEXTS])
        np.testing.assert_allclose(upper, model.embed(TEXTS), atol=1e-6)


@pytest.mark.parametrize("family", ["colpali", "colqwen2"])
def test_visual_late_interaction_runs_through_sentence_transformers(family: str, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    folder = tiny_retriever(family, tmp_path / "model")
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    queries = [*TEXTS[:3], " two  spaces\n", "one more guest moves on, " * 40]
    files = [image_file(84, 56), image_file(40, 90)]
    pages = [Image.open(io.BytesIO(data)) for data in files]
    with serve(folder, "openvino", tmp_path / "cache") as model:
        assert model.info.program == "sentence-transformers" and model.spec.task is Task.MULTI_EMBED
        assert model.spec.modalities == (Modality.TEXT, Modality.IMAGE)
        media = [Media(Modality.IMAGE, data) for data in files]
        ours = model.embed_multivector([media[0], *queries, media[1]])
        own = theirs.encode_document(pages, batch_size=1)
        expected = [own[0], *theirs.encode_query(queries, batch_size=1), own[1]]
        for mine, reference in zip(ours, expected, strict=True):
            close(mine, reference.numpy())
    change = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change | {"model_type": "colsomething"}))
    known = "colpali, colqwen2, colmodernvbert"
    with pytest.raises(ModelUnavailable, match=f"'colsomething' are not served; {known} are"):
        resolve(str(folder))


def test_colmodernvbert_through_its_own_processor(tmp_path: Path) -> None:
    """sentence-transformers gives its processor no prompt beside an image, and queries nothing behind it."""
    import torch
    from transformers import AutoProcessor, ColModernVBertForRetrieval

    folder = tiny_retriever("colmodernvbert", tmp_path / "model")
    theirs = ColModernVBertForRetrieval.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    files = [image_file(84, 56), image_file(40, 90), image_file(20, 20)]
    inputs = [processor.process_queries([text]) for text in TEXTS[:3]]
    inputs += [processor.process_images([Image.open(io.BytesIO(data))]) for data in files]
    with torch.inference_mode():
        expected = [theirs(**one).embeddings[0].numpy() for one in inputs]
    with serve(folder, "openvino", tmp_path / "cache") as model:
        assert model.info.program == "sentence-transformers" and model.spec.task is Task.MULTI_EMBED
        media = [Media(Modality.IMAGE, data) for data in files]
        for mine, reference in zip(model.embed_multivector([*TEXTS[:3], *media]), expected, strict=True):
            close(mine, reference)


def test_a_dual_model_of_the_repositorys_own_code(tmp_path: Path) -> None:
    """As jina-clip: its first module tells texts from images itself, and says nothing of sizes."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder = remote_dual(tmp_path / "model")
    files = [image_file(84, 56), image_file(40, 90)]
    inputs = [TEXTS[0], *(Image.open(io.BytesIO(data)) for data in files), TEXTS[3]]
    theirs = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    with torch.inference_mode():
        features = [dict(theirs[0].tokenize([given])) for given in inputs]
        expected = [theirs[1](theirs[0](one))["sentence_embedding"][0].numpy() for one in features]
    with pytest.raises(UnsupportedArchitecture, match="allow it with --trust-remote-code"):
        serve(folder, "openvino", tmp_path / "cache")
    with Model(
        str(folder), trust_remote_code=True, dtype="float32", device="cpu", cache_dir=tmp_path / "cache"
    ) as model:
        assert model.dimensions == 48 and model.spec.modalities == (Modality.TEXT, Modality.IMAGE)
        media = [Media(Modality.IMAGE, data) for data in files]
        close(model.embed([TEXTS[0], *media, TEXTS[3]]), np.stack(expected))
