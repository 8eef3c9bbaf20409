"""SIE's wire: msgpack with arrays both ways, and scores."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert.api.sie.errors import SieDialect
from hilbert.api.sie.protocol import Encoded, Extracted, Scored, SieError
from hilbert.core import EmbedRequest, OutputDtype, OutputType, quantize
from hilbert.errors import (
    MissingDependency,
    ModelLoading,
    ModelUnavailable,
    OutOfMemory,
    ShuttingDown,
    UnsupportedArchitecture,
)
from hilbert.processors import TextProcessor, pair_processor
from hilbert.testing.runtime import FakeRuntime, fake_logits, fake_sparse, fake_token_vectors, fake_vector

LABELS = ("anger", "joy", "sadness")
VECTORS = frozenset(OutputType) - {OutputType.LOGITS}
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


@pytest.fixture(scope="module")
def m3(served: Any) -> Any:
    with served(*VECTORS) as server:
        yield server


@pytest.fixture(scope="module")
def reranker(served: Any) -> Any:
    with served(OutputType.LOGITS, num_labels=1) as server:
        yield server


def unpacked(value: Any) -> Any:
    """Arrays as the format of msgpack-numpy has them."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if b"nd" in value:
        assert set(value) == {b"nd", b"type", b"kind", b"shape", b"data"} and value[b"kind"] == b""
        return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"])
    return {name: unpacked(item) for name, item in value.items()}


def as_sie(rows: np.ndarray, dtype: str) -> np.ndarray:
    """What SIE makes of rows."""
    if dtype in ("binary", "ubinary"):
        return np.packbits(rows > 0, axis=-1)
    if dtype == "uint8":
        least, most = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
        return np.round((rows - least) / (most - least) * 255).astype(np.uint8)
    return quantize(rows, OutputDtype(dtype))


def test_arrays_in_msgpack_are_those_of_the_json(m3, processor):
    body = {"items": [{"id": "a", "text": "hej"}], "params": {"output_types": [*map(str, VECTORS)]}}
    ids = processor.encode(EmbedRequest(("hej",)), 0)[0].input_ids
    for dtype in ("float32", "int8", "uint8", "binary", "ubinary", "float16"):
        body["params"]["output_dtype"] = dtype
        packed = m3.post("/v1/encode/m", content=msgspec.msgpack.encode(body), headers=MSGPACK)
        assert packed.headers["content-type"] == "application/msgpack" and "x-total-time" in packed.headers
        (item,) = unpacked(msgspec.msgpack.decode(packed.content))["items"]
        rows = fake_vector(ids, 384)[None]
        expected = as_sie((rows / np.linalg.norm(rows)).astype(np.float32), dtype)[0]
        values = item["dense"]["values"]
        name = "binary" if dtype == "ubinary" else dtype
        assert (item["dense"]["dtype"], item["dense"]["dims"]) == (name, 384)
        assert values.dtype == expected.dtype and np.abs(values.astype(float) - expected).max() <= (
            1 if dtype == "uint8" else 1e-3
        )
        assert item["sparse"]["indices"].tolist() == fake_sparse(ids).token_ids.tolist()
        assert item["sparse"]["values"].dtype == (np.float16 if dtype == "float16" else np.float32)
        tokens = fake_token_vectors(ids, 4)
        tokens = as_sie(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), dtype)
        found = item["multivector"]["values"]
        assert (found.dtype, found.shape) == (tokens.dtype, tokens.shape)
        assert np.abs(found.astype(float) - tokens).max() <= (1 if dtype == "uint8" else 1e-3)
    mixed = m3.post("/v1/encode/m", body, headers={"accept": "application/json"})
    assert msgspec.json.decode(mixed.content, type=Encoded).items[0].id == "a"
    plain = m3.post("/v1/encode/m", body)
    assert plain.headers["content-type"] == "application/json"


