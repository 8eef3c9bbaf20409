"""`openai` for Node: the same calls from JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clients_house import World

CLIENT = "openai for Node"
FOLDER = Path(os.environ["HILBERT_CLIENTS_NODE"])
SCRIPT = Path(__file__).parents[1] / "node/call.mjs"

if not shutil.which("node"):
    pytest.skip("node is not installed", allow_module_level=True)
if (FOLDER / "missing.txt").exists():
    pytest.skip(f"npm: {(FOLDER / 'missing.txt').read_text()[-400:]}", allow_module_level=True)


def call(url: str, key: str, **body: Any) -> Any:
    """What `client.embeddings.create(body)` returns, or ``{"error": {name, status, code}}``."""
    asked = json.dumps({"url": url, "key": key, "body": body, "modules": str(FOLDER)})
    done = subprocess.run(
        ["node", str(SCRIPT), asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.row(CLIENT, "embeddings.create, encoding_format float and base64, dimensions")
def test_embeddings_from_node(world: World) -> None:
    for more in ({}, {"encoding_format": "float"}):
        answer = call(f"{world.open}/v1", "any", model="minilm", input=world.texts, **more)
        world.same([item["embedding"] for item in answer["data"]], "dense")
    answer = call(f"{world.open}/v1", "any", model="minilm", input=world.texts, dimensions=64)
    world.same([item["embedding"] for item in answer["data"]], "dense_64")


@pytest.mark.row(CLIENT, "an invalid input, overload, a wrong key")
def test_errors_from_node(world: World) -> None:
    v1 = f"{world.guarded}/v1"
    assert call(v1, world.key, model="minilm", input=[])["error"] == {
        "name": "BadRequestError",
        "status": 400,
        "code": "invalid_value",
    }
    assert call(v1, "wrong", model="minilm", input="a")["error"]["name"] == "AuthenticationError"
    with world.full():
        error = call(v1, world.key, model="minilm", input="a")["error"]
    assert error == {"name": "RateLimitError", "status": 429, "code": "overloaded"}
