"""Health, models, metrics, documents, prefixes, CORS."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hilbert.api import ApiSettings
from hilbert.api.cards import Model, ModelList
from hilbert.api.infinity.protocol import FormError, InfinityEmbeddingList, InfinityModelList
from hilbert.api.openai.protocol import EmbeddingList, SharedError
from hilbert.core import OutputType
from hilbert.observability.metrics import TABLE
from hilbert.testing.runtime import FakeRuntime

NAME = "all-MiniLM-L6-v2"


# -- models -----------------------------------------------------------------------------------------


def test_models_in_both_shapes(server, spec):
    for route in ("/v1/models", "/openai/v1/models"):
        body = server.get(route).json()
        (model,) = body["data"]
        assert body["object"] == "list" and model["object"] == "model" and model["id"] == NAME
        assert model["owned_by"] == "hilbert" and model["dimensions"] == 384 and model["max_model_len"] == 256
        assert server.get(f"{route}/{NAME}").json() == model
    body = server.get("/models").json()
    (model,) = body["data"]
    assert model["id"] == NAME and model["backend"] == "fake" and model["capabilities"] == ["embed", "rerank"]
    assert set(model["stats"]) == {"queue_fraction", "queue_absolute", "results_pending", "batch_size"}


def test_a_model_name_with_slashes_has_a_route(serve):
    server = serve("org/name", "other")
    assert server.get("/v1/models/org/name").json()["id"] == "org/name"
    assert server.get("/v1/models/org%2Fname").json()["id"] == "org/name"
    assert [m["id"] for m in server.get("/v1/models").json()["data"]] == ["org/name", "other"]


# -- metrics ----------------------------------------------------------------------------------------


def scrape(server: Any) -> dict[tuple[str, ...], float]:
    reply = server.get("/metrics")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(serve):
    server = serve("m")
    for texts in (["a"], ["a", "b c d"], ["word " * 300] * 8):
        assert server.post("/v1/embeddings", {"input": texts}).status_code == 200
    assert server.post("/v1/embeddings", {"input": "a", "dimensions": 999}).status_code == 400
    assert server.get("/readyz").status_code == 200 and server.get("/nowhere").status_code == 404
    m = scrape(server)
    for outcome, count in (("ok", 3), ("client_error", 1)):
        labels = ("model=m", f"outcome={outcome}", "route=/v1/embeddings")
        assert m["hilbert_requests_total", *labels] == count
        assert m["hilbert_request_duration_seconds_count", *labels] == count
    assert m["hilbert_requests_total", "model=", "outcome=client_error", "route=unknown"] == 1
    assert not any("/readyz" in label for key in m for label in key)
    assert m["hilbert_sequences_total", "model=m"] == 11
    assert m["hilbert_tokens_total", "model=m"] == 3 + 3 + 5 + 8 * 256
    assert m["hilbert_batch_tokens_sum", "model=m"] == m["hilbert_tokens_total", "model=m"]
    assert m["hilbert_batch_sequences_sum", "model=m"] == 11
    batches = m["hilbert_batch_sequences_count", "model=m"]
    assert 3 <= batches == m["hilbert_inference_duration_seconds_count", "model=m"]
    for name in ("tokenize", "queue", "serialize"):
        assert m[f"hilbert_{name}_duration_seconds_count", "model=m"] == 3
        assert m[f"hilbert_{name}_duration_seconds_bucket", "le=+Inf", "model=m"] == 3
    assert m["hilbert_queue_requests", "model=m"] == m["hilbert_queue_tokens", "model=m"] == 0
    assert m["hilbert_model_ready", "model=m"] == 1
    assert any(key[0] == "process_resident_memory_bytes" for key in m)
    assert any(key[0] == "hilbert_model_info" and "engine=fake" in key and "model=m" in key for key in m)


def test_every_metric_has_units_help_and_several_models(serve):
    server = serve("one", "two")
    server.post("/v1/embeddings", {"input": "a", "model": "two"})
    text = server.get("/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for spec in TABLE:
        assert spec.help.endswith(".") and families[spec.name].documentation == spec.help
        assert families[spec.name].type == spec.kind
    labels = {s.labels["model"] for s in families["hilbert_sequences"].samples}
    assert labels == {"one", "two"}
    assert server.get("/metrics").text.count("# HELP hilbert_requests_total") == 1  # scraped again, not twice
    assert "te_" not in families and "# HELP te_" not in text


# -- documents --------------------------------------------------------------------------------------


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return found.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


TASK_ROUTES = ("rerank", "classify", "embeddings_sparse", "embeddings/colbert")


def test_the_openapi_document_is_sound_and_every_route_in_it_exists(serve):
    server = serve(runtime=FakeRuntime(384, outputs=frozenset(OutputType), num_labels=1))
    api = server.get("/openapi.json").json()
    assert api["openapi"] == "3.1.0" and api["info"]["version"]
    for reference in references(api):
        node: Any = api
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    operations = [(p, m, o) for p, methods in api["paths"].items() for m, o in methods.items()]
    assert len({o["operationId"] for _, _, o in operations}) == len(operations)
    paths = {
        "/v1/embeddings",
        "/openai/v1/embeddings",
        "/embeddings",
        "/v1/models",
        "/v1/models/{id}",
        "/models",
        "/rerank",
        "/classify",
        "/embeddings_sparse",
        "/embeddings/colbert",
        "/embeddings_image",
        "/embeddings_audio",
        "/v1/embeddings_image",
        "/v1/encode/{id}",
        "/v1/score/{id}",
        *(f"{v1}/{name}" for v1 in ("/v1", "/openai/v1") for name in TASK_ROUTES),
    }
    assert paths | {"/health", "/healthz", "/readyz", "/metrics"} <= set(api["paths"])
    for path, method, operation in operations:
        assert bool(re.search(r"\{id\}", path)) == ("parameters" in operation)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        more = {"json": body} if body else {}
        reply = httpx2.request(method, server.url + path.replace("{id}", NAME), **more)
        if path.endswith(("_image", "_audio")):  # not of this model
            assert reply.status_code == 400 and "It takes text." in reply.text
            continue
        assert reply.status_code == 200, (path, reply.text)
        assert reply.headers["content-type"].split(";")[0] in operation["responses"]["200"]["content"]


def test_a_key_shows_in_the_document(serve):
    api = serve(settings=ApiSettings(api_key="k")).get("/openapi.json").json()
    assert api["paths"]["/v1/embeddings"]["post"]["security"] == [{"key": []}]
    assert "security" not in api["paths"]["/health"]["get"]


@pytest.mark.parametrize(
    ("method", "path", "body", "type_", "status"),
    [
        ("post", "/v1/embeddings", {"input": "a"}, EmbeddingList, 200),
        ("post", "/v1/embeddings", {"input": []}, SharedError, 400),
        ("post", "/embeddings", {"input": "a"}, InfinityEmbeddingList, 200),
        ("post", "/embeddings", {"input": []}, FormError, 422),
        ("get", "/v1/models", None, ModelList, 200),
        ("get", f"/v1/models/{NAME}", None, Model, 200),
        ("get", "/models", None, InfinityModelList, 200),
    ],
)
def test_answers_are_what_the_document_says(server, method, path, body, type_, status):
    reply = server.post(path, body) if method == "post" else server.get(path)
    assert reply.status_code == status
    answer = msgspec.json.decode(reply.content, type=type_)
    assert msgspec.to_builtins(answer) == reply.json()  # nothing missing, nothing more


def test_the_page_needs_nothing_from_elsewhere(server):
    reply = server.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert "openapi.json" in reply.text
    assert not re.search(r"""(src|href|import|url)\s*[=(]\s*["']?(https?:)?//""", reply.text)


def test_the_root_leads_to_the_page(serve, server):
    reply = server.get("/", follow_redirects=False)
    assert reply.status_code == 307 and reply.headers["location"] == "/docs"
    bare = serve(settings=ApiSettings(redirect_slash="")).get("/")
    assert (bare.status_code, bare.text) == (200, "")  # health, as in TEI


# -- prefixes, proxies, browsers --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/bge", "/a/b"])
def test_a_prefix_is_a_second_place_for_every_route(serve, prefix):
    server = serve(settings=ApiSettings(url_prefix=prefix))
    for base in ("", prefix):
        assert "id" in server.post(f"{base}/embeddings", {"input": "a"}).json()
        assert "id" not in server.post(f"{base}/v1/embeddings", {"input": "a"}).json()
        assert server.get(f"{base}/models").status_code == 200
        assert server.get(f"{base}/docs").status_code == 200
        assert f"{prefix}/embeddings" in server.get(f"{base}/openapi.json").json()["paths"]
        assert "error" in server.get(f"{base}/v1/nothing").json()
    for path in ("/health", "/metrics", "/readyz"):
        assert server.get(path).status_code == 200
        assert server.get(prefix + path).status_code == 404


def test_the_prefix_v1_is_openais(serve):
    server = serve(settings=ApiSettings(url_prefix="/v1"))
    assert "id" not in server.post("/v1/embeddings", {"input": "a"}).json()
    assert "error" in server.post("/v1/embeddings", {"input": []}).json()
    assert server.get("/v1/models").json()["data"][0]["owned_by"] == "hilbert"
    assert server.get("/v1/docs").status_code == 200
    assert "id" in server.post("/embeddings", {"input": "a"}).json()


def test_behind_a_proxy_that_keeps_its_path_and_one_that_strips_it(serve):
    server = serve(settings=ApiSettings(proxy_root_path="/ml"))
    assert server.post("/ml/v1/embeddings", {"input": "a"}).status_code == 200
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200
    assert server.get("/", follow_redirects=False).headers["location"] == "/ml/docs"
    assert server.get("/ml/openapi.json").json()["servers"] == [{"url": "/ml"}]


def test_a_trailing_slash_and_head_are_forgiven(server):
    assert server.post("/v1/embeddings/", {"input": "a"}).status_code == 200
    head = httpx2.head(server.url + "/health")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0


def test_cors_is_off_unless_asked_for(serve, server):
    origin = {"origin": "https://page.example", "access-control-request-method": "POST"}
    closed = httpx2.options(server.url + "/v1/embeddings", headers=origin)
    assert "access-control-allow-origin" not in closed.headers
    open_ = serve(settings=ApiSettings(permissive_cors=True))
    asked = httpx2.options(open_.url + "/v1/embeddings", headers=origin)
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] in (
        "*",
        origin["origin"],
    )
    reply = open_.post("/v1/embeddings", {"input": "a"}, headers=origin)
    assert reply.status_code == 200 and "x-request-id" in reply.headers["access-control-expose-headers"]
    assert (
        "access-control-allow-origin"
        not in server.post("/v1/embeddings", {"input": "a"}, headers=origin).headers
    )
