"""docs/migrate/from-infinity.md: every flag it names is taken, and its two halves agree when they are run.

The second needs Infinity itself, which `python bench/peers.py` installs under bench/tmp.
"""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cli_house import HILBERT, clean_environment
from nginx_house import free_port

from hilbert.config import ServerSettings, load
from hilbert.config.infinity import HIDDEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/migrate/from-infinity.md").read_text()
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PEERS = runpy.run_path(str(ROOT / "bench/peers.py"))

# `infinity_emb v2 --help` of 0.0.77.
FLAGS = [
    "model-id",
    "served-model-name",
    "batch-size",
    "revision",
    "trust-remote-code",
    "redirect-slash",
    "engine",
    "model-warmup",
    "vector-disk-cache",
    "device",
    "device-id",
    "lengths-via-tokenize",
    "dtype",
    "embedding-dtype",
    "pooling-method",
    "compile",
    "bettertransformer",
    "preload-only",
    "permissive-cors",
    "api-key",
    "url-prefix",
    "proxy-root-path",
    "onnx-disable-optimize",
    "onnx-do-not-prefer-quantized",
    "host",
    "port",
    "log-level",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def settings(*argv: str) -> tuple[ServerSettings, list[str]]:
    return load(argv, {}, "v2")


def test_every_flag_of_infinity_is_on_the_page_and_taken() -> None:
    rows = re.findall(r"^\| (`--.*?) \| (.*) \|$", PAGE, re.M)
    named = [words for flags, _ in rows for words in re.findall(r"`(--[^`]+)`", flags)]
    assert {words.split()[0] for words in named} == {f"--{name}" for name in FLAGS}
    silent = [option.flag for option in HIDDEN if option.name != "device_id"]
    for flags, meaning in rows:
        for words in re.findall(r"`(--[^`]+)`", flags):
            if words in ("--model-id", "--served-model-name", "--revision"):
                words += " a"
            _, notes = settings(*words.split())
            assert any("no meaning" in note for note in notes) == (words.split()[0] in silent)
            assert ("without effect" in meaning) == (words.split()[0] in silent)
    assert settings("--engine", "optimum")[0].models[0].engine == "onnx"
    assert settings("--device", "tensorrt")[0].models[0].device == "cuda"
    assert settings()[0].host == "0.0.0.0" and not settings()[0].models[0].trust_remote_code
    for line in blocks("bash")[0].splitlines():
        settings(*shlex.split(line)[2:])


@contextlib.contextmanager
def running(command: list[str], environ: dict[str, str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def at(text: str, port: int) -> str:
    return text.replace("localhost:7997", f"127.0.0.1:{port}").replace("--port 7997", f"--port {port}")


def curl(line: str, port: int) -> dict[str, Any]:
    ended = subprocess.run([*shlex.split(at(line, port)), "-s"], capture_output=True, timeout=60, check=True)
    found: dict[str, Any] = httpx2.Response(200, content=ended.stdout).json()
    return found


@pytest.mark.slow
@pytest.mark.skipif(not PEERS["INFINITY"].exists(), reason="python bench/peers.py installs Infinity")
def test_before_and_after(tmp_path: Path) -> None:
    before, after = (
        re.findall(rf"^{words} .*$", PAGE, re.M)[0] for words in ("infinity_emb v2", "hilbert v2")
    )
    PEERS["make_model"](with_onnx=False)
    ports = free_port(), free_port()
    old = [str(PEERS["INFINITY"] / "bin/infinity_emb"), *at(before, ports[0]).split()[1:], "--device", "cpu"]
    old = [str(PEERS["MODEL"]) if word == MODEL else word for word in old]  # the same weights, without a hub
    new = [*HILBERT, *at(after, ports[1]).split()[1:]]
    vectors: list[np.ndarray] = []
    with (
        running(old, PEERS["offline_env"](), ports[0], tmp_path / "infinity.log"),
        running(new, clean_environment(HILBERT_CACHE_DIR=str(tmp_path)), ports[1], tmp_path / "hilbert.log"),
    ):
        for port in ports:
            left: dict[str, Any] = {}
            exec(compile(at(blocks("python")[0], port), "from-infinity.md", "exec"), left)
            vectors.append(np.array(left["vectors"]))
        lines = blocks("bash")[1].replace("\\\n", " ").splitlines()
        models, rerank, dimensions, health = range(4)
        for port in ports:
            assert curl(lines[models], port)["data"][0]["backend"] in ("torch", "openvino")
            assert len(curl(lines[dimensions], port)["data"][0]["embedding"]) == 344  # base64 of 64 floats
            assert "unix" in curl(lines[health], port)
        best = curl(lines[rerank], ports[1])["results"][0]
        assert (best["index"], best["document"]) == (1, "There is always room.")
    assert [rows.shape for rows in vectors] == [(3, 384), (3, 384)]
    cosines = (vectors[0] * vectors[1]).sum(1) / np.prod(
        [np.linalg.norm(rows, axis=1) for rows in vectors], 0
    )
    print(f"cosine between Infinity and Hilbert: at least {cosines.min():.6f}")
    assert cosines.min() >= 0.999
