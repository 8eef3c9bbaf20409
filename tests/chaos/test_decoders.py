"""Whatever a body holds, the answer is one of ours; `fuzz_decoders.py` goes on for as long as one likes."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from fuzz_decoders import application, call, check, fuzz, mutated, seeds_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def app() -> Any:
    with application() as it:
        yield it


@pytest.fixture(scope="module")
def seeds(app: Any) -> dict[str, Any]:
    found = asyncio.run(seeds_of(app))
    assert {"/v1/embeddings", "/embeddings", "/v1/rerank", "/v1/classify", "/v1/encode/m"} <= found.keys()
    return found


def test_the_examples_of_the_document_are_answered(app: Any, seeds: dict[str, Any]) -> None:
    async def statuses() -> dict[str, int]:
        answers = {path: await call(app, "POST", path, json.dumps(seeds[path]).encode()) for path in seeds}
        return {path: status for path, (status, _, _) in answers.items()}

    found = asyncio.run(statuses())
    refused = {path for path, status in found.items() if status != 200}
    assert all("image" in path or "audio" in path for path in refused), found  # the model reads texts only


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_mutated_bodies(app: Any, seeds: dict[str, Any], rng: random.Random) -> None:
    path = rng.choice(sorted(seeds))
    body, media_type = mutated(rng, seeds[path])
    check(path, body, asyncio.run(call(app, "POST", path, body, media_type)))


@pytest.mark.chaos
def test_mutated_bodies_for_a_minute() -> None:
    counts = asyncio.run(fuzz(60.0, seed=7))
    print(f"{counts.total()} inputs")
    assert counts.total() > 5000
