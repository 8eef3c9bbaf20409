"""`hilbert runpod` on RunPod's SDK: its loop before a stand-in of the platform, its ways to try a worker."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients_house import World, library
from platform_house import BUNDLED, Platform, worker, worker_environ

library("runpod")
CLIENT = "runpod, the worker's SDK"


@pytest.fixture(scope="module")
def platform(world: World) -> Iterator[Platform]:
    stand_in = Platform()
    with worker(environ=worker_environ(world, **stand_in.environ, RUNPOD_MAX_CONCURRENCY="8")) as process:
        yield stand_in
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    stand_in.server.shutdown()
    stand_in.server.server_close()


def rows(output: dict[str, Any]) -> list[list[float]]:
    return [row["embedding"] for row in output["data"]]


@pytest.mark.row(CLIENT, "the loop: embeddings, native and OpenAI's route")
def test_embeddings_of_jobs(platform: Platform, world: World) -> None:
    body = {"model": BUNDLED, "input": world.texts}
    native = platform.ask(body)
    world.same(rows(native), "dense")
    assert set(native) == {"object", "model", "data", "usage"}
    [through_openai] = platform.ask({"openai_route": "/v1/embeddings", "openai_input": body})
    assert through_openai == native
    small = platform.ask({**body, "dimensions": 64, "modality": "text"})
    world.same(rows(small), "dense_64")


@pytest.mark.row(CLIENT, "the loop: images by modality")
def test_images_of_jobs(platform: Platform, world: World) -> None:
    uris = [
        "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode() for path in world.images
    ]
    found = platform.ask({"model": world.folders["clip"], "input": uris, "modality": "image"})
    world.same(rows(found), "clip_images", 1e-4)


@pytest.mark.row(CLIENT, "the loop: rerank is plain JSON, native and OpenAI's route")
def test_rerank_of_jobs(platform: Platform, world: World) -> None:
    job = {"model": world.folders["reranker"], "query": world.query, "docs": world.documents}
    found = platform.ask(job)
    ranking = [(row["index"], row["relevance_score"]) for row in found["results"]]
    world.same_ranking(ranking)
    assert found["scores"] == [score for _, score in sorted(ranking)]
    with_docs = platform.ask({**job, "return_docs": True})
    assert with_docs["docs"] == [world.documents[index] for index, _ in ranking]
    assert platform.ask({"openai_route": "/v1/rerank", "openai_input": job}) == [found]


@pytest.mark.row(CLIENT, "the loop: models")
def test_models_of_jobs(platform: Platform, world: World) -> None:
    listed = platform.ask({"openai_route": "/v1/models"})
    assert [model["id"] for model in listed["data"]].index(BUNDLED) == 0 and len(listed["data"]) == 3
    assert all(isinstance(model["stats"], dict) for model in listed["data"])


@pytest.mark.row(CLIENT, "the loop: an error is an output and names the input")
def test_errors_of_jobs(platform: Platform, world: World) -> None:
    for job, shown in (
        ({"model": BUNDLED, "input": ["a", 1]}, "input[1]"),
        ({"model": world.folders["clip"], "input": ["a", "//"], "modality": "image"}, "input[0]: "),
        ({"model": BUNDLED, "input": "a", "modality": "image"}, "does not support modality 'image'"),
        ({"model": "nobody", "input": "a"}, "Available: " + BUNDLED),
        ({"openai_route": "/v1/nothing"}, "Invalid OpenAI Route"),
        ({}, "Invalid input"),
        ("text", "Invalid input"),
    ):
        error = platform.ask(job)
        assert (error["object"], error["type"], error["code"]) == ("error", "BadRequestError", 400)
        assert shown in error["message"], error


@pytest.mark.row(CLIENT, "the loop: jobs run at a time, and one that is cancelled ends")
def test_jobs_run_at_a_time(platform: Platform, world: World) -> None:
    heavy = {"model": BUNDLED, "input": ["one more guest " * 60] * 300}
    platform.send("heavy", heavy)
    platform.send("cancelled", heavy)
    for index in range(40):
        platform.send(f"light-{index}", {"model": BUNDLED, "input": world.texts[0]})
    first = platform.output("light-0")
    assert "heavy" not in platform.outputs and "cancelled" not in platform.outputs
    platform.stop_job("cancelled")
    assert all(platform.output(f"light-{index}") == first for index in range(40))
    assert len(platform.output("heavy")["data"]) == 300
    assert "cancelled" not in platform.outputs
    assert any("heavy" in named for named in platform.pings)


@pytest.mark.row(CLIENT, "--rp_serve_api")
def test_the_development_server(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--rp_serve_api", "--rp_api_port", str(port), "--rp_api_host", "127.0.0.1")
    with worker(*flags, environ=worker_environ(world)) as process:

        def run_sync(given: Any) -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/runsync",
                json.dumps({"input": given}).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        _wait_for(port)
        done = run_sync({"model": BUNDLED, "input": world.texts})
        assert done["status"] == "COMPLETED"
        world.same(rows(done["output"]), "dense")
        job = {"model": world.folders["reranker"], "query": world.query, "docs": world.documents}
        ranking = run_sync(job)["output"]["results"]
        world.same_ranking([(row["index"], row["relevance_score"]) for row in ranking])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.row(CLIENT, "--test_input, test_input.json")
def test_one_job(world: World, tmp_path: Path) -> None:
    environ = worker_environ(world, MODEL_NAMES=BUNDLED)
    image = Path(__file__).parents[3] / "deploy/runpod"  # what its Dockerfile copies and runs
    for name in ("test_input.json", "handler.py"):
        (tmp_path / name).write_bytes((image / name).read_bytes())
    for flags in ((), ("--test_input", json.dumps({"input": {"input": "Hello, world!"}}))):
        ended = subprocess.run(
            [sys.executable, "handler.py", *flags],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert "completed successfully" in ended.stdout and "'embedding': [" in ended.stdout
        assert "'object': 'error'" not in ended.stdout


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the development server did not come up")