def test_what_is_no_msgpack(m3):
    for content, word in (
        (b"", "msgpack"),
        (b"\x81\xa5items", "not valid msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x93\x01\x02\x03", "object"),
        (msgspec.msgpack.encode({"items": [{"text": 3}]}), "items[0].text"),
        (msgspec.msgpack.encode({"items": [{"images": ["x"]}]}), "items[0].images[0]"),
        (b"\x91" * 100_000, "object"),
        (b"\x81\xa1x" + b"\x91" * 100_000, "msgpack"),
        (b'{"items": [{"text": "a"}]}', "msgpack"),
    ):
        reply = m3.post("/v1/encode/m", content=content, headers=MSGPACK)
        assert reply.status_code == 400, reply.text
        error = msgspec.json.decode(reply.content, type=SieError).detail
        assert error.code == "INVALID_INPUT" and word in error.message, error.message


def test_scores(reranker, processor):
    texts = ["Aarhus er en by.", "Paris.", "Aarhus ligger i Jylland."]
    items = [{"id": "a", "text": texts[0]}, {"text": texts[1]}, {"id": "c", "text": texts[2]}]
    body = {"query": {"id": "q", "text": "hvor ligger Aarhus?"}, "items": items}
    pairs = pair_processor(processor).encode(body["query"]["text"], texts, True, 0).sequences
    logits = np.array([fake_logits(s.input_ids, 1)[0] for s in pairs])
    order = np.argsort(-logits, kind="stable")
    for reply in (
        reranker.post("/v1/score/any/name", body),
        reranker.post("/v1/score/any/name", content=msgspec.msgpack.encode(body), headers=MSGPACK),
    ):
        assert reply.status_code == 200, reply.text
        decode = msgspec.json if reply.headers["content-type"] == "application/json" else msgspec.msgpack
        found = decode.decode(reply.content, type=Scored)
        assert (found.query_id, found.model) == ("q", "all-MiniLM-L6-v2")
        assert [s.item_id for s in found.scores] == [["a", "item-1", "c"][i] for i in order]
        assert [s.rank for s in found.scores] == [0, 1, 2]
        # The model's own activation: a sigmoid where one label is scored.
        assert np.abs([s.score for s in found.scores] - 1 / (1 + np.exp(-logits[order]))).max() < 1e-6
    told = reranker.post("/v1/score/any/name", body | {"instruction": "find: "}).json()["scores"]
    assert [s["score"] for s in told] != [s.score for s in found.scores]
    body["query"]["text"] = "find: " + body["query"]["text"]
    assert told == reranker.post("/v1/score/any/name", body).json()["scores"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"items": [{"text": "a"}]}, "`query` is missing"),
        ({"query": {"id": "q"}, "items": [{"text": "a"}]}, "query has no `text`"),
        ({"query": {"text": "q"}}, "`items` needs at least one"),
        ({"query": {"text": "q"}, "items": []}, "`items` needs at least one"),
        ({"query": {"text": "q"}, "items": [{"text": "a"}, {}]}, "items[1] has no `text`"),
        ({"query": {"text": "q"}, "items": [{"images": [{"data": "x"}]}]}, "items[0] has images"),
        ({"query": {"text": "q"}, "items": [{"text": "a"}] * 2049}, "2049"),
        ({"query": {"text": "q"}, "items": [{"text": "a"}, {"text": "x" * 1_000_001}]}, "items[1]"),
    ],
)
def test_scores_that_are_refused(reranker, body, words):
    reply = reranker.post("/v1/score/m", body)
    assert reply.status_code == 400, reply.text
    assert words in msgspec.json.decode(reply.content, type=SieError).detail.message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"documents": []}, ["`documents` is an empty list", "send"]),
        ({"top_n": 0}, ["`top_n` is 0", "1 or more", "left out"]),
        ({"documents": ["a"] * 2049}, ["2049 items", "2048", "--max-client-batch-size"]),
    ],
)
def test_bad_calls_of_rerank_name_value_limit_and_remedy(reranker, more, words):
    body = {"query": "q", "documents": ["a"], **more}
    v1 = reranker.post("/v1/rerank", body)
    assert v1.status_code == 400 and all(w in v1.json()["message"] for w in words), v1.text
    bare = reranker.post("/rerank", body)
    assert bare.status_code == 422 and all(w in bare.json()["detail"][0]["msg"] for w in words), bare.text


