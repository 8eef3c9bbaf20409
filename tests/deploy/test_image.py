"""deploy/docker without Docker: the entrypoint with the image's environment, and what the Dockerfile says."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_house import clean_environment
from nginx_house import free_port, wait_for
from typer.main import get_command

from hilbert.cli.app import app
from hilbert.testing.models import tiny_model

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
ENTRYPOINT = ROOT / "deploy/docker/entrypoint.sh"


def stage(name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    assert found is not None
    return found[1]


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"^ENV (\w+)=(\S+)$", stage("base"), re.M))


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The image's environment, its folders and programs moved under `tmp_path`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f"exec {shlex.quote(sys.executable)}"
    (programs / "python").write_text(f'#!/bin/sh\n{python} "$@"\n')
    run = "import sys; from hilbert.cli import main; sys.exit(main())"
    (programs / "hilbert").write_text(f'#!/bin/sh\n{python} -c "{run}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    values = {
        name: value.replace("/hf-cache", str(tmp_path / "hf-cache"))
        for name, value in image_environment().items()
    }
    values["PATH"] = f"{programs}:{os.environ['PATH']}"
    return clean_environment(**values)


def entrypoint(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ENTRYPOINT), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_image_serves_is_healthy_and_stops_at_once(container: dict[str, str], tmp_path: Path) -> None:
    port = str(free_port())
    model = str(tiny_model("static", tmp_path / "tiny"))
    container |= {"HILBERT_PORT": port, "HILBERT_MODEL_ID": model, "HILBERT_SERVED_MODEL_NAME": "rooms"}
    assert entrypoint(container, "healthcheck").returncode != 0
    words = json.loads(re.search(r"^CMD (.*)$", stage("base"), re.M)[1])  # type: ignore[index]
    server = subprocess.Popen(
        ["sh", str(ENTRYPOINT), *words], env=container, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    banner = server.stdout.readline()
    assert f"serves rooms on http://127.0.0.1:{port}" in banner  # HILBERT_HOST: all addresses
    wait_for(f"http://127.0.0.1:{port}/readyz")
    check = re.search(r"^HEALTHCHECK .*CMD (.*)$", stage("base"), re.M)
    assert check is not None and json.loads(check[1])[-1] == "healthcheck"
    for path in ((), ("/readyz",)):
        assert entrypoint(container, "healthcheck", *path).returncode == 0
    assert (tmp_path / "hf-cache" / "hilbert").is_dir()
    server.send_signal(signal.SIGTERM)  # to process 1, which must be Hilbert and no shell
    assert server.wait(20) == 0
    server.stdout.close()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--version-of-nothing",), "hilbert serve: unknown flag"),
        (("v2", "--nothing"), "hilbert v2: unknown flag"),
        (("echo", "as it stands"), "as it stands"),
        (("keys", "--help"), "revoke"),
    ],
)
def test_words(container: dict[str, str], words: tuple[str, ...], shown: str) -> None:
    ended = entrypoint(container, *words)
    assert shown in ended.stdout + ended.stderr


def test_every_verb_is_known_to_the_entrypoint() -> None:
    branches = " ".join(re.findall(r"^    ([^)]*)\)", ENTRYPOINT.read_text(), re.M))
    assert set(get_command(app).commands) <= set(re.findall(r"[\w-]+", branches))  # type: ignore[attr-defined]


def test_a_cache_that_cannot_be_written_is_named(container: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "hf-cache").write_text("a file where the folder should be")
    ended = entrypoint(container, "models", "--help")
    assert ended.stderr.count("cannot write to") == 2 and str(tmp_path / "hf-cache") in ended.stderr


def test_what_the_images_hold() -> None:
    for name in ("cpu", "trace", "cuda"):
        assert "USER 10001:10001" in stage(name)
    assert "build /opt/hilbert" in stage("cpu") and "'.[serve]'" in stage("build")
    assert "torch" not in stage("cpu") + stage("build") + stage("base")
    assert "'.[serve,torch]'" in stage("build-trace") and "'.[serve,torch]'" in stage("build-cuda")
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert re.findall(r"torch==(\S+)", DOCKERFILE) == [pins["torch"]]
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        for source in copied.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().split()
