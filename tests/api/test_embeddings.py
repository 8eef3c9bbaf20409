"""The embeddings routes, over real sockets and with the official client."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import openai
import pytest

from hilbert.core import EmbedRequest
from hilbert.processors import TextProcessor
from hilbert.testing.runtime import fake_vector

ROUTES = ["/v1/embeddings", "/openai/v1/embeddings", "/embeddings"]
TEXTS = ["Hilbert's hotel", "one more guest", "", "   ", "été 🌍", "a" * 4000]


def expected(processor: TextProcessor, inputs: list[Any], dimensions: int = 384) -> np.ndarray:
    """What the server must answer: the fake runtime's rows, cut and normalised."""
    sequences = processor.encode(EmbedRequest(tuple(inputs)), 0)
    rows = np.stack([fake_vector(s.input_ids, 384) for s in sequences])[:, :dimensions].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(body: dict[str, Any]) -> np.ndarray:
    return np.array([item["embedding"] for item in body["data"]])


@pytest.mark.parametrize("route", ROUTES)
def test_texts_come_back_in_order_as_unit_vectors(server, processor, route):
    body = server.post(route, {"input": TEXTS, "model": "x"}).json()
    assert [item["index"] for item in body["data"]] == list(range(len(TEXTS)))
    assert {item["object"] for item in body["data"]} == {"embedding"}
    assert body["object"] == "list" and body["model"] == "all-MiniLM-L6-v2"
    assert np.abs(vectors(body) - expected(processor, TEXTS)).max() < 1e-6
    tokens = sum(s.num_tokens for s in processor.encode(EmbedRequest(tuple(TEXTS)), 0))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_only_the_bare_route_has_infinitys_fields(server):
    bare = server.post("/embeddings", {"input": "a"}).json()
    assert bare["id"].startswith("infinity-") and isinstance(bare["created"], int)
    assert set(server.post("/v1/embeddings", {"input": "a"}).json()) == {"object", "data", "model", "usage"}


def test_one_string_is_one_vector(server):
    assert len(server.post("/v1/embeddings", {"input": "a"}).json()["data"]) == 1


def test_token_ids_equal_their_text(server, processor):
    text = "one more guest"
    ids = processor.encode(EmbedRequest((text,)), 0)[0].input_ids.tolist()
    by_text = vectors(server.post("/v1/embeddings", {"input": text}).json())
    for form in (ids, [ids]):
        reply = server.post("/v1/embeddings", {"input": form}).json()
        assert np.array_equal(vectors(reply), by_text)
        assert reply["usage"]["total_tokens"] == len(ids)
    two = vectors(server.post("/v1/embeddings", {"input": [ids, ids[:2]]}).json())
    assert two.shape == (2, 384) and np.array_equal(two[0], by_text[0])


@pytest.mark.parametrize("route", ROUTES)
def test_base64_and_bytes_carry_the_same_numbers_as_float(server, route):
    body = {"input": TEXTS[:4]}
    numbers = vectors(server.post(route, body).json()).astype(np.float32)
    encoded = server.post(route, body | {"encoding_format": "base64"}).json()
    for item, row in zip(encoded["data"], numbers, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), row)
    raw = server.post(route, body | {"encoding_format": "bytes"})
    assert raw.headers["content-type"] == "application/octet-stream"
    metadata = json.loads(raw.headers["metadata"])
    assert metadata["shape"] == [4, 384] and metadata["usage"]["total_tokens"] > 0
    for item, row in zip(metadata["data"], numbers, strict=True):
        part = raw.content[item["start"] : item["end"]]
        assert np.array_equal(np.frombuffer(part, "<f4"), row)


