"""A tiny CLIP behind a real server: data URIs, URLs, files and texts in one space, and what is refused."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cli_house import NO_TLS, served_folder
from PIL import Image

from hilbert import Model
from hilbert.client import Client
from hilbert.testing.towers import tiny_dual


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0)
    for name, size in (("cat.png", (40, 56)), ("dog.jpg", (64, 33))):
        Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "cat.png").read_bytes()[:200])
    (folder / "large.png").write_bytes(bytes(60_001))
    return folder


@pytest.fixture(scope="module")
def site(pictures: Path) -> Iterator[str]:
    with served_folder(pictures) as url:
        yield url


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_dual("clip", tmp_path_factory.mktemp("models") / "tiny" / "clip"))


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def in_every_dialect(
    source: str,
) -> Iterator[tuple[str, dict[str, Any], str, Callable[[dict[str, Any]], str]]]:
    """Route and body with a bad second input, what the message begins with, and where it is."""
    both = ["text", source]
    for route in ("/v1/embeddings", "/embeddings"):
        yield route, {"input": both}, "input[1]", lambda told: told["error"]["message"]
    image = {"type": "image_url", "image_url": {"url": source}}
    if "audio" not in source:
        yield "/v1/embeddings", {"input": ["text", image]}, "input[1]", lambda told: told["detail"]
        item = {"images": [{"data": source}]}
        items = [{"text": "text"}, item]
        yield "/v1/encode/m", {"items": items}, "items[1]", lambda told: told["detail"]["message"]
        inputs = [{"content": [{"type": "text", "text": "text"}]}, {"content": [image]}]
        yield "/v2/embed", {"inputs": inputs}, "inputs[1]", lambda told: told["message"]
        yield "/v1/multimodalembeddings", {"inputs": inputs}, "inputs[1]", lambda told: told["detail"]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 65,535 by 65,535 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.slow
def test_a_clip_over_http(start: Any, clip: str, cache: str, site: str, pictures: Path) -> None:
    flags = ("-m", clip, "--cache-dir", cache, "--dtype", "float32", "--fetch-private-hosts", "localhost")
    server = start(*flags, "--max-fetch-bytes", "60000")
    with Model(clip, dtype="float32", cache_dir=cache) as model:
        cat, dog = model.embed_image([pictures / "cat.png", pictures / "dog.jpg"])
        text = model.embed(["a red dress"], normalize=True)[0]
    cat, dog = cat / np.linalg.norm(cat), dog / np.linalg.norm(dog)

    def rows(reply: Any) -> np.ndarray:
        assert reply.status_code == 200, reply.text
        return np.array([item["embedding"] for item in reply.json()["data"]])

    (card,) = server.get("/v1/models").json()["data"]
    assert card["inputs"] == ["text", "image"]
    png = (pictures / "cat.png").read_bytes()
    mixed = ["a red dress", f"{site}/dog.jpg", data_uri(png)]
    for route in ("/v1/embeddings", "/embeddings"):
        reply = server.post(mixed, route)
        assert np.abs(rows(reply) - np.stack([text, dog, cat])).max() < 1e-4
        assert reply.json()["usage"]["total_tokens"] > 2
    alone = server.post([base64.b64encode(png).decode()], "/embeddings_image")
    assert np.abs(rows(alone) - cat).max() < 1e-4
    with Client(server.url) as client:
        sent = client.embed(["a red dress", pictures / "dog.jpg", png])
        assert np.abs(sent - np.stack([text, dog, cat])).max() < 1e-4

    connected = httpx2.Client(verify=NO_TLS)
    for source, words in (
        (data_uri(b"no picture at all"), ["no image"]),
        (data_uri(png[:200]), ["truncated", "Send the whole file"]),
        (data_uri(bomb()), ["178,956,970 pixels", "89,478,485", "smaller one"]),
        (f"{site}/broken.png", ["truncated", "Send the whole file"]),
        (f"{site}/gone.png", ["answered 404"]),
        ("http://10.0.0.1/cat.png", ["10.0.0.1", "public internet", "--fetch-private-hosts"]),
        (f"{site}/moved.png?to=http://169.254.169.254/cat.png", ["169.254.169.254", "public internet"]),
        (f"{site}/large.png", ["60000", "--max-fetch-bytes"]),
        ("data:audio/wav;base64,AAAA", ["is audio", "text and image"]),
    ):
        for route, body, place, message in in_every_dialect(source):
            reply = connected.post(server.url + route, json=body, timeout=60)
            assert reply.status_code == 400, f"{route} {source[:60]}: {reply.text}"
            told = message(reply.json())
            assert told.startswith(place) and all(word in told for word in words), f"{route}: {told}"
    connected.close()
    assert rows(server.post(mixed)).shape == (3, len(cat))

    closed = start(*flags, "--no-fetch-urls")
    reply = closed.post([f"{site}/cat.png"])
    assert reply.status_code == 400 and "--no-fetch-urls" in reply.json()["error"]["message"]
    assert rows(closed.post([data_uri(png)])).shape == (1, len(cat))
