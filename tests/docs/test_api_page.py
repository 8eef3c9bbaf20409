"""The answers on the pages are what a server answers: every request is sent, every number compared."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from cli_house import Server

from hilbert.testing.extractors import tiny_extractor
from hilbert.testing.models import tiny_model
from hilbert.testing.towers import tiny_dual
from hilbert.testing.tracing import traced_here

ROOT = Path(__file__).parents[2]
PAGES = ("docs/api.md", "docs/quickstart.md", "README.md")
EXCHANGE = re.compile(r"^```bash\n(curl [^`]*)^```\n```json\n([^`]*)^```", re.M)
# They differ from call to call.
FLEETING = {"id", "created", "timing"}
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
LABELS = {0: "positive", 1: "neutral", 2: "negative"}
# Tiny random models under the names of real ones.
MODELS = {
    "clip": lambda folder: tiny_dual("clip", folder),
    "clap": lambda folder: tiny_dual("clap", folder),
    "bge-m3": lambda folder: tiny_model("xlm-roberta", folder, head="m3"),
    "opensearch-neural-sparse-encoding-doc-v3-distill": lambda folder: tiny_model(
        "distilbert", folder, head="routed"
    ),
    "colbert": lambda folder: tiny_model("bert", folder, head="colbert"),
    "Qwen3-Reranker-0.6B": lambda folder: tiny_model("qwen3", folder, head="logit_score"),
    "classifier": lambda folder: tiny_model("bert", folder, head="classifier", id2label=LABELS),
    "gliner": lambda folder: tiny_extractor(folder, seed=40),
}


def exchanges(page: str) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Of each request on a page: the model that it names, path, body and answer."""
    found = []
    for command, answer in EXCHANGE.findall((ROOT / page).read_text()):
        words = shlex.split(command.replace("\\\n", " "))
        path, body = urlsplit(words[1]).path, json.loads(words[words.index("-d") + 1])
        found.append((body.get("model", path.rpartition("/")[2]), path, body, json.loads(answer)))
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from hilbert import Model

    root = tmp_path_factory.mktemp("api-page")
    flags = ["--port", "0", "--dtype", "float32", "--cache-dir", str(root / "cache")]
    flags += ["-m", BUNDLED, "--served-model-name", "all-MiniLM-L6-v2"]
    with traced_here():
        for name, build in MODELS.items():
            folder = str(build(root / name))
            Model(folder, dtype="float32", device="cpu", cache_dir=str(root / "cache")).close()
            flags += ["-m", folder, "--served-model-name", name]
    server = Server(("serve", *flags), {}, wait=True)
    yield server.url
    server.stop()


def check(found: Any, told: Any, place: str) -> None:
    """Fail where an answer is not what the page says, but for rounding.

    The README shows what the default type answers, which is bf16 on CPUs that have it.
    """
    if isinstance(told, dict):
        assert list(found) == list(told), place
        for name in told.keys() - FLEETING:
            check(found[name], told[name], f"{place}.{name}")
    elif isinstance(told, list):
        assert len(found) == len(told), place
        for index, (one, other) in enumerate(zip(found, told, strict=True)):
            check(one, other, f"{place}[{index}]")
    elif isinstance(told, float):
        assert abs(found - told) < (1e-2 if place.startswith("README") else 1e-5), place
    elif place.endswith(".model"):
        assert found.rpartition("/")[2] == told.rpartition("/")[2], place
    else:
        is_level = isinstance(told, int) and re.search(r"embedding|int8", place)
        assert abs(found - told) <= 1 if is_level else found == told, place


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_answers_are_true(url: str, page: str) -> None:
    sent = exchanges(page)
    for model, path, body, answer in sent:
        assert model in ("all-MiniLM-L6-v2", *MODELS), f"{page}: nobody serves {model}"
        reply = httpx2.post(url + path, json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        check(reply.json(), answer, f"{page} {path} {model}")
    if page == "docs/api.md":
        assert {model for model, *_ in sent} == {"all-MiniLM-L6-v2", *MODELS}
        kinds = {
            "embeddings",
            "embeddings_sparse",
            "embeddings/colbert",
            "rerank",
            "classify",
            "extract/gliner",
        }
        assert {f"/v1/{kind}" for kind in kinds} <= {path for _, path, *_ in sent}
        assert {"int8", "ubinary"} <= {body.get("output_dtype") for _, _, body, _ in sent}
    assert sent, page


def test_a_wrong_answer_would_be_seen() -> None:
    for wrong in ({"a": 1.001}, {"b": 1.0}, {"a": [1.0]}, {"a": "1"}):
        with pytest.raises((AssertionError, TypeError)):
            check(wrong, {"a": 1.0}, "")
