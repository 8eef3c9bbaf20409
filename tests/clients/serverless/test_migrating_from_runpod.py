"""The snippets of docs/migrate/from-runpod.md, as they stand there, against the server that it starts."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_house import World, library
from platform_house import BUNDLED, HILBERT, worker_environ

library("runpod")
PAGE = (Path(__file__).parents[3] / "docs/migrate/from-runpod.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SERVE, *CURLS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()
]


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [*HILBERT, *shlex.split(SERVE)[1:], "--port", port],
        env=worker_environ(world),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert f"serves {BUNDLED}" in process.stdout.readline()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.mark.row("runpod, the client SDK", "every snippet of docs/migrate/from-runpod.md")
def test_the_snippets(address: str, world: World) -> None:
    found = []
    for code in PYTHON:
        left: dict[str, Any] = {}
        exec(compile(code.replace("localhost:7997", address), "from-runpod.md", "exec"), left)
        found.append(np.array(left["vectors"]))
        assert left.get("best", "There is always room.") == "There is always room."
    assert len(found) == 2 and found[0].shape == (2, 384)
    assert np.abs(found[0] - found[1]).max() < 1e-6
    answers = [
        json.loads(subprocess.check_output([*shlex.split(line.replace("localhost:7997", address)), "-s"]))
        for line in CURLS
    ]
    models, models_job, embeddings, begun, ranking = answers
    assert models["data"][0]["id"] == models_job["output"]["data"][0]["id"] == BUNDLED
    assert len(embeddings["output"]["data"][0]["embedding"]) == 384
    assert [row["index"] for row in ranking["results"]] == [1, 0] and len(ranking["scores"]) == 2
    line = f"curl http://{address}/status/{begun['id']} -s"
    deadline = time.monotonic() + 30
    while (state := json.loads(subprocess.check_output(shlex.split(line))))["status"] != "COMPLETED":
        assert time.monotonic() < deadline
    assert state["output"] == embeddings["output"]
