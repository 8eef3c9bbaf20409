"""Which model a request means: by its path, its name, or what it asks for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hilbert.core import OutputType, Task
from hilbert.errors import ModelNotFound
from hilbert.models import Entry, Memory, Residency, State
from hilbert.scheduler import Admission


def entry(server: Any, name: str, prefix: str = "", aliases: tuple[str, ...] = ()) -> Entry:
    served = server.registry.find(name).served
    made = Entry(name, served.admission, served.metrics, aliases=aliases, prefix=prefix)
    made.served, made.spec, made.resident.state = served, served.spec, State.LOADED
    return made


@pytest.fixture
def three(serve: Any) -> Any:
    server = serve("bge-m3", "reranker", "e5")
    server.registry.replace(
        [
            entry(server, "bge-m3", "/bge", ("m3",)),
            entry(server, "reranker", "/team/reranker"),
            entry(server, "e5", "/"),
        ]
    )
    return server


def answered(server: Any, path: str, model: str | None = None) -> str:
    body = {"input": ["hej fra Aarhus"]} | ({} if model is None else {"model": model})
    reply = server.post(path, body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["model"])


def test_the_prefix_selects_and_the_name_is_informational(three) -> None:
    for name in ("bge-m3", "e5", "anything", None):
        for path in ("/bge/v1/embeddings", "/bge/embeddings", "/bge/openai/v1/embeddings"):
            assert answered(three, path, name) == "bge-m3"
        assert answered(three, "/team/reranker/embeddings", name) == "reranker"
    assert three.post("/bge/v1/nothing", {"input": "a"}).status_code == 404
    assert three.post("/team/v1/embeddings", {"input": "a"}).status_code == 404
    assert three.post("/bgeX/v1/embeddings", {"input": "a"}).status_code == 404
    ranked = three.post("/bge/rerank", {"query": "a", "documents": ["a", "b"], "model": "e5"})
    assert ranked.status_code == 200 and ranked.json()["model"] == "bge-m3"


def test_at_the_root_other_names_go_to_the_default(three) -> None:
    for name, model in {"bge-m3": "bge-m3", "m3": "bge-m3", "reranker": "reranker", "x": "e5"}.items():
        assert answered(three, "/v1/embeddings", name) == model
    assert answered(three, "/v1/embeddings") == "e5"


def test_each_prefix_describes_itself(three) -> None:
    listed = three.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["bge-m3", "reranker", "e5"]
    assert [m["prefix"] for m in listed["data"]] == ["/bge", "/team/reranker", "/"]
    assert [m["id"] for m in three.get("/bge/v1/models").json()["data"]] == ["bge-m3"]
    assert [m["id"] for m in three.get("/bge/models").json()["data"]] == ["bge-m3"]
    assert three.get("/bge/health").json()["models"] == {"bge-m3": "ready"}
    document = three.get("/bge/openapi.json").json()
    assert document["servers"] == [{"url": "/bge"}] and "/embeddings_sparse" in document["paths"]
    assert three.get("/openapi.json").json()["servers"] == [{"url": "/"}]


def test_one_object_serves_openai_and_sie(three) -> None:
    body = three.get("/v1/models").json()
    assert body["object"] == "list" and body["data"] == body["models"]
    model = body["data"][0]
    assert model["id"] == model["name"] == "bge-m3" and model["aliases"] == ["m3"]
    assert model["loaded"] is True and model["state"] == "loaded" and model["last_error"] is None
    assert "dense" in model["outputs"] and model["dims"]["dense"] == model["dimensions"] == 384
    assert model["max_sequence_length"] == model["max_model_len"] == 256
    assert model["profiles"] == {"default": {"is_default": True}} and model["inputs"] == ["text"]
    assert model["limits"] == {"max_concurrent_requests": 1024, "max_queued_tokens": 1_000_000}
    answered(three, "/bge/embeddings")
    stats = three.get("/v1/models/m3").json()["stats"]
    assert stats["requests"] == 1 and stats["tokens"] > 3


def test_a_model_that_is_away_is_listed(three) -> None:
    away = Entry("away", Admission(10, 10))
    three.registry.replace([*three.registry.list(), away])
    model = three.get("/v1/models/away").json()
    assert model["state"] == "available" and model["dimensions"] is None and model["root"] is None
    assert model["loaded"] is False and model["dims"] == {} and model["tasks"] == []


def test_an_operator_names_the_model(three) -> None:
    for body in ({}, {"model": None}, {"model": ""}):
        reply = three.post("/admin/models/unload", body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "model"
        assert reply.json()["error"]["message"].startswith("`model` is missing; name the one that is meant. ")
        assert "e5 (at /)" in reply.json()["error"]["message"]
    assert three.post("/admin/models/unload", {"model": "nope"}).status_code == 404


def test_a_model_that_an_edit_replaces_meanwhile(three, monkeypatch) -> None:
    (now, *_), registry = three.registry.list(), three.registry
    before = Entry("bge-m3", Admission(10, 10), memory=Memory(Residency(1), cast(Any, None)))
    named = iter([before, now])  # the operator asks, the edit comes, and the model is another
    monkeypatch.setattr(registry, "named", lambda name: next(named))
    reply = three.post("/admin/models/load", {"model": "bge-m3"})
    assert reply.status_code == 200 and reply.json()["state"] == "loaded"


def test_without_a_name_the_first_that_can(serve, served) -> None:
    server = serve("one", "two")
    assert answered(server, "/v1/embeddings") == "one"
    with pytest.raises(ModelNotFound, match="one, two"):
        server.registry.choose("three", Task.EMBED)
    with served(OutputType.SPARSE) as sparse:
        model = sparse.registry.list()[0].served
        both = [entry(server, "one"), Entry.of(model)]
        both[1].spec = None  # not seen yet, so nobody knows what it can do
        server.registry.replace(both)
        assert server.registry.choose(None, Task.EMBED).name == "one"


def test_prefixes_are_unique_and_keep_away_from_the_servers_own_paths(three) -> None:
    with pytest.raises(ValueError, match="two models have the prefix '/bge'"):
        three.registry.replace([entry(three, "bge-m3", "/bge"), entry(three, "e5", "/bge")])
    for prefix in ("/v1", "/rerank/x", "/metrics", "/docs"):
        with pytest.raises(ValueError, match="own routes"):
            three.registry.replace([entry(three, "e5", prefix)])
    assert answered(three, "/bge/embeddings") == "bge-m3"  # nothing has changed


def test_a_prefix_that_went_away_is_not_found(three) -> None:
    three.registry.replace([entry(three, "e5", "/"), entry(three, "reranker")])
    assert three.post("/bge/embeddings", {"input": "a"}).status_code == 404
    with pytest.raises(ModelNotFound, match="any more"):
        three.registry.choose(None, Task.EMBED, "/bge")
