"""TEI's routes: every shape of body and answer, errors and headers; and the envelope of seed 004."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert.api import ApiSettings
from hilbert.api.call import Call, inner_call
from hilbert.api.tei import protocol
from hilbert.api.tei.routes import Answer, handler
from hilbert.core import EmbedRequest, ModelSpec, OutputType, Task, Timing
from hilbert.processors import TextProcessor, pair_processor
from hilbert.testing.runtime import FakeRuntime, fake_logits, fake_sparse, fake_token_vectors, fake_vector

TEXTS = ["One more guest.", "Every guest moves one room up, zoë 🏨."]
LONG = "first " * 300 + "second " * 300
HEADERS = {
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
}


@pytest.fixture(scope="module")
def all_kinds(served: Any) -> Any:
    with served(OutputType.DENSE, OutputType.MULTIVECTOR, OutputType.SPARSE) as server:
        yield server


@pytest.fixture(scope="module")
def classifier(served: Any) -> Any:
    with served(OutputType.LOGITS, num_labels=3) as server:
        yield server


@pytest.fixture(scope="module")
def reranker(served: Any) -> Any:
    with served(OutputType.LOGITS, num_labels=1) as server:
        yield server


@pytest.fixture
def serve_task(spec: ModelSpec, served_with: Any) -> Iterator[Any]:
    """A server whose model is there for one task: ``serve_task(task, output)``."""
    with ExitStack() as stack:

        def serve_task(task: str, output: OutputType) -> Any:
            processor = TextProcessor(msgspec.structs.replace(spec, task=Task(task)))
            runtime = FakeRuntime(384, outputs=frozenset({output}))
            return stack.enter_context(served_with(processor, runtime=runtime))

        yield serve_task


def ids_of(processor: Any, text: str, **more: Any) -> np.ndarray:
    return processor.encode(EmbedRequest((text,), **more), 0)[0].input_ids


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def rows(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array(reply.json(), np.float32)


def refused(reply: Any, status: int, kind: str, *words: str) -> None:
    body = msgspec.convert(reply.json(), protocol.TeiError)
    assert (reply.status_code, body.error_type) == (status, kind), reply.text
    assert all(word in body.error for word in words), body.error


# -- vectors ----------------------------------------------------------------------------------------


def test_embed_takes_every_form_of_input(server, processor):
    wanted = np.stack([unit(fake_vector(ids_of(processor, text), 384)) for text in TEXTS])
    ids = [ids_of(processor, text).tolist() for text in TEXTS]
    for inputs in (TEXTS, ids, [TEXTS[0], ids[1]]):
        np.testing.assert_allclose(rows(server.post("/embed", {"inputs": inputs})), wanted, atol=1e-6)
    for inputs in (TEXTS[0], ids[0], [TEXTS[0]]):
        reply = server.post("/embed", {"inputs": inputs, "truncate": None, "prompt_name": None, "x": 1})
        np.testing.assert_allclose(rows(reply), wanted[:1], atol=1e-6)
    small = rows(server.post("/embed", {"inputs": TEXTS, "dimensions": 8}))
    np.testing.assert_allclose(small, np.stack([unit(row[:8]) for row in wanted]), atol=1e-6)
    raw = rows(server.post("/embed", {"inputs": TEXTS, "normalize": False}))
    np.testing.assert_allclose(raw[0], fake_vector(ids_of(processor, TEXTS[0]), 384), atol=1e-6)


def test_headers_tell_how_it_went(server, processor):
    reply = server.post("/embed", {"inputs": TEXTS})
    assert set(reply.headers) >= HEADERS
    assert all(reply.headers[name].isdigit() for name in HEADERS - {"x-compute-type"})
    assert reply.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    num_tokens = sum(len(ids_of(processor, text)) for text in TEXTS)
    assert reply.headers["x-compute-tokens"] == str(num_tokens)
    assert not HEADERS & set(server.post("/embed", {"inputs": ""}).headers)
    assert not HEADERS & set(server.post("/tokenize", {"inputs": "a"}).headers)


def test_truncation_from_either_side(server, processor):
    left, right = "second " * 254, "first " * 254
    for name, wanted in (("Left", left), ("left", left), ("Right", right), ("right", right)):
        reply = server.post("/embed", {"inputs": LONG, "truncation_direction": name})
        np.testing.assert_array_equal(rows(reply), rows(server.post("/embed", {"inputs": wanted})))
    refused(server.post("/embed", {"inputs": LONG, "truncation_direction": "up"}), 422, "Validation", "Left")
    refused(server.post("/embed", {"inputs": LONG, "truncate": False}), 422, "Validation", "inputs[0]", "256")


@pytest.fixture(scope="module")
def prompted(spec: ModelSpec, served_with: Any) -> Iterator[Any]:
    """Every kind of vector, of a model that has a prompt."""
    outputs = frozenset({OutputType.DENSE, OutputType.MULTIVECTOR, OutputType.SPARSE})
    processor = TextProcessor(msgspec.structs.replace(spec, prompts={"query": "find: "}))
    with served_with(processor, runtime=FakeRuntime(384, outputs=outputs, token_dimensions=4)) as server:
        yield server


@pytest.mark.parametrize("path", ["/embed", "/embed_all", "/embed_sparse", "/tokenize", "/similarity"])
def test_prompts_and_truncation_count_on_every_route(prompted, path):
    def ask(text: str, **how: Any) -> Any:
        if path == "/similarity":
            inputs = {"source_sentence": text, "sentences": ["a guest"]}
            return prompted.post(path, {"inputs": inputs, "parameters": how})
        return prompted.post(path, {"inputs": text, **how})

    def same(one: Any, other: Any) -> bool:
        return bool(np.array_equal(flat(one.json()), flat(other.json())))

    if path != "/similarity":
        assert same(ask("a room", prompt_name="query"), ask("find: a room"))
    assert not same(ask("a room", prompt_name="query"), ask("a room"))
    if path == "/tokenize":
        return
    assert same(ask(LONG, truncation_direction="Left"), ask("second " * 254))
    assert same(ask(LONG), ask("first " * 254)) and not same(ask(LONG), ask("second " * 254))
    refused(ask(LONG, truncate=False), 422, "Validation", "inputs[0]")
    prompted.model.truncates = False  # --no-auto-truncate, for requests that do not say
    try:
        refused(ask(LONG), 422, "Validation", "inputs[0]")
        assert ask(LONG, truncate=True).status_code == 200
    finally:
        prompted.model.truncates = True


def flat(value: Any) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in flat(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_headers_are_milliseconds_of_each_stage():
    async def operation(call: Call, raw: bytes, name: str | None) -> Answer:
        return Answer(raw, Timing(0.002, 0.03, 0.4), 7, 9)

    reply = asyncio.run(handler(operation, ApiSettings())(inner_call("POST", "/embed", b"[]")))
    found = dict(reply.headers)
    stages = [found[b"x-%s-time" % stage] for stage in (b"tokenization", b"queue", b"inference")]
    assert stages == [b"2", b"30", b"400"] and found[b"x-total-time"] == found[b"x-compute-time"]
    assert (found[b"x-compute-characters"], found[b"x-compute-tokens"]) == (b"7", b"9")


def test_every_token_and_every_weight(all_kinds, processor):
    body = all_kinds.post("/embed_all", {"inputs": TEXTS}).json()
    for text, found in zip(TEXTS, body, strict=True):
        np.testing.assert_allclose(found, fake_token_vectors(ids_of(processor, text)), atol=1e-6)
    body = all_kinds.post("/embed_sparse", {"inputs": TEXTS[0]}).json()
    wanted = fake_sparse(ids_of(processor, TEXTS[0]))
    assert [w["index"] for w in body[0]] == wanted.token_ids.tolist()
    np.testing.assert_allclose([w["value"] for w in body[0]], wanted.weights)


def test_similarity(server):
    asked = {"inputs": {"source_sentence": TEXTS[0], "sentences": [TEXTS[1], TEXTS[0]]}}
    vectors = rows(server.post("/embed", {"inputs": TEXTS}))
    for path in ("/similarity", "/"):
        for more in ({}, {"parameters": {}}, {"parameters": {"truncate": True}}):
            found = rows(server.post(path, asked | more))
            np.testing.assert_allclose(found, [vectors[0] @ vectors[1], 1], atol=1e-6)
    refused(server.post("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}), 400, "Empty")
    assert server.post("/similarity", {"inputs": "a"}).status_code == 422


# -- classes and ranks --------------------------------------------------------------------------------


def test_predict_in_its_three_shapes(classifier, processor):
    def wanted(*texts: str) -> list[float]:
        if len(texts) == 1:
            ids = ids_of(processor, texts[0])
        else:
            ids = pair_processor(processor).encode(texts[0], texts[1:], True, 0).sequences[0].input_ids
        powers = np.exp(fake_logits(ids))
        return sorted((powers / powers.sum()).tolist(), reverse=True)

    def scores(found: list[dict[str, Any]]) -> list[float]:
        assert {"label", "score"} == set(found[0])
        return [one["score"] for one in found]

    one = classifier.post("/predict", {"inputs": TEXTS[0]}).json()
    np.testing.assert_allclose(scores(one), wanted(TEXTS[0]), atol=1e-6)
    assert classifier.post("/predict", {"inputs": [TEXTS[0]]}).json() == one
    pair = classifier.post("/predict", {"inputs": TEXTS}).json()
    np.testing.assert_allclose(scores(pair), wanted(*TEXTS), atol=1e-6)
    assert classifier.post("/predict", {"inputs": [[TEXTS[0]], TEXTS]}).json() == [one, pair]
    raw = classifier.post("/predict", {"inputs": TEXTS[0], "raw_scores": True}).json()
    np.testing.assert_allclose(
        scores(raw), np.sort(fake_logits(ids_of(processor, TEXTS[0])))[::-1], atol=1e-5
    )
    for inputs in (["a", "b", "c"], [], [["a", "b", "c"]], ["a", ["b"]], 3):
        assert classifier.post("/predict", {"inputs": inputs}).status_code == 422
    refused(classifier.post("/predict", {"inputs": [["a"], ["", ""]]}), 400, "Empty", "inputs[1]")
    left = classifier.post("/predict", {"inputs": LONG, "truncation_direction": "Left"}).json()
    assert left != classifier.post("/predict", {"inputs": LONG}).json()
    assert left == classifier.post("/predict", {"inputs": "second " * 254}).json()
    too_long = {"inputs": [["a"], [LONG, "b"]], "truncate": False}
    refused(classifier.post("/predict", too_long), 422, "Validation", "the texts of inputs[1] have ")
    endless = {"inputs": [["a"], ["a" * 1_000_001, "b"]]}
    refused(classifier.post("/predict", endless), 422, "Validation", "inputs[1] has 1,000,001 characters")


def test_rerank_belongs_to_texts_and_documents_stay_infinitys(reranker):
    asked = {"query": "room?", "texts": ["test", "other", "test"]}
    found = reranker.post("/rerank", asked)
    infinity = reranker.post("/rerank", {"query": "room?", "documents": asked["texts"]}).json()["results"]
    ranks = found.json()
    assert set(found.headers) >= HEADERS and {tuple(r) for r in ranks} == {("index", "score")}
    assert sorted((r["index"], r["score"]) for r in ranks) == sorted(
        (r["index"], r["relevance_score"]) for r in infinity
    )
    assert [r["score"] for r in ranks] == sorted((r["score"] for r in ranks), reverse=True)
    assert [r["index"] for r in ranks if r["index"] != 1] == [2, 0]  # of equals the later one
    more = reranker.post("/rerank", asked | {"return_text": True, "raw_scores": True, "top_n": 2}).json()
    assert len(more) == 2 and more[0]["text"] == asked["texts"][more[0]["index"]]
    assert 1 / (1 + np.exp(-more[0]["score"])) == pytest.approx(ranks[0]["score"], abs=1e-6)
    left = reranker.post("/rerank", {"query": "q", "texts": [LONG], "truncation_direction": "Left"}).json()
    assert left != reranker.post("/rerank", {"query": "q", "texts": [LONG]}).json()
    refused(reranker.post("/rerank", {"query": "q", "texts": []}), 400, "Empty")
    refused(reranker.post("/rerank", {"texts": ["a"]}), 422, "Validation", "query")
    refused(
        reranker.post("/rerank", {"query": "q", "texts": [LONG], "truncate": False}),
        422,
        "Validation",
        "texts[0]",
    )
    # `texts` as a value and not as a member is nobody's claim.
    assert "results" in reranker.post("/rerank", {"query": "texts", "documents": ["a"]}).json()
    assert reranker.post("/rerank", {"query": "q"}).json()["detail"]


# -- tokens -----------------------------------------------------------------------------------------


def test_tokens_are_the_tokenizers_and_places_are_bytes(server, processor):
    for texts in (TEXTS, [LONG]):
        body = server.post("/tokenize", {"inputs": texts}).json()
        for text, found in zip(texts, body, strict=True):
            tokens = msgspec.convert(found, list[protocol.TeiToken])
            bare = [token for token in tokens if not token.special]
            assert [t.special for t in tokens] == [True, *[False] * len(bare), True]
            assert (tokens[0].text, tokens[0].start, tokens[-1].text) == ("[CLS]", None, "[SEP]")
            for token in bare:
                assert text.encode()[token.start : token.stop].decode() == token.text
            assert "".join(t.text for t in bare) == "".join(text.split())
            assert [t.id for t in tokens][:256][:-1] == ids_of(processor, text).tolist()[:-1]
    plain = server.post("/tokenize", {"inputs": TEXTS[0], "add_special_tokens": False}).json()
    assert not any(token["special"] for token in plain[0])
    ids = [token["id"] for token in plain[0]]
    for given in (ids, [ids]):
        assert server.post("/decode", {"ids": given}).json() == ["one more guest."]
    framed = ids_of(processor, TEXTS[0]).tolist()
    assert server.post("/decode", {"ids": framed}).json() == ["one more guest."]
    shown = server.post("/decode", {"ids": framed, "skip_special_tokens": False}).json()
    assert shown == ["[CLS] one more guest. [SEP]"]
    refused(server.post("/decode", {"ids": [99_999_999]}), 422, "Validation", "99999999")
    refused(server.post("/decode", {"ids": []}), 400, "Empty")
    assert server.post("/decode", {"ids": [1, [2]]}).status_code == 422


# -- the root, wrappers, facts -------------------------------------------------------------------------


def test_the_root_does_what_the_model_is_for(server, reranker, serve_task):
    vectors = rows(server.post("/embed", {"inputs": TEXTS}))
    for path in ("/", "/invocations"):
        np.testing.assert_array_equal(rows(server.post(path, {"inputs": TEXTS})), vectors)
    asked = {"query": "q", "texts": ["a", "b"]}
    assert reranker.post("/", asked).json() == reranker.post("/rerank", asked).json()
    sparse = serve_task("sparse_embed", OutputType.SPARSE)
    assert sparse.post("/", {"inputs": "a"}).json() == sparse.post("/embed_sparse", {"inputs": "a"}).json()
    classes = serve_task("classify", OutputType.LOGITS)
    alone = classes.post("/", {"inputs": "a"}).json()
    assert alone == classes.post("/predict", {"inputs": "a"}).json()
    for path in ("/", "/predict"):
        assert classes.post(path, {"inputs": "a", "parameters": {}}).json() == [alone]
        found = classes.post(path, {"inputs": "a", "parameters": {"top_k": 2, "function_to_apply": "none"}})
        assert found.json() == [classes.post("/predict", {"inputs": "a", "raw_scores": True}).json()[:2]]
    instances = [{"inputs": "a"}, {"inputs": [["b"], ["a", "b"]]}]
    predictions = classes.post("/vertex", {"instances": instances}).json()["predictions"]
    assert predictions == [classes.post("/predict", instance).json() for instance in instances]
    assert classes.post("/vertex", {"instances": []}).status_code == 422
    for given, kind, pooling in ((classes, "classifier", None), (sparse, "embedding", "splade")):
        about = given.get("/info").json()["model_type"][kind]
        assert about["pooling"] == pooling if pooling else len(about["id2label"]) == 0


def test_info_health_and_ping(server, serve, processor):
    info = msgspec.convert(server.get("/info").json(), protocol.TeiInfo)
    assert info.model_id == processor.spec.model_id and info.served_model_name == "all-MiniLM-L6-v2"
    assert info.model_type == {"embedding": {"pooling": "mean"}} and info.max_input_length == 256
    assert info.max_client_batch_size == 2048 and info.auto_truncate is True and info.model_dtype == "float32"
    assert (server.get("/ping").status_code, server.get("/ping").content) == (200, b"")
    assert server.get("/").status_code == 307
    bare = serve(settings=ApiSettings(redirect_slash="", url_prefix="/ml", max_client_batch_size=2))
    assert (bare.get("/").status_code, bare.get("/ml").status_code) == (200, 200)
    bare.registry.is_draining = True
    for path in ("/", "/ping"):
        refused(bare.get(path), 503, "Unhealthy")
    refused(bare.post("/embed", {"inputs": "a"}), 503, "Unhealthy")
    bare.registry.is_draining = False
    for path in ("/ml/embed", "/ml", "/ml/", "/embed"):
        assert bare.post(path, {"inputs": TEXTS}).status_code == 200
        refused(bare.post(path, {"inputs": ["a"] * 3}), 422, "Validation", "batch size 3 >", "2")
    for path, body in (
        ("/embed_all", {"inputs": ["a"] * 3}),
        ("/predict", {"inputs": [["a"]] * 3}),
        ("/rerank", {"query": "a", "texts": ["a"] * 3}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 2}}),
        ("/tokenize", {"inputs": ["a"] * 3}),
        ("/decode", {"ids": [[1]] * 3}),
    ):
        refused(bare.post(path, body), 422, "Validation", "batch size 3 >", "2")
    assert bare.post("/ml/rerank", {"query": "a", "texts": TEXTS}).json()[0].keys() == {"index", "score"}


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty"),
        ("/embed", {"inputs": [[]]}, 400, "Empty"),
        ("/embed", {}, 422, "Validation"),
        ("/embed", {"inputs": [1, "a"]}, 422, "Validation"),
        ("/embed", {"inputs": {"a": 1}}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 385}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "Validation"),
        ("/embed", {"inputs": [[99_999_999]]}, 422, "Validation"),
        ("/predict", {"inputs": "a"}, 424, "Backend"),
        ("/embed_sparse", {"inputs": "a"}, 424, "Backend"),
        ("/tokenize", {"inputs": []}, 400, "Empty"),
        ("/tokenize", {}, 422, "Validation"),
        ("/similarity", {}, 422, "Validation"),
    ],
)
def test_what_is_refused(server, path, body, status, kind):
    refused(server.post(path, body), status, kind)


def test_a_body_that_is_no_json_is_400_and_one_of_another_form_422(server):
    for path in ("/embed", "/embed_all", "/predict", "/similarity", "/tokenize", "/decode", "/vertex", "/"):
        for raw in (b"", b'{"model": "a"', b'{"model": "\xff"}', b'{"model": "\\ud800"}'):
            refused(server.post(path, content=raw), 400, "Validation")
        for raw in (b"3", b"[]", b"null"):
            refused(server.post(path, content=raw), 422, "Validation", "object")
    refused(server.post("/api/v1/embed", content=b"{"), 400, "validation", "not valid JSON")


def test_failures_overload_and_keys(serve, processor):
    bad = ids_of(processor, "bad")[1].item()
    server = serve(runtime=FakeRuntime(384, nan_on_token=bad), max_concurrent_requests=1)
    refused(server.post("/embed", {"inputs": ["a", "bad"]}), 424, "Backend", "inputs[1]")
    refused(server.post("/api/v1/embed", {"inputs": "bad"}), 500, "backend")
    server.model.admission.admit(1, 0.0)
    for path, kind in (("/embed", "Overloaded"), ("/api/v1/embed", "overloaded")):
        reply = server.post(path, {"inputs": "a"})
        refused(reply, 429, kind)
        assert int(reply.headers["retry-after"]) >= 1
    assert server.post("/api/v1/embed", {"inputs": "a"}).json()["error"] == "Queue is full"
    locked = serve(settings=ApiSettings(api_key="k", max_body_bytes=1000))
    for path in ("/embed", "/predict", "/", "/vertex", "/tokenize"):
        reply = locked.post(path, {"inputs": "a"})
        assert reply.status_code == 401 and reply.json()["error"]
        assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.get("/info").status_code == 401 and locked.get("/ping").status_code == 200
    key = {"authorization": "Bearer k"}
    assert locked.post("/embed", {"inputs": "a"}, headers=key).status_code == 200
    assert locked.post("/embed", {"inputs": "a" * 1000}, headers=key).status_code == 413
    assert locked.post("/rerank", {"texts": ["a" * 1000]}, headers=key).status_code == 413


def test_the_envelope_of_seed_004(server):
    asked = {"inputs": TEXTS, "truncate": True, "normalize": True}
    reply = server.post("/api/v1/embed", asked)
    assert reply.json() == {"body": server.post("/embed", asked).json()}
    refused(server.post("/api/v1/embed", {"inputs": []}), 400, "empty")
    refused(server.post("/api/v1/embed", {"inputs": LONG, "truncate": False}), 422, "validation")


def test_a_model_by_name_and_by_prefix(serve):
    server = serve("one", "two")
    asked: dict[str, Any] = {"inputs": "a", "model": "two"}
    assert server.post("/embed", asked).status_code == 200
    assert server.model.metrics.requests.get("ok", 0) == 0
    refused(server.post("/embed", asked | {"model": "three"}), 404, "Validation", "three")
    assert json.loads(server.get("/info").content)["served_model_name"] == "one"
