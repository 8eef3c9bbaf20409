"""The answers on docs/api.md that name the bundled model are its own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hilbert import Model
from hilbert.core import OutputDtype, quantize

PAGE = Path(__file__).parents[2] / "docs/api.md"
EXCHANGE = re.compile(r"^```bash\n(curl .*?)^```\n```json\n(.*?)^```", re.M | re.S)


def exchanges() -> list[tuple[dict, dict]]:
    found = []
    for command, answer in EXCHANGE.findall(PAGE.read_text()):
        words = shlex.split(command.replace("\\\n", " "))
        found.append((json.loads(words[words.index("-d") + 1]), json.loads(answer)))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with Model(dtype="float32", cache_dir=str(tmp_path_factory.mktemp("cache"))) as model:
        yield model


def test_the_answers_are_true(model):
    seen = 0
    for asked, answer in exchanges():
        if asked.get("model") != "all-MiniLM-L6-v2":
            continue
        seen += 1
        if "query" in asked:
            hits = model.rerank(asked["query"], asked["documents"], top_n=asked.get("top_n"))
            results = answer["results"]
            assert [hit.index for hit in hits] == [r["index"] for r in results]
            scores = np.array([r["relevance_score"] for r in results])
            assert np.abs(np.array([hit.score for hit in hits]) - scores).max() < 1e-5
        else:
            row = model.embed(asked["input"], dimensions=asked["dimensions"])
            small = quantize(row, OutputDtype(asked["output_dtype"]))
            assert np.abs(small[0].astype(int) - answer["data"][0]["embedding"]).max() <= 1
    assert seen == 3
