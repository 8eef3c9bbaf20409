"""Hub ids against a real HTTP server, with the real client, each try in a fresh process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hilbert.testing.hub import StandInHub
from hilbert.testing.models import tiny_model

SCRIPT = """
import json, sys, time
arguments = json.loads(sys.argv[1])
from hilbert import hub
from hilbert.errors import ServingError
call = getattr(hub, arguments.pop("call", "resolve"))
begin = time.perf_counter()
try:
    spec = call(**arguments)
    answer = {"path": spec.path, "commit": spec.commit, "weights": spec.weights, "kind": spec.kind,
              "model_id": spec.model_id, "digest": spec.digest}
except ServingError as error:
    answer = {"error": type(error).__name__, "message": error.message, "code": error.code,
              "retry_after": error.retry_after_seconds}
answer["seconds"] = time.perf_counter() - begin
answer["client"] = "huggingface_hub" in sys.modules
answer["torch"] = "torch" in sys.modules
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub() as hub:
        yield hub


@dataclass
class Client:
    hub: StandInHub
    cache: Path

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "HILBERT"))}
        return clean | self.hub.environment(self.cache)

    def run(
        self, model_id: str = "org/tiny", env: dict[str, str] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps({"model_id": model_id, **arguments})],
            env=self.environment() | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        answer["stderr"] = done.stderr
        return answer


@pytest.fixture
def client(hub: StandInHub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "cache")


def test_downloads_once_and_restarts_without_the_hub(hub: StandInHub, client: Client, model: Path) -> None:
    commit = hub.add("org/tiny", model)
    first = client.run()
    assert first["commit"] == commit and first["client"] and not first["torch"]
    assert first["weights"] == ["model.safetensors"]
    assert "%|" not in first["stderr"], "a progress bar outside a terminal"
    names = {seen.path.rsplit("/", 1)[-1] for seen in hub.downloads()}
    assert {"model.safetensors", "tokenizer.json", "modules.json"} <= names

    before = len(hub.seen)
    warm = client.run()
    assert len(hub.seen) == before, "a whole snapshot needs no network"
    assert not warm["client"], "nor the hub's client"
    assert warm["seconds"] < 0.1
    assert (warm["digest"], warm["path"]) == (first["digest"], first["path"])

    hub.stop()
    assert client.run()["commit"] == commit
    assert client.run(env={"HF_HUB_OFFLINE": "1"})["commit"] == commit