def test_what_goes_beyond_sie(m3, reranker):
    options = {"dimensions": 3, "truncate": False, "prompt_name": "", "input_type": "query"}
    body = {"items": [{"text": "hej"}], "model": "all-MiniLM-L6-v2", "params": {"options": options}}
    reply = m3.post("/v1/encode", body)
    assert reply.status_code == 200 and reply.json()["items"][0]["dense"]["dims"] == 3, reply.text
    for name, value in (("dimensions", "3"), ("truncate", 1), ("prompt_name", 3), ("input_type", [])):
        reply = m3.post("/v1/encode", {**body, "params": {"options": {name: value}}})
        assert reply.status_code == 400 and f"$.{name}" in reply.json()["detail"]["message"], reply.text
    long = {"items": [{"text": "hej " * 600}], "params": {"options": {"truncate": False}}}
    assert m3.post("/v1/encode", long).json()["detail"]["reason"] == "input_too_long"
    unknown = {**body, "params": {"options": {"prompt_name": "nobody"}}}
    assert "nobody" in m3.post("/v1/encode", unknown).json()["detail"]["message"]
    refused = reranker.post("/v1/encode", body).json()["detail"]
    assert (refused["code"], refused["reason"]) == ("INVALID_INPUT", "unsupported_task")


@pytest.fixture(scope="module")
def classifier(spec, served_with) -> Any:
    texts = TextProcessor(msgspec.structs.replace(spec, labels=LABELS))
    with served_with(texts, runtime=FakeRuntime(384, outputs=frozenset({OutputType.LOGITS}))) as server:
        yield server


def test_classes_of_items(classifier):
    texts = ["one more guest", "no room"]
    wanted = classifier.post("/v1/classify", {"input": texts}).json()["data"]
    items = [{"id": "a", "text": texts[0]}, {"text": texts[1]}]
    reply = classifier.post("/v1/extract/any:profile", {"items": items})
    body = msgspec.convert(reply.json(), Extracted)
    assert [item.id for item in body.items] == ["a", "item-1"]
    for item, row in zip(reply.json()["items"], wanted, strict=True):
        assert item["classifications"] == row
        assert item["entities"] == item["relations"] == item["objects"] == [] and item["data"] == {}
    packed = classifier.post(
        "/v1/extract/m", content=msgspec.msgpack.encode({"items": items}), headers=MSGPACK
    )
    assert msgspec.msgpack.decode(packed.content)["items"] == reply.json()["items"]
    some = classifier.post("/v1/extract/m", {"items": items, "params": {"labels": ["joy"]}}).json()
    assert [[c["label"] for c in item["classifications"]] for item in some["items"]] == [["joy"], ["joy"]]
    for bad in (
        {"items": []},
        {"items": [{"id": "a"}]},
        {"items": items, "params": {"labels": ["rage"]}},
        {"items": [{"images": [{"data": "x"}]}]},
    ):
        reply = classifier.post("/v1/extract/m", bad)
        assert reply.status_code == 400 and reply.json()["detail"]["code"] == "INVALID_INPUT"


def test_a_profile_behind_the_name(serve):
    server = serve("org/small", "other")
    asked = {"items": [{"text": "a"}]}
    for name in ("org/small", "org/small:fast", "default:/org/small", "default:/org/small:fast"):
        assert server.post(f"/v1/encode/{name}", asked).json()["model"] == "org/small"
    assert server.post("/v1/encode/org/large:fast", asked).json()["detail"]["code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (ModelUnavailable("x"), 502, "MODEL_LOAD_FAILED", "NOT_FOUND"),
        (MissingDependency("x"), 502, "MODEL_LOAD_FAILED", "DEPENDENCY"),
        (UnsupportedArchitecture("x"), 502, "MODEL_LOAD_FAILED", "UNKNOWN"),
        (OutOfMemory("x"), 500, "INFERENCE_ERROR", None),
        (ModelLoading("x", retry_after_seconds=5), 503, "MODEL_LOADING", None),
        (ShuttingDown("x"), 503, "RESOURCE_EXHAUSTED", None),
    ],
)
def test_what_its_client_tries_again(error, status, code, kind):
    reply = SieDialect().error(error)
    detail = json.loads(reply.body)["detail"]
    assert (reply.status, detail["code"], detail.get("error_class")) == (status, code, kind)
    assert any(name == b"retry-after" for name, _ in reply.headers) == (status == 503)
