"""The answers on docs/api.md that name the bundled model are what a server answers."""

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

PAGE = Path(__file__).parents[2] / "docs/api.md"
EXCHANGE = re.compile(r"^```bash\n(curl .*?)^```\n```json\n(.*?)^```", re.M | re.S)
# They differ from call to call.
FLEETING = {"id", "created", "timing"}


def exchanges() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Path, body and answer of those that the bundled model can give."""
    found = []
    for command, answer in EXCHANGE.findall(PAGE.read_text()):
        words = shlex.split(command.replace("\\\n", " "))
        path, body = urlsplit(words[1]).path, json.loads(words[words.index("-d") + 1])
        if "all-MiniLM-L6-v2" in (body.get("model"), path.rpartition("/")[2]):
            found.append((path, body, json.loads(answer)))
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    flags = ("--port", "0", "--dtype", "float32", "--cache-dir", cache)
    server = Server(("serve", *flags, "--served-model-name", "all-MiniLM-L6-v2"), {}, wait=True)
    yield server.url
    server.stop()


def check(found: Any, told: Any, place: str) -> None:
    """Fail where an answer is not what the page says, but for rounding."""
    if isinstance(told, dict):
        assert list(found) == list(told), place
        for name in told.keys() - FLEETING:
            check(found[name], told[name], f"{place}.{name}")
    elif isinstance(told, list):
        assert len(found) == len(told), place
        for index, (one, other) in enumerate(zip(found, told, strict=True)):
            check(one, other, f"{place}[{index}]")
    elif isinstance(told, float):
        assert abs(found - told) < 1e-5, place
    else:
        is_level = isinstance(told, int) and re.search(r"embedding|int8", place)
        assert abs(found - told) <= 1 if is_level else found == told, place


@pytest.mark.slow
def test_the_answers_are_true(url: str) -> None:
    seen = set()
    for path, body, answer in exchanges():
        reply = httpx2.post(url + path, json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        check(reply.json(), answer, path)
        seen.add(path)
    assert {"/v1/embeddings", "/v1/rerank", "/rerank", "/v2/embed", "/v1/contextualizedembeddings"} <= seen
    assert len(seen) >= 9


def test_a_wrong_answer_would_be_seen() -> None:
    for wrong in ({"a": 1.001}, {"b": 1.0}, {"a": [1.0]}, {"a": "1"}):
        with pytest.raises((AssertionError, TypeError)):
            check(wrong, {"a": 1.0}, "")
