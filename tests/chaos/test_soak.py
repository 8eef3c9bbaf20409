"""Many requests of random shape and size: what the server holds does not grow."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from chaos_house import LOAD, Held, address_of, serving
from cli_house import Server

from hilbert.testing.models import tiny_model

WORDS = [
    "room",
    "guest",
    "hotel",
    "night",
    "infinite",
    "corridor",
    "zebra",
    "Århus",
    "Hyvää",
    "日本語",
    "!?",
    "1729",
    "ünïcödé",
    "🏨",
]


def bodies(rng: random.Random) -> dict[str, list[dict]]:
    """Requests by route, some of which are refused."""

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=int(200 ** rng.random())))

    def texts() -> list[str]:
        return [text() for _ in range(int(16 ** rng.random()))]

    def embed() -> dict:
        more = rng.choice(
            [{}, {}, {}, {"encoding_format": "base64"}, {"dimensions": rng.randint(-1, 9)}, {"model": "none"}]
        )
        return {
            "input": rng.choice([texts(), texts(), text(), [rng.randint(0, 400) for _ in range(9)]]),
            **more,
        }

    return {
        "/v1/embeddings": [embed() for _ in range(400)],
        "/embeddings": [embed() for _ in range(100)],
        "/v1/rerank": [
            {"query": text(), "documents": texts(), "top_n": rng.randint(1, 20)} for _ in range(100)
        ],
        "/v1/encode/x": [{"items": [{"text": text()} for _ in texts()]} for _ in range(100)],
    }


def load(server: Server, file: Path, route: str, count: int) -> int:
    command = [*LOAD, "closed", "--port", str(address_of(server)[1]), "--path", route, "--bodies", str(file)]
    done = subprocess.run(
        [*command, "--connections", "16", "--count", str(count)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)["requests"]


@pytest.mark.parametrize("number", [1000, pytest.param(100_000, marks=pytest.mark.chaos)])
def test_random_requests_leave_nothing_behind(static: str, tmp_path: Path, cache: str, number: int) -> None:
    is_short = number == 1000
    model = static if is_short else str(tiny_model("bert", tmp_path / "bert"))
    files = {}
    for route, requests in bodies(random.Random(5)).items():
        files[route] = tmp_path / (route.strip("/").replace("/", "_") + ".jsonl")
        files[route].write_text("\n".join(json.dumps(body) for body in requests))
    share = {"/v1/embeddings": 0.55, "/embeddings": 0.15, "/v1/rerank": 0.15, "/v1/encode/x": 0.15}

    def run(server: Server, count: int) -> int:
        return sum(load(server, files[route], route, int(count * share[route])) for route in files)

    with serving("-m", model, "--cache-dir", cache, "--log-level", "error") as server:
        (worker,) = server.children
        num_sent = run(server, number // 4)
        before = [Held.by(pid) for pid in (server.process.pid, worker)]
        num_sent += run(server, number - number // 4)
        after = [Held.by(pid) for pid in (server.process.pid, worker)]
        assert server.children == [worker]
        assert server.metric("hilbert_queue_requests") == server.metric("hilbert_queue_tokens") == 0
        answered = server.metric("hilbert_requests_total")
        assert server.stop() == 0
    print(f"{num_sent} requests; front and worker before {before}, after {after}")
    assert num_sent >= number - 8 and answered > 0.5 * number
    for then, now in zip(before, after, strict=True):
        assert now.resident - then.resident < (8 if is_short else 25)
        assert now.files <= then.files and now.threads <= then.threads + 1
    assert not [line for line in server.errors if "Traceback" in line]
