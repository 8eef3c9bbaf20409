"""deploy/runpod and .runpod without Docker and without the platform: what the files say is known to Hilbert.

The image's command, with its test_input.json, runs in tests/clients/serverless.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hilbert.api.runpod.protocol import to_errand
from hilbert.config import load_runpod

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/runpod/Dockerfile").read_text()
HUB = json.loads((ROOT / ".runpod/hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod/tests.json").read_text())


def test_the_form_of_the_hub_takes_settings_of_the_worker() -> None:
    config = HUB["config"]
    assert (HUB["type"], HUB["category"], config["runsOn"]) == ("serverless", "embedding", "GPU")
    fields = {entry["key"]: entry["input"] for entry in config["env"]}
    environ = {key: str(field["default"]) for key, field in fields.items()}
    plain, _ = load_runpod((), environ)
    assert [model.model_id for model in plain.models] == ["BAAI/bge-small-en-v1.5"]
    other = {
        "BATCH_SIZES": "7",
        "DTYPES": "fp16",
        "BACKEND": "torch",
        "INFINITY_QUEUE_SIZE": "9",
        "RUNPOD_MAX_CONCURRENCY": "8",
        "HTTP_CLIENT_TIMEOUT": "3",
        "HTTP_CLIENT_USER_AGENT": "guest",
    }
    assert fields.keys() == {"MODEL_NAMES", "HF_TOKEN", *other}  # HF_TOKEN is read by the hub's library
    for key, value in other.items():
        assert load_runpod((), environ | {key: value})[0] != plain, key
    for option in fields["BACKEND"]["options"]:
        load_runpod((), environ | {"BACKEND": option["value"]})
    for preset in config["presets"]:
        assert load_runpod((), environ | preset["defaults"])[0].models


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_the_jobs_of_the_hubs_tests_are_understood(test: dict) -> None:
    environ = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    [model] = load_runpod((), environ)[0].models
    assert test["input"].get("model", model.name) == model.name
    assert to_errand(json.dumps(test["input"]).encode()).path in ("/v1/embeddings", "/v1/models", "/rerank")


def test_the_image() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        for source in line.split():
            assert (ROOT / source).is_file() or (ROOT / source).is_dir()
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().split()
    assert "'.[serve,torch,image,audio,runpod]'" in DOCKERFILE
    command = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.M)[1])  # type: ignore[index]
    assert command == ["python", "handler.py"]
    for name in ("Dockerfile", "handler.py"):  # where the platform's hub looks for them
        assert (ROOT / ".runpod" / name).read_text() == (ROOT / "deploy/runpod" / name).read_text()
    given = json.loads((ROOT / "deploy/runpod/test_input.json").read_text())
    assert to_errand(json.dumps(given["input"]).encode()).path == "/v1/embeddings"


def test_the_handler_says_what_is_missing() -> None:
    def handler(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "deploy/runpod/handler.py")],
            env={"PATH": "", "PYTHONPATH": str(ROOT / "src"), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    ended = handler()
    assert ended.returncode == 1
    assert ended.stderr.startswith("hilbert runpod: MODEL_NAMES is not set")
    if find_spec("runpod") is None:
        ended = handler(MODEL_NAMES="a/b")
        assert ended.returncode == 1 and "pip install 'hilbert[runpod]'" in ended.stderr
