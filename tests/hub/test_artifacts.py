"""The artifact cache: whole or not at all, and never trusted unchecked."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hilbert.core import ModelSpec
from hilbert.errors import ModelError
from hilbert.hub import resolve
from hilbert.hub.artifacts import (
    MANIFEST,
    ArtifactStore,
    cpu_isa,
    fingerprint,
    is_intact,
    read_manifest,
    seal,
)
from hilbert.testing.models import tiny_model


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(tiny_model("bert", tmp_path_factory.mktemp("bert"))))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def build(store: ArtifactStore, key: str, spec: ModelSpec, content: bytes = b"weights" * 1000) -> Path:
    with store.building(key) as work:
        (work / "model.bin").write_bytes(content)
        (work / "model.xml").write_bytes(b"<net/>")
        return store.commit(key, work, spec, {"program": "packed"})


def test_an_artifact_comes_back_with_its_spec(store: ArtifactStore, spec: ModelSpec, tmp_path: Path) -> None:
    assert store.open("key") is None
    folder = build(store, "key", spec)
    assert store.open("key") == folder
    manifest = read_manifest(folder)
    assert manifest is not None and set(manifest["files"]) == {"model.bin", "model.xml"}
    assert manifest["files"]["model.xml"]["bytes"] == 6
    assert msgspec.convert(manifest["spec"], ModelSpec) == spec
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["key"], "no work folder is left"


@pytest.mark.parametrize(
    "damage",
    [
        "flip",
        "truncate",
        "missing",
        "manifest",
        "empty manifest",
        "no manifest",
        "what it says",
        "its digest",
        "odd",
    ],
)
def test_a_damaged_artifact_is_built_again(damage: str, store: ArtifactStore, spec: ModelSpec) -> None:
    folder = build(store, "key", spec)
    weights, manifest = folder / "model.bin", folder / MANIFEST
    data = bytearray(weights.read_bytes())
    match damage:
        case "flip":
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "truncate":
            weights.write_bytes(data[:-1])
        case "missing":
            weights.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:-20])
        case "empty manifest":
            manifest.write_bytes(b"")
        case "no manifest":
            manifest.unlink()
        case "what it says":
            manifest.write_text(manifest.read_text().replace('"packed"', '"qacked"'))
        case "its digest":
            said = json.loads(manifest.read_text())
            del said["sha256"]
            manifest.write_text(json.dumps(said))
        case "odd":
            manifest.write_text(
                json.dumps({"format": 1, "spec": {}, "program": {}, "files": {"model.bin": 3}})
            )
    assert store.open("key") is None
    assert not folder.exists()
    assert store.open(build(store, "key", spec).name) == folder


def test_a_build_that_fails_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(KeyError), store.building("key") as work:
        (work / "model.bin").write_bytes(b"half")
        raise KeyError
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_what_a_killed_builder_left_is_swept_and_what_is_being_built_is_not(
    store: ArtifactStore, spec: ModelSpec, tmp_path: Path
) -> None:
    code = (
        "import os, sys\nfrom hilbert.hub.artifacts import ArtifactStore\n"
        "with ArtifactStore(sys.argv[1]).building('key') as work:\n"
        "    (work / 'model.bin').write_bytes(b'half')\n    print(work.name, flush=True)\n    input()\n"
    )
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    living, killed = (builder.stdout.readline().strip() for builder in builders)  # type: ignore[union-attr]
    builders[1].kill()
    builders[1].wait()
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {living, killed}
    assert store.open("key") is None
    build(store, "key", spec)
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == {living, "key"}
    for builder in builders:
        builder.communicate("\n")


def test_the_second_of_two_builders_takes_the_first_ones(store: ArtifactStore, spec: ModelSpec) -> None:
    with store.building("key") as mine, store.building("key") as theirs:
        for work in (mine, theirs):
            (work / "model.bin").write_bytes(work.name.encode())
        assert store.commit("key", theirs, spec, {}) == store.commit("key", mine, spec, {})
        assert store.open("key") is not None
        assert (store.open("key") / "model.bin").read_bytes() == theirs.name.encode()  # type: ignore[operator]


def test_a_builder_replaces_a_broken_artifact_that_stands_in_its_place(
    store: ArtifactStore, spec: ModelSpec
) -> None:
    with store.building("key") as work:
        (work / "model.bin").write_bytes(b"good")
        (build(store, "key", spec) / "model.bin").write_bytes(b"broken")
        folder = store.commit("key", work, spec, {})
    assert store.open("key") == folder and (folder / "model.bin").read_bytes() == b"good"


RACE = """
import sys
from pathlib import Path
import msgspec
from hilbert.core import ModelSpec
from hilbert.hub.artifacts import ArtifactStore
store = ArtifactStore(sys.argv[1])
spec = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=ModelSpec)
sys.stdin.readline()
for turn in range(20):
    key = f"key{turn}"
    if store.open(key) is None:
        with store.building(key) as work:
            (work / "model.bin").write_bytes(b"w" * 100_000)
            store.commit(key, work, spec, {})
    assert store.open(key) is not None
