"""RunPod's client SDK, sync and async, against `hilbert serve --runpod-api`: only its base URL is another."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from clients_house import World, library

runpod = library("runpod")
CLIENT = "runpod, the client SDK"


@pytest.fixture
def endpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(runpod, "endpoint_url_base", world.open + "/v2")
    return runpod.Endpoint("my-endpoint", api_key="anything")


def rows(output: dict[str, Any]) -> list[list[float]]:
    return [row["embedding"] for row in output["data"]]


@pytest.mark.row(CLIENT, "run_sync: embeddings, rerank, models")
def test_run_sync(endpoint: Any, world: World) -> None:
    world.same(rows(endpoint.run_sync({"input": {"model": "minilm", "input": world.texts}})), "dense")
    job = {"model": "reranker", "query": world.query, "docs": world.documents}
    found = endpoint.run_sync({"input": job})
    world.same_ranking([(row["index"], row["relevance_score"]) for row in found["results"]])
    listed = endpoint.run_sync({"openai_route": "/v1/models"})
    assert "minilm" in [model["id"] for model in listed["data"]]


@pytest.mark.row(CLIENT, "run, status, output, stream, cancel, health, purge_queue")
def test_run(endpoint: Any, world: World) -> None:
    job = endpoint.run({"input": {"model": "minilm", "input": world.texts}})
    world.same(rows(job.output(timeout=30)), "dense")
    assert job.status() == "COMPLETED"
    world.same([row for part in job.stream() for row in rows(part)], "dense")
    long = endpoint.run({"input": {"model": "minilm", "input": ["one more guest " * 60] * 300}})
    assert long.cancel()["status"] == "CANCELLED" and long.status() == "CANCELLED"
    assert endpoint.health()["jobs"]["completed"] >= 1
    assert endpoint.purge_queue()["status"] == "completed"


@pytest.mark.row(CLIENT, "AsyncioEndpoint: run, status, output")
def test_run_async(endpoint: Any, world: World) -> None:
    aiohttp = library("aiohttp")

    async def main() -> Any:
        async with aiohttp.ClientSession() as session:
            job = await runpod.AsyncioEndpoint("my-endpoint", session, api_key="anything").run(
                {"model": "minilm", "input": world.texts}
            )
            return await job.output(timeout=30)

    world.same(rows(asyncio.run(main())), "dense")


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key")
def test_errors(endpoint: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    error = endpoint.run_sync({"input": {"model": "minilm", "input": ["a", 1]}})
    assert error["object"] == "error" and error["code"] == 400 and "input[1]" in error["message"]
    monkeypatch.setattr(runpod, "endpoint_url_base", world.guarded + "/v2")
    job = {"input": {"model": "minilm", "input": "a"}}
    with pytest.raises(RuntimeError, match="401"):
        runpod.Endpoint("e", api_key="wrong").run_sync(job)
    guarded = runpod.Endpoint("e", api_key=world.key)
    with world.full():
        deadline = time.monotonic() + 30
        while (refused := guarded.run_sync(job)).get("object") != "error":
            assert time.monotonic() < deadline
    assert (refused["code"], refused["type"]) == (429, "RateLimitError")
