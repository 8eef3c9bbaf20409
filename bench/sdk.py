"""Texts per second of a client: our SDK, the `openai` SDK, and plain `requests`, on the same server.

    python bench/sdk.py [--texts 20000] [--rounds 3] [--model FOLDER] [--quick]

Starts `hilbert serve`, hands 20,000 short texts to each client in turn, and prints JSON: texts per second and
the processor time of the client, medians over the rounds. `openai` and `requests` are used as their pages
show: one request of 256 texts after the other, and `openai` also from eight threads, which is what our SDK
does by itself. Every client's vectors are compared with those of the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

import hilbert
from machine import busy_share, commit, describe
from peers import bundled_model
from servers import hilbert_server, running
from workloads import Corpus, short

BATCH, THREADS = 256, 8
Rows = npt.NDArray[np.float32]


def by_hilbert(url: str, texts: list[str]) -> Rows:
    with hilbert.Client(url, show_progress=False) as client:
        return client.embed(texts)


def by_openai(url: str, texts: list[str], num_threads: int = 1) -> Rows:
    import openai

    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        ThreadPoolExecutor(num_threads) as pool,
    ):

        def embed(part: list[str]) -> list[list[float]]:
            return [item.embedding for item in client.embeddings.create(model="m", input=part).data]

        return np.array([row for rows in pool.map(embed, parts(texts)) for row in rows], np.float32)


def by_openai_threads(url: str, texts: list[str]) -> Rows:
    return by_openai(url, texts, THREADS)


def by_requests(url: str, texts: list[str]) -> Rows:
    import requests

    rows = []
    with requests.Session() as session:
        for part in parts(texts):
            reply = session.post(f"{url}/v1/embeddings", json={"model": "m", "input": part}, timeout=120)
            reply.raise_for_status()
            rows += [item["embedding"] for item in reply.json()["data"]]
    return np.array(rows, np.float32)


CLIENTS: dict[str, Callable[[str, list[str]], Rows]] = {
    "hilbert": by_hilbert,
    "openai": by_openai,
    "openai, 8 threads": by_openai_threads,
    "requests": by_requests,
}


def parts(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def measure(url: str, texts: list[str], num_rounds: int) -> dict[str, dict[str, float]]:
    first = by_hilbert(url, texts[:BATCH])
    seconds: dict[str, list[float]] = {name: [] for name in CLIENTS}
    busy: dict[str, list[float]] = {name: [] for name in CLIENTS}
    for _ in range(num_rounds):
        for name, client in CLIENTS.items():
            began, worked = time.perf_counter(), time.process_time()
            rows = client(url, texts)
            seconds[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - worked)
            assert np.abs(rows[:BATCH] - first).max() < 1e-3, f"{name} has other vectors"
    return {
        name: {
            "texts_per_second": round(len(texts) / statistics.median(seconds[name]), 1),
            "client_cpu_seconds": round(statistics.median(busy[name]), 2),
            "times_openai": round(statistics.median(seconds["openai"]) / statistics.median(seconds[name]), 2),
        }
        for name in CLIENTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of another than the bundled one")
    parser.add_argument("--quick", action="store_true", help="whether it works: 2,000 texts, one round")
    asked = parser.parse_args()
    num_texts, num_rounds = (2000, 1) if asked.quick else (asked.texts, asked.rounds)
    workload = short(Corpus(bundled_model() / "tokenizer.json"), num_texts)
    extra = ["--model-id", asked.model] if asked.model else []
    busy = busy_share()
    with running(hilbert_server(*extra)) as live:
        clients = measure(f"http://127.0.0.1:{live.port}", workload.texts, num_rounds)
    name = Path(asked.model).name if asked.model else "all-MiniLM-L6-v2"
    told = {"machine": describe(), "commit": commit(), "busy_before": round(busy, 2), "model": name}
    print(json.dumps({**told, "workload": workload.describe(), "clients": clients}, indent=1))


if __name__ == "__main__":
    main()