print("done")
"""


def test_processes_that_build_the_same_at_once(tmp_path: Path, spec: ModelSpec) -> None:
    (tmp_path / "spec").write_bytes(msgspec.json.encode(spec))
    arguments = [sys.executable, "-c", RACE, str(tmp_path), str(tmp_path / "spec")]
    children = [
        subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        out, error = child.communicate(timeout=60)
        assert out.strip() == "done", error
    assert len(list((tmp_path / "artifacts").iterdir())) == 20


def test_a_full_disk_says_so(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(ModelError, match=r"the disk is full.*HILBERT_CACHE_DIR"),
        store.building("key") as work,
    ):
        monkeypatch.setattr("tempfile.mkstemp", full)
        store.commit("key", work, None, {})  # type: ignore[arg-type]


def test_a_full_disk_says_so_whatever_a_library_says(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO fails with words of its own, behind which nobody would look for the disk."""

    def fail() -> None:
        with store.building("key"):
            raise ModelError("tracing failed: Exception from src/core.cpp:104")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ModelError, match="tracing failed"):
        fail()
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ModelError, match=r"the disk is full.*--cache-dir"):
        fail()


def test_the_cache_is_not_blamed_for_other_files_nor_for_processes(
    store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), store.building("key"):
        (tmp_path.parent / "missing").read_bytes()
    with pytest.raises(BlockingIOError), store.building("key"):  # no more processes
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    with pytest.raises(ModelError, match="cannot be written: Is a directory"), store.building("key") as work:
        work.write_bytes(b"")


def test_a_cache_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ModelError, match="cannot be written"),
        ArtifactStore(tmp_path / "file").building("key"),
    ):
        pass


def test_fingerprint(spec: ModelSpec, tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "program_version": 1,
        "dtype": "float32",
        "runtime_version": "2026.4",
        "cpu_isa": "avx2",
        "extra": "",
    }
    base = fingerprint(spec, **facts)
    assert base == fingerprint(spec, **facts) and len(base) == 32
    changes: dict[str, Any] = {
        "program_version": 2,
        "dtype": "bfloat16",
        "runtime_version": "2026.5",
        "cpu_isa": "avx512f",
        "extra": "x",
    }
    assert all(fingerprint(spec, **(facts | {k: v})) != base for k, v in changes.items())
    for change in ({"digest": "0"}, {"config": {}}, {"modules": ()}):
        assert fingerprint(msgspec.structs.replace(spec, **change), **facts) != base
    for change in ({"path": "/elsewhere"}, {"model_id": "other"}):
        assert fingerprint(msgspec.structs.replace(spec, **change), **facts) == base


def test_compiled_forms_are_emptied_when_in_doubt(store: ArtifactStore) -> None:
    folder = store.compiled("key")
    assert folder is not None
    (folder / "1.blob").write_bytes(b"x" * 1000)
    seal(folder)
    assert store.compiled("key") == folder and (folder / "1.blob").exists()
    (folder / "1.blob").write_bytes(b"y" * 1000)
    assert store.compiled("key") == folder and not (folder / "1.blob").exists()


def test_an_exported_folder_is_checked_in_place(
    store: ArtifactStore, spec: ModelSpec, tmp_path: Path
) -> None:
    exported = tmp_path / "exported"
    shutil.copytree(build(store, "key", spec), exported)
    manifest = read_manifest(exported)
    assert manifest is not None and is_intact(exported, manifest)
    assert not is_intact(exported, manifest | {"program": {"program": "qacked"}})
    del manifest["sha256"]  # as it was before
    assert is_intact(exported, manifest)
    (exported / "model.xml").write_bytes(b"<NET/>")
    assert not is_intact(exported, manifest)


def test_cpu_isa_is_stable() -> None:
    assert cpu_isa() == cpu_isa()
