"""The 32 promises of seed 000 (three models behind one authenticating gateway), one test each.

One process stands in for its five containers: three tiny models of the same kinds, a prefix for each, and a
keys file. What needs Docker, Traefik or a GPU is a check of deploy/; nginx itself runs in tests/deploy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cli_house import Server
from compose_house import BASE, COMPOSE, SERVER, compose

from hilbert.access import keyfile
from hilbert.config import load
from hilbert.testing.models import tiny_model

ROOT = Path(__file__).parents[2]
BGE, RERANKER, E5 = "bge-m3", "bge-reranker-v2-m3", "multilingual-e5-large"
SERVICES = ("bge-m3", "bge-reranker", "e5-large")
NGINX = (ROOT / "deploy/nginx/default.conf.template").read_text()
ON_SERVER = {"COMPOSE_SERVER_DOMAIN": "e.example"}
TOKEN = "tok_abc123"


@dataclass
class Hotel:
    server: Server
    keys: Path

    def post(
        self, path: str, body: dict[str, Any], token: str | None = TOKEN, **more: str
    ) -> httpx2.Response:
        headers = dict(more) if token is None else {"authorization": f"Bearer {token}", **more}
        return httpx2.post(self.server.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, token: str | None = TOKEN) -> httpx2.Response:
        return self.server.get(path, **({} if token is None else {"authorization": f"Bearer {token}"}))

    def status(self, token: str | None) -> int:
        return self.get("/v1/models", token).status_code

    def embed(self, text: str, path: str = "/v1/embeddings") -> np.ndarray:
        body = self.post(path, {"model": "x", "input": [text]}).json()
        return np.array(body["data"][0]["embedding"])

    def log_after(self, seen: int) -> str:
        return "".join(self.server.errors[seen:])


@pytest.fixture(scope="module")
def hotel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hotel]:
    folder = tmp_path_factory.mktemp("hotel")
    tiny_model("xlm-roberta", folder / BGE, head="m3", pooling="cls")
    tiny_model("xlm-roberta", folder / RERANKER, head="classifier", num_labels=1)
    tiny_model("xlm-roberta", folder / E5, seed=1)
    keys = folder / "api_keys.txt"
    keys.write_text(f"{TOKEN} # alice <alice@example.com>\n")
    flags = ["serve", "--port", "0", "--cache-dir", str(folder / "cache"), "--keys-file", str(keys)]
    for name, prefix in ((BGE, "/bge"), (RERANKER, "/reranker"), (E5, "/")):
        flags += ["-m", str(folder / name), "--served-model-name", name, "--prefix", prefix]
    server = Server((*flags, "--dtype", "float32", "--trusted-proxies", "private"), {}, wait=True)
    yield Hotel(server, keys)
    server.stop()


def test_promise_01_one_address_for_all_models(hotel: Hotel) -> None:
    models = {
        hotel.post(path, {"input": ["a"]}).json()["model"]
        for path in ("/v1/embeddings", "/bge/v1/embeddings")
    }
    models.add(hotel.post("/reranker/rerank", {"query": "a", "documents": ["b"]}).json()["model"])
    assert models == {BGE, RERANKER, E5}


def test_promise_02_without_a_key_401_and_no_model_is_reached(hotel: Hotel) -> None:
    before = hotel.server.metric("hilbert_sequences_total")
    for path in ("/v1/embeddings", "/bge/v1/embeddings", "/bge/embeddings_sparse", "/bge/embeddings/colbert"):
        assert hotel.post(path, {"input": ["a"]}, None).status_code == 401
    assert hotel.post("/reranker/rerank", {"query": "a", "documents": ["b"]}, None).status_code == 401
    assert hotel.server.metric("hilbert_sequences_total") == before


def test_promise_03_an_unknown_key_401(hotel: Hotel) -> None:
    for token in ("tok_", "tok_abc1234", "TOK_ABC123", "alice"):
        assert hotel.status(token) == 401


def test_promise_04_a_known_key_passes(hotel: Hotel) -> None:
    assert hotel.post("/v1/embeddings", {"input": ["a"]}).status_code == 200


def test_promise_05_one_token_a_line_with_a_label(hotel: Hotel) -> None:
    before = hotel.keys.read_bytes()
    lines = [
        "# staff",
        "",
        "tok_1 # alice <alice@example.com>",
        "tok_2   #  two words  ",
        "  tok_3#c",
        "tok_4",
    ]
    for end in ("\n", "\r\n"):
        hotel.keys.write_text(end.join(lines), newline="")
        assert [hotel.status(f"tok_{n}") for n in range(6)] == [401, 200, 200, 200, 200, 401]
    hotel.keys.write_bytes(before)


def test_promise_06_an_edit_counts_for_the_next_request(hotel: Hotel) -> None:
    before = hotel.keys.read_bytes()
    for number in range(20):
        hotel.keys.write_text(f"tok_{number:02} # a\n")  # always the same size
        assert (hotel.status(f"tok_{number:02}"), hotel.status(TOKEN)) == (200, 401)
        new = hotel.keys.with_name("new")
        new.write_bytes(before)
        os.replace(new, hotel.keys)
        assert (hotel.status(f"tok_{number:02}"), hotel.status(TOKEN)) == (401, 200)
    os.truncate(hotel.keys, 0)
    assert hotel.status(TOKEN) == 401
    hotel.keys.write_bytes(before)
    assert hotel.status(TOKEN) == 200


def test_promise_07_a_folder_in_place_of_the_file_denies_and_is_named(start, static, tmp_path: Path) -> None:
    (tmp_path / "api_keys.txt").mkdir()  # what Docker makes of a mount whose source is missing
    server = start("-m", static, "--keys-file", str(tmp_path / "api_keys.txt"))
    assert server.get("/v1/models", authorization=f"Bearer {TOKEN}").status_code == 401
    assert server.get("/healthz").status_code == 200
    (tmp_path / "api_keys.txt").rmdir()
    (tmp_path / "api_keys.txt").write_text(f"{TOKEN} # a\n")
    assert server.get("/v1/models", authorization=f"Bearer {TOKEN}").status_code == 200
    server.stop()
    assert "is a folder (Docker makes one" in "".join(server.errors)


def test_promise_08_half_a_file_and_no_file_let_nobody_in(hotel: Hotel) -> None:
    before = hotel.keys.read_bytes()
    for broken in (
        before[: len(TOKEN) - 2],
        b"\xff\xfe" + before,
        b"\0" * 40,
        b"\n",
        b"tok_abc123 oops # a\n",
    ):
        hotel.keys.write_bytes(broken)
        assert hotel.status(TOKEN) == 401
    hotel.keys.unlink()
    assert hotel.status(TOKEN) == 401
    hotel.keys.write_bytes(before)
    assert hotel.status(TOKEN) == 200


def test_promise_09_every_verdict_is_logged_and_no_token(hotel: Hotel) -> None:
    seen = len(hotel.server.errors)
    forwarded = {"x-forwarded-for": "203.0.113.9"}
    hotel.post("/bge/v1/embeddings", {"input": ["a"]}, **forwarded)
    hotel.post("/bge/v1/embeddings", {"input": ["a"]}, "tok_mallory", **forwarded)
    hotel.post("/v1/embeddings", {"input": ["a"]}, None)
    hotel.get("/healthz", None)
    log = hotel.log_after(seen)
    assert " ok 203.0.113.9 [alice <alice@example.com>] POST /bge/v1/embeddings\n" in log
    assert "401 deny 203.0.113.9 [-] POST /bge/v1/embeddings\n" in log
    assert "401 deny 127.0.0.1 [-] POST /v1/embeddings\n" in log
    assert "tok_" not in "".join(hotel.server.errors)


def test_promise_10_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table = keyfile.parse_keys(b"tok_1 # a")
    compared: list[tuple[int, int]] = []
    real = keyfile.compare_digest
    monkeypatch.setattr(
        keyfile, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b)
    )
    assert table.find(b"tok_1") and not table.find(b"tok_2")
    assert compared == [(32, 32), (32, 32)]  # as much work for a stranger as for a guest


def test_promise_11_authorization_is_forwarded_and_the_servers_have_no_key() -> None:
    assert "proxy_set_header Authorization" not in NGINX and "proxy_pass_request_headers" not in NGINX
    for files in ((BASE,), (BASE, SERVER)):
        services = compose(*files, **ON_SERVER)["services"]
        for name in SERVICES:
            assert "api-key" not in str(services[name]) and "KEY" not in str(services[name]["environment"])
            assert services[name]["networks"] == ["app"] and "ports" not in services[name]


def test_promise_12_the_prefix_selects_and_is_stripped(hotel: Hotel) -> None:
    for prefix, name in (("/bge", BGE), ("/reranker", RERANKER)):
        assert [model["id"] for model in hotel.get(f"{prefix}/v1/models").json()["data"]] == [name]
    assert hotel.post("/embeddings", {"input": ["a"]}).json()["model"] == E5
    assert hotel.post("/bge/bge/v1/embeddings", {"input": ["a"]}).status_code == 404


def test_promise_13_the_bodys_model_is_informational(hotel: Hotel) -> None:
    for model in (BGE, "BAAI/bge-m3", E5, "gpt-9", None):
        body = {"input": ["a"]} if model is None else {"input": ["a"], "model": model}
        reply = hotel.post("/bge/v1/embeddings", body)
        assert reply.status_code == 200 and reply.json()["model"] == BGE
    assert hotel.post("/v1/embeddings", {"input": ["a"], "model": "gpt-9"}).json()["model"] == E5


def test_promise_14_openais_embeddings_and_no_template(hotel: Hotel) -> None:
    for path in ("/v1/embeddings", "/bge/v1/embeddings"):
        body = hotel.post(path, {"model": "x", "input": ["hej fra Aarhus", "hello from Aarhus"]}).json()
        assert body["object"] == "list" and [item["index"] for item in body["data"]] == [0, 1]
        assert all(len(item["embedding"]) == 64 for item in body["data"])
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    plain, asked = hotel.embed("hvad er en vektor?"), hotel.embed("query: hvad er en vektor?")
    assert not np.allclose(plain, asked, atol=1e-3)  # the prefix is the caller's, and counts


def test_promise_15_sparse_weights(hotel: Hotel) -> None:
    body = hotel.post("/bge/embeddings_sparse", {"model": BGE, "input": ["hej fra Aarhus", "b"]}).json()
    for item in body["data"]:
        assert item["embedding"] and all(int(token) >= 0 and w > 0 for token, w in item["embedding"].items())


def test_promise_16_one_vector_for_each_token(hotel: Hotel) -> None:
    [item] = hotel.post("/bge/embeddings/colbert", {"model": BGE, "input": ["hej fra Aarhus"]}).json()["data"]
    rows = np.array(item["embedding"])
    assert rows.ndim == 2 and len(rows) > 3
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_promise_17_v1_embeddings_are_dense(hotel: Hotel) -> None:
    vector = hotel.embed("hej", "/bge/v1/embeddings")
    assert vector.shape == (64,) and abs(np.linalg.norm(vector) - 1) < 1e-5


def test_promise_18_rerank_sorted_and_at_most_top_n(hotel: Hotel) -> None:
    documents = [
        "Aarhus er Danmarks næststørste by.",
        "Paris er hovedstaden i Frankrig.",
        "Aarhus i Jylland.",
    ]
    for path in ("/reranker/rerank", "/reranker/v1/rerank"):
        for top_n in (1, 2, 3):
            body = {"model": RERANKER, "query": "hvor ligger Aarhus?", "documents": documents, "top_n": top_n}
            results = hotel.post(path, body).json()["results"]
            scores = [entry["relevance_score"] for entry in results]
            assert len(results) == top_n and scores == sorted(scores, reverse=True)
            assert {entry["index"] for entry in results} <= {0, 1, 2}


def test_promise_19_any_language(hotel: Hotel) -> None:
    documents = ["Århus på æ, ø og å", "日本語", "🙂", "العربية"]
    body = {"query": "blåbærgrød", "documents": documents, "return_documents": True}
    results = hotel.post("/reranker/rerank", body).json()["results"]
    for entry in results:
        shown = entry["document"]
        assert (shown if isinstance(shown, str) else shown["text"]) == documents[entry["index"]]
    assert hotel.post("/v1/embeddings", {"input": documents}).status_code == 200


def test_promise_20_models_of_the_default_behind_a_key(hotel: Hotel) -> None:
    assert E5 in {model["id"] for model in hotel.get("/v1/models").json()["data"]}  # among all of them
    assert hotel.get("/v1/models", None).status_code == 401  # the README's probe without a key contradicts it


def test_promise_21_healthz_needs_no_key(hotel: Hotel) -> None:
    assert [hotel.get(path, None).status_code for path in ("/healthz", "/health", "/readyz")] == [200] * 3


def test_promise_22_every_prefix_describes_itself(hotel: Hotel) -> None:
    for prefix in ("/bge", "/reranker", ""):
        assert "openapi" in hotel.get(f"{prefix}/openapi.json", None).json()


def test_promise_23_five_services_each_with_a_check_of_its_own() -> None:
    services = compose(BASE)["services"]
    for name in ("nginx", "authz", *SERVICES):
        assert services[name]["healthcheck"]["test"] and services[name]["restart"] == "unless-stopped"
        assert not set(services[name]["depends_on"]) & set(SERVICES)  # none waits for another model
    # One killed answers 502 behind its own prefix only: tests/deploy/test_nginx.py


def test_promise_24_one_cache_for_all() -> None:
    services = compose(BASE)["services"]
    assert {str(services[name]["volumes"]) for name in (*SERVICES, "prepare")} == {"['./hf_cache:/hf-cache']"}
    image = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert "ENV HF_HOME=/hf-cache\n" in image and "ENV HILBERT_CACHE_DIR=/hf-cache/" in image


def options(service: str, *files: str, **variables: str) -> Any:
    words = compose(*files, **ON_SERVER, **variables)["services"][service]["command"]
    return load(words[1:], {})[0].models[0]


def test_promise_25_types() -> None:
    for service in SERVICES:
        assert options(service, BASE).dtype == "float32"
        assert options(service, BASE, SERVER).dtype == "float16"
    assert load(["--dtype=int8"], {})[0].models[0].dtype == "int8"


def test_promise_26_batch_sizes() -> None:
    assert [options(name, BASE).max_batch_requests for name in SERVICES] == [8, 8, 8]
    assert [options(name, BASE, SERVER).max_batch_requests for name in SERVICES] == [16, 8, 32]
    given = {"BGE_M3_BATCH_SIZE": "1", "BGE_RERANKER_BATCH_SIZE": "2", "E5_LARGE_BATCH_SIZE": "3"}
    for files in ((BASE,), (BASE, SERVER)):
        assert [options(name, *files, **given).max_batch_requests for name in SERVICES] == [1, 2, 3]


def test_promise_27_a_gpu_for_each() -> None:
    services = compose(BASE, SERVER, **ON_SERVER, BGE_M3_GPU="1", BGE_RERANKER_GPU="2")["services"]
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"] for name in SERVICES]
    assert [device["device_ids"] for [device] in devices] == [["1"], ["2"], ["0"]]


def test_promise_28_the_first_lever_on_one_16_gb_card() -> None:
    assert options("bge-m3", BASE, SERVER, BGE_M3_BATCH_SIZE="8").max_batch_requests == 8


def test_promise_29_the_cpu_is_no_smoke_test(hotel: Hotel) -> None:
    seconds = min(
        hotel.post("/bge/v1/embeddings", {"input": ["hej"]}).elapsed.total_seconds() for _ in range(5)
    )
    assert seconds < 1  # theirs: seconds per request; how much less is in bench/


def test_promise_30_the_override_and_its_variables() -> None:
    nginx = compose(BASE, SERVER, **ON_SERVER)["services"]["nginx"]
    assert nginx["ports"] is None
    labels = nginx["labels"]
    assert labels["traefik.http.routers.hilbert.rule"] == "Host(`e.example`)"
    assert labels["traefik.http.middlewares.hilbert-https.redirectscheme.scheme"] == "https"
    assert compose(BASE)["networks"]["frontend"] == {"external": True}
    example = (COMPOSE / ".env.example").read_text()
    for name in ("COMPOSE_FILE", "COMPOSE_DOMAIN", "COMPOSE_SERVER_DOMAIN", "INFINITY_IMAGE_VERSION"):
        assert re.search(rf"\b{name}\b", example)


def test_promise_31_unprivileged_on_a_random_host_port() -> None:
    nginx = compose(BASE)["services"]["nginx"]
    assert nginx["image"].startswith("nginxinc/nginx-unprivileged:") and nginx["ports"] == ["8080"]
    assert (ROOT / "deploy/docker/Dockerfile").read_text().count("USER 10001:10001") == 3


def test_promise_32_large_bodies_long_answers_and_502(hotel: Hotel) -> None:
    words = "hej fra Aarhus " * 4000
    assert hotel.post("/bge/v1/embeddings", {"input": [words] * 80}).status_code == 200  # 5 MB
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    [seconds] = re.findall(r"^    proxy_read_timeout (\d+)s;", NGINX, re.M)
    assert int(megabytes) >= 32 and int(seconds) >= 120
    assert "error_page 502 504 = @model_away" in NGINX
