"""A tiny CLAP behind a real server: four formats on every way in, against transformers' ClapModel."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile
import soxr
from cli_house import NO_TLS, Server, served_folder

from hilbert.client import Client
from hilbert.testing.towers import tiny_dual

RATE = 8000
# What the encoders of mp3 and ogg leave out is left out of the reference as well: it reads the same file.
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
TEXT = "music in the garden"


def sound_file(kind: str, seconds: float, rate: int, num_channels: int = 1) -> bytes:
    random = np.random.default_rng(rate + num_channels)
    times = np.arange(int(seconds * rate))[:, None] / rate
    tones = sum(np.sin(2 * np.pi * f * times) for f in random.uniform(100, 2500, (4, num_channels)))
    file = io.BytesIO()
    samples = 0.15 * tones + 0.02 * random.standard_normal(times.shape)
    soundfile.write(file, samples, rate, format=kind.upper(), subtype=FORMATS[kind])
    return file.getvalue()


SOUNDS = {kind: sound_file(kind, 0.7, RATE) for kind in FORMATS}
SOUNDS["stereo.wav"] = sound_file("wav", 0.5, 44_100, 2)
SOUNDS["short.mp3"] = sound_file("mp3", 0.3, 16_000, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dual("clap", tmp_path_factory.mktemp("models") / "tiny" / "clap")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    """Unit rows of ClapModel behind ClapProcessor, of the files as soundfile reads them."""
    import torch
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(folder).eval()
    extract = ClapFeatureExtractor.from_pretrained(folder)
    rows = {}
    with torch.inference_mode():
        for name, data in SOUNDS.items():
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
            mono = samples.mean(axis=1)
            heard = mono if rate == RATE else soxr.resample(mono, rate, RATE)
            features = extract(heard, sampling_rate=RATE, return_tensors="pt")
            rows[name] = model.get_audio_features(**features).pooler_output[0].numpy()
        tokens = AutoTokenizer.from_pretrained(folder)([TEXT], return_tensors="pt")
        rows[TEXT] = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output[0].numpy()
    return {name: row / np.linalg.norm(row) for name, row in rows.items()}


@pytest.fixture(scope="module")
def server(
    folder: Path, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str]]:
    files = tmp_path_factory.mktemp("sounds")
    for name, data in SOUNDS.items():
        (files / f"a.{name}").write_bytes(data)
    flags = ("-m", str(folder), "--dtype", "float32", "--cache-dir", cache, "--port", "0")
    with served_folder(files) as site:
        server = Server(("serve", *flags, "--fetch-private-hosts", "localhost"), {}, wait=True)
        try:
            yield server, site
        finally:
            server.stop()


def uri(name: str) -> str:
    return "data:audio/x;base64," + base64.b64encode(SOUNDS[name]).decode()


def rows(reply: httpx2.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]])


@pytest.mark.slow
def test_every_format_on_every_way_in(
    server: tuple[Server, str], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    clap, site = server
    (card,) = clap.get("/v1/models").json()["data"]
    assert card["inputs"] == ["text", "audio"]
    names = list(SOUNDS)
    wanted = np.stack([expected[name] for name in names])
    given = [uri(name) for name in names]
    for route in ("/v1/embeddings", "/embeddings"):
        mixed = clap.post([*given, TEXT], route)
        assert np.abs(rows(mixed) - np.stack([*wanted, expected[TEXT]])).max() <= 1e-4
        assert mixed.json()["usage"]["total_tokens"] > len(names)
        bare = [base64.b64encode(SOUNDS[name]).decode() for name in names]
        assert np.abs(rows(clap.post(bare, route, modality="audio")) - wanted).max() <= 1e-4
    fetched = clap.post([f"{site}/a.{name}" for name in names])
    assert np.abs(rows(fetched) - wanted).max() <= 1e-4
    assert np.abs(rows(clap.post(given, "/embeddings_audio")) - wanted).max() <= 1e-4
    items = [{"type": "input_audio", "input_audio": {"data": b, "format": n}} for b, n in zip(bare, names)]  # noqa: B905  # of one length
    assert np.abs(rows(clap.post(items)) - wanted).max() <= 1e-4  # type: ignore[arg-type]  # no texts
    body = {"items": [{"audio": {"data": data}} for data in bare]}
    reply = httpx2.post(f"{clap.url}/v1/encode/clap", json=body, timeout=60, verify=NO_TLS)
    found = [item["dense"]["values"] for item in reply.json()["items"]]
    assert np.abs(np.array(found) - wanted).max() <= 1e-4
    (tmp_path / "b.mp3").write_bytes(SOUNDS["mp3"])
    with Client(clap.url) as client:
        sent = client.embed([tmp_path / "b.mp3", TEXT])
        assert np.abs(sent - np.stack([expected["mp3"], expected[TEXT]])).max() <= 1e-4


@pytest.mark.slow
def test_bad_sounds_are_named(server: tuple[Server, str]) -> None:
    clap, site = server
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(8000 * 601, np.int16), 8000, format="FLAC")
    too_long = "data:audio/flac;base64," + base64.b64encode(silence.getvalue()).decode()
    cut = "data:audio/flac;base64," + base64.b64encode(SOUNDS["flac"][:40]).decode()
    image = "data:image/png;base64,AAAA"
    for source, words in (
        (cut, ["input[1]", "40 bytes", "Send wav, flac, ogg or mp3"]),
        (too_long, ["input[1]", "601", "600"]),
        (image, ["input[1] is image", "text and audio"]),
        (f"{site}/gone.wav", ["input[1]", "404"]),
        ("http://169.254.169.254/a.wav", ["input[1]", "public internet"]),
    ):
        for route in ("/v1/embeddings", "/embeddings"):
            reply = clap.post([TEXT, source], route)
            assert reply.status_code == 400, reply.text
            assert all(word in reply.json()["error"]["message"] for word in words), reply.text
    assert len(rows(clap.post([uri("wav")]))) == 1
