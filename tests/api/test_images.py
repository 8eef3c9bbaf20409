"""Images and sounds over HTTP: what is one and what is text, in every dialect, and what is refused."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from seeing_house import SeeingProcessor, seen

from hilbert.api.infinity.protocol import InfinityEmbeddingList
from hilbert.api.openai.protocol import EmbeddingList
from hilbert.api.sie.protocol import Encoded
from hilbert.client import AsyncClient, Client
from hilbert.core import EmbedRequest, Modality
from hilbert.errors import ServingError
from hilbert.models.media import MediaLoader
from hilbert.processors.fetch import Fetcher, FetchSettings
from hilbert.testing.runtime import fake_vector

D = 384
RAW = b"pretend this is a picture"
BASE64 = base64.b64encode(RAW).decode()
DATA = f"data:image/png;base64,{BASE64}"
ROUTES = ["/v1/embeddings", "/openai/v1/embeddings", "/embeddings"]


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of a web server whose every file is its own path."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                path = connection.recv(65536).split()[1]
                if path != b"/late.png":
                    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(path)
                    connection.sendall(head + path)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def media() -> MediaLoader:
    settings = FetchSettings(private_hosts=frozenset({"127.0.0.1"}), timeout_seconds=5.0)
    return MediaLoader(lambda: Fetcher(settings))


@pytest.fixture(scope="module")
def eyes(served_with: Any, spec: Any) -> Iterator[Any]:
    with served_with(SeeingProcessor(spec, Modality.IMAGE), media=media()) as server:
        yield server


@pytest.fixture(scope="module")
def ears(served_with: Any, spec: Any) -> Iterator[Any]:
    with served_with(SeeingProcessor(spec, Modality.AUDIO), media=media()) as server:
        yield server


def rows(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]])


def text_row(processor: Any, text: str) -> np.ndarray:
    row = fake_vector(processor.encode(EmbedRequest((text,)), 0)[0].input_ids, D)
    return row / np.linalg.norm(row)


def close(got: np.ndarray, *expected: np.ndarray) -> None:
    assert np.abs(got - np.stack(expected)).max() < 1e-6


@pytest.mark.parametrize("route", ROUTES)
def test_mixed_input_is_told_apart(eyes, page, processor, route):
    texts = [
        "A red dress",
        "see https://example.com/image.jpg",
        "https://example.com/page",
        "data: image",
        BASE64,
        "http://a b.png",
    ]
    given = [DATA, f"{page}/cat.PNG?size=2#x", *texts, {"type": "image_url", "image_url": {"url": DATA}}]
    given += [
        {"type": "text", "text": DATA},
        {"image": BASE64},
        {"text": "seen"},
        {"image_url": f"{page}/odd"},
    ]
    reply = eyes.post(route, {"model": "m", "input": given})
    close(
        rows(reply),
        seen(RAW, D),
        seen(b"/cat.PNG?size=2", D),
        *[text_row(processor, text) for text in texts],
        seen(RAW, D),
        text_row(processor, DATA),
        seen(RAW, D),
        text_row(processor, "seen"),
        seen(b"/odd", D),
    )
    alone = eyes.post(route, {"input": DATA})
    close(rows(alone), seen(RAW, D))
    assert alone.json()["usage"] == {"prompt_tokens": len(RAW), "total_tokens": len(RAW)}
    type_ = InfinityEmbeddingList if route == "/embeddings" else EmbeddingList
    assert msgspec.to_builtins(msgspec.json.decode(alone.content, type=type_)) == alone.json()


@pytest.mark.parametrize("route", ROUTES)
def test_modality_says_it_for_all(eyes, page, processor, route):
    given = [f"{page}/no-ending", BASE64, DATA]
    close(
        rows(eyes.post(route, {"input": given, "modality": "image"})),
        seen(b"/no-ending", D),
        *[seen(RAW, D)] * 2,
    )
    close(rows(eyes.post(route, {"input": DATA, "modality": "text"})), text_row(processor, DATA))
    close(rows(eyes.post(route, {"input": DATA, "modality": None})), seen(RAW, D))


@pytest.mark.parametrize("base", ["", "/v1", "/openai/v1", "/under"])
def test_the_deprecated_routes(serve_more, spec, base):
    server = serve_more(SeeingProcessor(spec, Modality.IMAGE, Modality.AUDIO), url_prefix="/under")
    body = {"model": "m", "input": [BASE64], "encoding_format": "float", "user": "u"}
    for kind in ("image", "audio"):
        close(rows(server.post(f"{base}/embeddings_{kind}", body)), seen(RAW, D))
    paths = server.get("/openapi.json").json()["paths"]
    assert paths[f"{base}/embeddings_image"]["post"]["deprecated"] is True
    assert "deprecated" not in paths[f"{base}/embeddings"]["post"]


def test_sounds(ears, page, processor):
    given = [f"data:audio/wav;base64,{BASE64}", f"{page}/a.flac", f"{page}/a.png", {"audio_url": DATA}]
    expected = [seen(RAW, D), seen(b"/a.flac", D), text_row(processor, f"{page}/a.png"), seen(RAW, D)]
    close(rows(ears.post("/v1/embeddings", {"input": given})), *expected)
    close(rows(ears.post("/embeddings", {"input": BASE64, "modality": "audio"})), seen(RAW, D))


def test_on_a_model_of_texts_a_url_is_text(server, processor):
    texts = [DATA, "https://example.com/image.jpg"]
    close(
        rows(server.post("/v1/embeddings", {"input": texts})), *[text_row(processor, text) for text in texts]
    )


def refused(reply: Any, *words: str, param: str | None = "input", status: int = 400) -> None:
    assert reply.status_code == status, reply.text
    body = reply.json()
    error = body.get("error") or body["detail"]
    if param is not None and "param" in error and error["code"] != status:
        assert error["param"] == param
    for word in words:
        assert word in error["message"], error["message"]


def test_what_a_model_cannot_see(server, eyes, ears):
    for route in ROUTES:
        image = {"input": ["a", {"image_url": DATA}]}
        refused(server.post(route, image), "input[1] is image", "takes text only")
        asked = {"input": DATA, "modality": "image"}
        refused(server.post(route, asked), "modality 'image'", "It takes text", param="modality")
        refused(eyes.post(route, asked | {"modality": "audio"}), "It takes text and image", param="modality")
        refused(eyes.post(route, {"input": [f"data:audio/wav;base64,{BASE64}"]}), "input[0] is audio")
    refused(server.post("/embeddings_image", {"input": DATA}), "It takes text")
    refused(ears.post("/v1/embeddings", {"input": [{"image": DATA}]}), "input[0] is image")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://10.0.0.1/a.png", ["public internet", "data URI"]),
        ("http://[::1]/a.png", ["public internet"]),
        ("http://169.254.169.254/latest/meta.png", ["public internet"]),
        ("data:image/png;base64," + base64.b64encode(b"broken").decode(), ["no image"]),
    ],
)
def test_a_bad_image_is_named_by_its_place(eyes, source, words):
    for route in ROUTES:
        refused(eyes.post(route, {"input": ["text", DATA, source]}), "input[2]: ", *words)
    item = {"images": [{"data": source}]}
    refused(eyes.post("/v1/encode/m", {"items": [{"text": "a"}, item]}), "items[1]: ", *words)
    assert eyes.post("/v1/embeddings", {"input": DATA}).status_code == 200


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("htt://wrong.url/me.jpg", "only http and https"),
        ("https://", "with a host"),
        ("data:image/png;base64,abc", "not valid base64"),
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("notaurl", "'notaurl' is no URL, as it does not begin with http:// or https://, no data URI"),
        ("n" * 99, "99 characters"),
    ],
)
def test_what_is_no_source_is_a_matter_of_form_on_infinitys_routes(eyes, source, word):
    for route in ("/embeddings_image", "/embeddings"):
        found = eyes.post(route, {"input": [DATA, source], "modality": "image"})
        assert found.status_code == 422, found.text
        [detail] = found.json()["detail"]
        assert (
            detail["loc"] == ["body", "input", 1] and "input[1]: " in detail["msg"] and word in detail["msg"]
        )
    refused(eyes.post("/v1/embeddings", {"input": [DATA, source], "modality": "image"}), "input[1]: ", word)
    item = {"images": [{"data": source}]}
    refused(eyes.post("/v1/encode/m", {"items": [{"text": "a"}, item]}), "items[1]: ", word)


def test_a_file_that_does_not_come(eyes, page):
    refused(
        eyes.post("/v1/embeddings", {"input": ["a", f"{page}/late.png"]}), "input[1]: ", "/late.png", "broke"
    )


def test_sies_images(eyes, page):
    items = [
        {"id": "a", "images": [{"data": BASE64, "format": "png"}]},
        {"images": [{"data": f"{page}/x"}]},
        {"text": "text"},
    ]
    reply = eyes.post("/v1/encode/m", {"items": items}, headers={"accept": "application/json"})
    found = msgspec.json.decode(reply.content, type=Encoded).items
    close(np.array([item.dense.values for item in found[:2]]), seen(RAW, D), seen(b"/x", D))
    packed = msgspec.msgpack.encode({"items": [{"images": [{"data": RAW}], "metadata": {"k": 1}}]})
    reply = eyes.post("/v1/encode/m", content=packed, headers={"content-type": "application/msgpack"})
    close(np.array([reply.json()["items"][0]["dense"]["values"]]), seen(RAW, D))
    for item, words in (
        ({"images": [{"data": BASE64}] * 2}, ["items[0] has 2 of text, images and audio"]),
        ({"text": "a", "images": [{"data": BASE64}]}, ["has 2 of"]),
        ({"images": [{"format": "png"}]}, ["image without `data`"]),
        ({"audio": {"data": BASE64}}, ["items[0] is audio", "text and image"]),
        ({"document": {"data": BASE64}}, ["has document"]),
        ({}, ["no `text`, `images` or `audio`"]),
    ):
        refused(eyes.post("/v1/encode/m", {"items": [item]}), *words)


def test_the_client_sends_files_paths_and_urls(eyes, page, processor, tmp_path: Path):
    file = tmp_path / "cat.png"
    file.write_bytes(RAW)
    with Client(eyes.url) as client:
        close(
            client.embed(["text", RAW, file, f"{page}/x.png"]),
            text_row(processor, "text"), seen(RAW, D), seen(RAW, D), seen(b"/x.png", D),
        )  # fmt: skip
        close(client.embed(RAW), seen(RAW, D))
        close(client.embed(file), seen(RAW, D))
        close(client.embed([f"{page}/x", RAW], modality="image"), seen(b"/x", D), seen(RAW, D))
        with pytest.raises(ServingError, match="It takes text and image"):
            client.embed(file, modality="audio")


def test_the_async_client_too(eyes):
    import asyncio

    async def story() -> np.ndarray:
        async with AsyncClient(eyes.url) as client:
            return await client.embed([RAW], modality="image")

    close(asyncio.run(story()), seen(RAW, D))


def test_one_object_alone_is_one_input(eyes, ears):
    for given in (
        {"type": "image_url", "image_url": {"url": DATA}},
        {"image": BASE64},
        {"image_base64": DATA},
    ):
        close(rows(eyes.post("/v1/embeddings", {"model": "m", "input": given})), seen(RAW, D))
    sound = {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}
    for given in (sound, [sound], {"audio": BASE64}):
        close(rows(ears.post("/v1/embeddings", {"model": "m", "input": given})), seen(RAW, D))
    told = eyes.post("/v1/embeddings", {"input": sound}).json()
    assert told["error"]["message"].startswith("input[0] is audio; the model")
