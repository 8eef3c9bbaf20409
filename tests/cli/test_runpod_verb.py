"""`hilbert runpod` as far as it goes without RunPod's SDK; with it: tests/clients/serverless."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_house import hilbert

from hilbert.api.runpod import answer
from hilbert.cli.backend import Backend
from hilbert.cli.runpod import Output, split_flags
from hilbert.config import load_runpod
from hilbert.errors import ServingError, ShuttingDown


def backend_of(*flags: str, **environ: str) -> Backend:
    return Backend(load_runpod(("--in-process", *flags), environ)[0], None)


def test_a_backend_answers_another_loop_and_leaves_nothing(static: str) -> None:
    backend = backend_of(MODEL_NAMES=static, HILBERT_API_KEY="for callers over HTTP")
    backend.start()
    app = backend.wait_ready()

    async def main() -> list[Any]:
        jobs = [{"input": [f"guest {i}"]} for i in range(20)]
        asked = [backend.run(answer(app.inside, json.dumps(job).encode())) for job in jobs]
        return [json.loads(done.output) for done in await asyncio.gather(*asked)]

    outputs = asyncio.run(main())
    assert [len(output["data"]) for output in outputs] == [1] * 20
    assert len({output["data"][0]["embedding"][0] for output in outputs}) == 20
    backend.close()
    backend.close()
    assert "hilbert-backend" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ShuttingDown):
        asyncio.run(backend.run(answer(app.inside, b"{}")))


def test_a_model_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    backend = backend_of(MODEL_NAMES=str(tmp_path / "nothing"))
    backend.start()
    with pytest.raises(ServingError, match="no model folder"):
        backend.wait_ready()
    backend.close()
    ended = hilbert("runpod", "-m", "a/b", "--dtype", "magic")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1) and "--dtype 'magic'" in ended.stderr


def test_flags_of_the_sdk_are_passed_on() -> None:
    words = [
        "-m",
        "a/b",
        "--rp_serve_api",
        "--rp_api_port",
        "80",
        "--test_input={}",
        "--dtype",
        "auto",
        "--test_input",
        "{}",
    ]
    assert split_flags(words) == (
        ["-m", "a/b", "--dtype", "auto"],
        ["--rp_serve_api", "--rp_api_port", "80", "--test_input={}", "--test_input", "{}"],
    )
    shown = hilbert("runpod", "--help").stdout
    assert "MODEL_NAMES" in shown and "--runpod-max-concurrency" in shown and "--rp_serve_api" in shown


def test_an_output_is_short_in_the_log_and_whole_elsewhere() -> None:
    rows = [{"embedding": [0.5] * 4096, "index": index} for index in range(64)]
    output = Output({"data": rows, "model": "m"})
    assert len(f"{ {'output': [output]} }") < 2000 and "'model': 'm'" in repr(output)
    assert json.loads(json.dumps(output)) == {"data": rows, "model": "m"}