@pytest.mark.parametrize("encoding", ["float", "base64", "bytes"])
def test_a_large_answer_is_written_off_the_loop_and_whole(server, processor, encoding):
    texts = [f"text {i}" for i in range(2048)]
    reply = server.post("/v1/embeddings", {"input": texts, "encoding_format": encoding})
    assert reply.status_code == 200
    if encoding == "bytes":
        assert "data" not in json.loads(reply.headers["metadata"])  # the header would be too long
        rows = np.frombuffer(reply.content, "<f4").reshape(2048, 384)
    elif encoding == "base64":
        items = reply.json()["data"]
        rows = np.stack([np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in items])
    else:
        rows = vectors(reply.json())
    assert np.abs(rows[::97] - expected(processor, texts[::97])).max() < 1e-6


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_dimensions_cut_and_normalise_again(server, processor, name):
    rows = vectors(server.post("/v1/embeddings", {"input": TEXTS, name: 64}).json())
    assert np.abs(rows - expected(processor, TEXTS, 64)).max() < 1e-6


def test_normalize_false_returns_the_models_own_rows(server, processor):
    rows = vectors(server.post("/v1/embeddings", {"input": "a b c", "normalize": False}).json())
    ids = processor.encode(EmbedRequest(("a b c",)), 0)[0].input_ids
    assert np.array_equal(rows[0].astype(np.float32), fake_vector(ids, 384))


@pytest.mark.parametrize("route", ROUTES)
def test_nulls_unknown_fields_and_the_text_modality_are_taken(server, route):
    nulls = dict.fromkeys(
        [
            "encoding_format",
            "dimensions",
            "output_dimension",
            "user",
            "truncate",
            "prompt",
            "prompt_name",
            "input_type",
            "normalize",
            "modality",
            "output_dtype",
            "model",
        ]
    )
    plain = vectors(server.post(route, {"input": "a"}).json())
    assert np.array_equal(vectors(server.post(route, {"input": "a"} | nulls).json()), plain)
    more = {"input": "a", "modality": "text", "user": {"id": 1}, "whatever": [[{}]], "truncate": True}
    assert np.array_equal(vectors(server.post(route, more).json()), plain)


def test_infinitys_zero_means_all_dimensions(server):
    assert vectors(server.post("/embeddings", {"input": "a", "dimensions": 0}).json()).shape == (1, 384)


def test_a_prompt_stands_before_the_text(server):
    by_prompt = server.post("/v1/embeddings", {"input": "guest", "prompt": "one more "}).json()
    by_hand = server.post("/v1/embeddings", {"input": "one more guest"}).json()
    assert by_prompt["data"] == by_hand["data"] and by_prompt["usage"] == by_hand["usage"]


def test_with_several_models_the_name_decides(serve):
    server = serve("one", "two")
    for name in ("one", "two"):
        assert server.post("/v1/embeddings", {"input": "a", "model": name}).json()["model"] == name


def test_the_official_client(server, processor):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="unused") as client:
        reply = client.embeddings.create(model="any", input=TEXTS)
        assert np.abs(np.array([d.embedding for d in reply.data]) - expected(processor, TEXTS)).max() < 1e-6
        floats = client.embeddings.create(model="any", input="a", encoding_format="float", dimensions=8)
        assert len(floats.data[0].embedding) == 8
        ids = client.embeddings.create(model="any", input=[[101, 102], [101, 2023, 102]])
        assert len(ids.data) == 2 and ids.usage.total_tokens == 5
        assert [m.id for m in client.models.list()] == ["all-MiniLM-L6-v2"]
        assert client.models.retrieve("all-MiniLM-L6-v2").owned_by == "hilbert"
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="any", input="a", dimensions=385)
        assert refused.value.param == "dimensions" and refused.value.code == "invalid_value"
        assert "385" in refused.value.message and "384" in refused.value.message


@pytest.mark.anyio
async def test_the_official_async_client(server, processor):
    async with openai.AsyncOpenAI(base_url=server.url + "/openai/v1", api_key="unused") as client:
        reply = await client.embeddings.create(model="any", input=TEXTS)
        assert np.abs(np.array([d.embedding for d in reply.data]) - expected(processor, TEXTS)).max() < 1e-6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