def test_what_is_not_needed_is_not_fetched(
    hub: StandInHub, client: Client, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rich"
    shutil.copytree(model, folder)
    for name in (
        "pytorch_model.bin",
        "tf_model.h5",
        "onnx/model.onnx",
        "openvino/openvino_model.xml",
        "own.py",
        ".gitattributes",
        "artifact.metadata",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)
    hub.add("org/tiny", folder)
    spec = client.run()
    names = {
        path.relative_to(spec["path"]).as_posix() for path in Path(spec["path"]).rglob("*") if path.is_file()
    }
    assert {"model.safetensors", "1_Pooling/config.json", "artifact.metadata"} <= names
    assert not names & {"pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "own.py"}
    trusted = client.run(trust_remote_code=True)
    assert (Path(trusted["path"]) / "own.py").is_file()


def test_pickles_come_only_where_nothing_safer_is(hub: StandInHub, client: Client, tmp_path: Path) -> None:
    hub.add("org/tiny", tiny_model("bert", tmp_path / "bin", weights="bin"))
    assert client.run()["weights"] == ["pytorch_model.bin"]


def test_shards(hub: StandInHub, client: Client, tmp_path: Path) -> None:
    hub.add("org/tiny", tiny_model("bert", tmp_path / "shards", weights="shards"))
    spec = client.run()
    assert len(spec["weights"]) > 1
    (Path(spec["path"]) / spec["weights"][-1]).unlink()
    hub.stop()
    assert client.run()["error"] == "HubOutOfReach", "a snapshot without one shard is not whole"


def test_revisions(hub: StandInHub, client: Client, model: Path, tmp_path: Path) -> None:
    old = hub.add("org/tiny", model, revision="v1")
    other = tiny_model("bert", tmp_path / "new", seed=1)
    new = hub.add("org/tiny", other)
    assert client.run(revision="v1")["commit"] == old
    assert client.run()["commit"] == new
    assert client.run(revision=old)["commit"] == old
    answer = client.run(revision="v9")
    assert answer["error"] == "NotOnHub" and "'v9'" in answer["message"] and "--revision" in answer["message"]
    for trick in ("../../x", "a//b", "/etc", "-x"):
        assert "not a revision" in client.run(revision=trick)["message"]


def test_a_moved_branch_is_followed_by_pull_alone(
    hub: StandInHub, client: Client, model: Path, tmp_path: Path
) -> None:
    old = hub.add("org/tiny", model)
    assert client.run()["commit"] == old
    new = hub.add("org/tiny", tiny_model("bert", tmp_path / "new", seed=1))
    assert client.run()["commit"] == old
    assert client.run(call="pull")["commit"] == new
    assert client.run()["commit"] == new


def test_private_repositories(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/tiny", model, token="hf_right")
    refused = client.run()
    assert refused["error"] == "NotOnHub" and refused["code"] == "model_unavailable"
    assert (
        "HF_TOKEN" in refused["message"] and "401" in refused["message"] and "no token" in refused["message"]
    )
    wrong = client.run(token="hf_wrong")
    assert "does not open it" in wrong["message"] and "hf_wrong" not in wrong["message"]
    assert "commit" in client.run(token="hf_right")
    shutil.rmtree(client.cache)
    assert "commit" in client.run(env={"HF_TOKEN": "hf_right"})


def test_gated_and_unknown(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/gated", model, is_gated=True)
    assert "gated" in client.run("org/gated")["message"]
    unknown = client.run("org/nothing", token="hf_any")
    assert unknown["error"] == "NotOnHub" and "404" in unknown["message"]
    assert hub.url in unknown["message"]


def test_a_bare_name_is_looked_for_in_two_places(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("sentence-transformers/tiny", model)
    hub.add("old-bert", model)
    assert client.run("tiny")["model_id"] == "tiny"
    assert client.run("old-bert", token="hf_any")["commit"]
    before = len(hub.seen)
    client.run("tiny")
    client.run("old-bert")
    assert len(hub.seen) == before


def test_rate_limit_is_waited_out(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.answer(429, times=2, pattern="/api/models/*", retry_after_seconds=0.3)
    answer = client.run()
    assert "commit" in answer
    assert answer["seconds"] >= 0.6, "Retry-After was honoured"


def test_rate_limit_that_asks_for_too_much_is_reported(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.answer(429, times=99, retry_after_seconds=300)
    answer = client.run()
    assert answer["error"] == "HubOutOfReach" and "429" in answer["message"] and "300 s" in answer["message"]
    assert answer["retry_after"] == 300 and answer["seconds"] < 20


def test_server_errors_are_tried_again(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.answer(503, times=2, pattern="/api/models/*")
    assert "commit" in client.run()


@pytest.mark.slow
def test_a_cut_transfer_goes_on_where_it_stopped(hub: StandInHub, client: Client, tmp_path: Path) -> None:
    # The client writes 10 MB at a time: the weights must be larger for a part to be kept.
    folder = tiny_model("bert", tmp_path / "big", intermediate_size=40_000)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 30_000_000
    commit = hub.add("org/tiny", folder)
    hub.cut("*model.safetensors", after_bytes=25_000_000)
    answer = client.run()
    assert answer["commit"] == commit
    seen = hub.downloads("*model.safetensors")
    assert len(seen) == 2 and seen[0].range is None
    assert seen[1].range is not None and seen[1].range.startswith("bytes=2"), seen
    assert seen[1].sent_bytes < size - 15_000_000
    assert (Path(answer["path"]) / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("left_by", ["hilbert", "the client"])
def test_a_killed_process_is_no_reason_to_begin_again(
    hub: StandInHub, client: Client, tmp_path: Path, left_by: str
) -> None:
    folder = tiny_model("bert", tmp_path / "big", intermediate_size=40_000)
    size = (folder / "model.safetensors").stat().st_size
    commit = hub.add("org/tiny", folder)
    hub.stall("*model.safetensors", after_bytes=25_000_000)
    ours = [sys.executable, "-c", SCRIPT, json.dumps({"model_id": "org/tiny"})]
    script = "from huggingface_hub import snapshot_download; snapshot_download('org/tiny')"
    first = subprocess.Popen(
        ours if left_by == "hilbert" else [sys.executable, "-c", script],
        env=client.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    blobs = client.cache / "hub" / "models--org--tiny" / "blobs"
    end = time.monotonic() + 60
    while sum(piece.stat().st_size for piece in blobs.glob("*.incomplete")) < 20_000_000:
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.02)
    first.kill()
    first.wait()
    hub.heal()
    hub.seen.clear()
    answer = client.run()
    assert answer["commit"] == commit
    (seen,) = hub.downloads("*model.safetensors")
    assert seen.range == f"bytes={20 * 1024 * 1024}-" and seen.sent_bytes == size - 20 * 1024 * 1024
    got, original = Path(answer["path"]) / "model.safetensors", folder / "model.safetensors"
    assert got.read_bytes() == original.read_bytes()
    assert not list(blobs.glob("*.incomplete")), "nothing is left behind"


def test_a_piece_with_wrong_bytes_is_thrown_away(hub: StandInHub, client: Client, model: Path) -> None:
    commit = hub.add("org/tiny", model)
    weights = (model / "model.safetensors").read_bytes()
    blobs = client.cache / "hub" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    digest = hashlib.sha256(weights).hexdigest()
    for garbage in (b"x" * 5000, b"x" * (len(weights) + 1)):
        (blobs / f"{digest}.0a1b.incomplete").write_bytes(garbage)
        answer = client.run()
        assert answer["commit"] == commit
        assert (Path(answer["path"]) / "model.safetensors").read_bytes() == weights
        shutil.rmtree(client.cache / "hub" / "models--org--tiny" / "snapshots")
        (blobs / digest).unlink()


def test_what_arrived_before_a_broken_transfer_is_kept(
    hub: StandInHub, client: Client, tmp_path: Path
) -> None:
    folder = tiny_model("bert", tmp_path / "shards", weights="shards")
    victim = sorted(path.name for path in folder.glob("*.safetensors"))[1]
    hub.add("org/tiny", folder)
    hub.answer(404, times=99, pattern=f"*{victim}")
    broken = client.run()
    assert broken["error"] == "NotOnHub"
    assert not (client.cache / "hub" / "models--org--tiny" / "refs" / "main").exists()
    hub.heal()
    fetched = {seen.path for seen in hub.downloads()}
    hub.seen.clear()
    assert "commit" in client.run()
    again = {seen.path for seen in hub.downloads()}
    assert any(victim in path for path in again)
    assert not fetched & again, "finished files are not fetched twice"


def test_a_cut_download_leaves_the_old_snapshot_in_use(
    hub: StandInHub, client: Client, model: Path, tmp_path: Path
) -> None:
    old = hub.add("org/tiny", model)
    client.run()
    hub.add("org/tiny", tiny_model("bert", tmp_path / "new", seed=1))
    hub.answer(403, times=99, pattern="*model.safetensors")
    assert "error" in client.run(call="pull")
    hub.stop()
    assert client.run()["commit"] == old


def test_hub_out_of_reach(hub: StandInHub, client: Client) -> None:
    hub.stop()
    answer = client.run()
    assert answer["error"] == "HubOutOfReach"
    for said in (
        "org/tiny at 'main'",
        str(client.cache),
        f"{hub.url} cannot be reached: nobody listens there (1 try; ",
        "No other revision is in the cache",
        "HF_ENDPOINT",
        "hilbert models pull org/tiny",
    ):
        assert said in answer["message"], said
    assert answer["seconds"] < 15, "nobody listens: no point in trying for long"
    offline = client.run(env={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in offline["message"] and not offline["client"]


def test_hub_out_of_reach_names_what_the_cache_holds(hub: StandInHub, client: Client, model: Path) -> None:
    hub.add("org/tiny", model, revision="v1")
    client.run(revision="v1")
    hub.stop()
    message = client.run()["message"]
    assert "In the cache are: 'v1'; name one with --revision, and set HF_HUB_OFFLINE=1" in message
    assert "commit" in client.run(revision="v1", env={"HF_HUB_OFFLINE": "1"})


def test_a_cache_that_cannot_be_written(hub: StandInHub, client: Client, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    (tmp_path / "file").write_text("no folder")
    refused = client.run(cache_dir=str(tmp_path / "file" / "cache"))
    assert refused["error"] == "ModelUnavailable"
    for word in ("org/tiny", "cannot be written", "Not a directory", "HF_HUB_CACHE"):
        assert word in refused["message"], refused["message"]


def test_a_cache_that_others_filled_serves_offline(hub: StandInHub, client: Client, model: Path) -> None:
    """An older client writes no list of files: the hub is asked, and where it cannot be, the files serve."""
    hub.add("org/tiny", model)
    spec = client.run()
    shutil.rmtree(client.cache / "hilbert")
    shutil.rmtree(client.cache / "hub" / "models--org--tiny" / "trees", ignore_errors=True)
    before = len(hub.downloads())
    assert client.run()["commit"] == spec["commit"]
    assert len(hub.downloads()) == before, "nothing is fetched again"
    shutil.rmtree(client.cache / "hilbert")
    shutil.rmtree(client.cache / "hub" / "models--org--tiny" / "trees", ignore_errors=True)
    hub.stop()
    assert client.run()["commit"] == spec["commit"]


@pytest.mark.parametrize(("family", "suffix"), [("bert", ".onnx"), ("static", ".safetensors")])
def test_without_torch_a_shipped_graph_is_fetched_instead_of_weights(
    hub: StandInHub, client: Client, tmp_path: Path, family: str, suffix: str
) -> None:
    folder = tiny_model(family, tmp_path / "model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    hub.add("org/tiny", folder)
    # A finder that hides torch, in a module that Python imports at its start.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
    )
    answer = client.run(env={"PYTHONPATH": str(tmp_path / "site")})
    assert "error" not in answer, answer
    large = [seen.path for seen in hub.downloads() if seen.path.endswith((".onnx", ".safetensors"))]
    assert [Path(path).suffix for path in large] == [suffix]
    before = len(hub.seen)
    assert client.run(env={"PYTHONPATH": str(tmp_path / "site")})["path"] == answer["path"]
    assert len(hub.seen) == before


def test_a_file_name_that_leaves_the_repository(hub: StandInHub, client: Client, model: Path) -> None:
    commit = hub.add("org/tiny", model)
    hub._repositories["org/tiny"].commits[commit]["x/../../../config.json"] = b"{}"
    answer = client.run()
    assert answer["error"] == "ModelError" and "leaves the repository" in answer["message"]
    assert not hub.downloads()


def test_progress_is_shown_on_a_terminal(hub: StandInHub, client: Client, model: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    hub.add("org/tiny", model)
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 100))
    shown = threading.Thread(target=lambda: chunks.extend(_read_all(primary)), daemon=True)
    chunks: list[bytes] = []
    shown.start()
    subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps({"model_id": "org/tiny"})],
        env=client.environment(),
        stdout=subprocess.DEVNULL,
        stderr=secondary,
        check=True,
        timeout=120,
    )
    os.close(secondary)
    shown.join(timeout=10)
    os.close(primary)
    assert b"%|" in b"".join(chunks)


def _read_all(descriptor: int) -> Iterator[bytes]:
    """Until the other side of a terminal is closed, which reads as an error on Linux."""
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, 65536):
            yield chunk


def test_a_repository_without_model_files(hub: StandInHub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    hub.add("org/tiny", tmp_path)
    assert "no model files" in client.run()["message"]
