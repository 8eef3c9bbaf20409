"""The cache folder of real servers: full, corrupt, shared, and left behind by a process that was killed.

The store itself, without servers, is tested in tests/hub/test_artifacts.py, within seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from chaos_house import HILBERT, serving, until
from cli_house import Server, clean_environment, is_alive

from hilbert.hub.artifacts import is_intact, read_manifest
from hilbert.testing.models import tiny_model

pytestmark = pytest.mark.chaos  # each trace of a model takes seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("bert", tmp_path_factory.mktemp("models") / "bert"))


def vector(server: Server) -> list[float]:
    reply = server.post(["there is always room for one more guest"])
    assert reply.status_code == 200, reply.text
    found: list[float] = reply.json()["data"][0]["embedding"]
    return found


def artifacts(cache: Path) -> list[Path]:
    return sorted((cache / "artifacts").iterdir())


def check_whole(cache: Path) -> Path:
    """One artifact, intact, and nothing beside it."""
    assert len(artifacts(cache)) == 1, artifacts(cache)
    (folder,) = artifacts(cache)
    manifest = read_manifest(folder)
    assert manifest is not None and is_intact(folder, manifest)
    return folder


def serve(model: str, cache: Path, wait: bool = True):
    return serving("-m", model, "--cache-dir", str(cache), "--dtype", "float32", wait=wait)


def test_two_servers_build_it_at_once_and_damage_is_mended(model: str, tmp_path: Path) -> None:
    with serve(model, tmp_path, wait=False) as one, serve(model, tmp_path, wait=False) as two:
        for server in (one, two):
            server.wait_ready()
        right = vector(one)
        assert vector(two) == right
    folder = check_whole(tmp_path)
    weights = folder / "model.bin"
    data = weights.read_bytes()
    turned = bytearray(data)
    turned[len(data) // 2] ^= 0x40
    for damaged in (bytes(turned), data[: len(data) // 2]):
        weights.write_bytes(damaged)
        with serve(model, tmp_path) as server:
            assert vector(server) == right
        assert (check_whole(tmp_path) / "model.bin").read_bytes() == data
    for blob in (tmp_path / "compiled").rglob("*.blob"):  # what OpenVINO made of it
        blob.write_bytes(blob.read_bytes()[:-1000])
    with serve(model, tmp_path) as server:
        assert vector(server) == right


def test_killed_while_it_builds(model: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(4):
        with serve(model, tmp_path, wait=False) as server:
            until(lambda s=server: len(s.children) >= 2, "it traces", 60)
            time.sleep(rng.uniform(0.0, 4.0))
            below = server.children
            server.stop(signal.SIGKILL)
            until(lambda pids=below: not any(map(is_alive, pids)), "its processes have ended")
    with serve(model, tmp_path) as server:
        vector(server)
    check_whole(tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing_broken(model: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    script = 'mount -t tmpfs -o size=$SIZE tmpfs "$CACHE" || exit 77; exec "$@"'
    alone = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]

    def ends(size: str) -> subprocess.CompletedProcess[str]:
        flags = ("serve", "-m", model, "--preload-only", "--cache-dir", str(cache), "--dtype", "float32")
        return subprocess.run(
            [*alone, "sh", "-c", script, "sh", *HILBERT, *flags],
            env=clean_environment(CACHE=str(cache), SIZE=size),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    full = ends("48k")
    if full.returncode in (77, 127) or "unshare" in full.stderr:
        pytest.skip(f"no file system of our own can be mounted here: {full.stderr}")
    assert full.returncode == 1 and "the disk is full" in full.stderr and "--cache-dir" in full.stderr
    assert "Traceback" not in full.stderr and len(full.stderr.splitlines()) == 1
    assert ends("64m").returncode == 0
