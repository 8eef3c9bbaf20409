"""Where a model is found, what its digest notices, and what a warm start costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from hilbert.errors import MissingDependency, ModelUnavailable, WeightMismatch
from hilbert.hub import bundled, resolve
from hilbert.hub.artifacts import write_manifest
from hilbert.hub.digests import cache_root, digests_of, sha256_file
from hilbert.hub.lookup import pull
from hilbert.testing.hub import StandInHub
from hilbert.testing.models import tiny_model

needs_bundled = pytest.mark.skipif(bundled.find_bundled() is None, reason="hilbert[bundled] is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HILBERT_CACHE_DIR", str(tmp_path / "hilbert-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    return tmp_path / "hilbert-cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model("bert", tmp_path / "model")


def settle(*paths: Path) -> None:
    """Make files old enough to be remembered: a real model is not written in the same tenth of a second."""
    time.sleep(0.15)


@needs_bundled
def test_the_bundled_model() -> None:
    spec = resolve(None)
    assert (spec.model_id, spec.kind, spec.dimensions, spec.max_model_len) == (
        bundled.MODEL_ID,
        "transformer",
        384,
        256,
    )
    assert spec.normalize and spec.pooling is not None and spec.pooling.modes == ("mean",)
    for name in bundled.NAMES:
        assert resolve(name).digest == spec.digest
    assert bundled.PACKAGE not in sys.modules, "the package's own code never runs"


@needs_bundled
def test_changed_bundled_weights_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundled.find_bundled()
    assert real is not None
    copy = tmp_path / "site" / bundled.PACKAGE
    shutil.copytree(real, copy / "model")
    (copy / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(copy.parent))
    assert resolve(None).path == str(copy / "model")
    weights = copy / "model" / bundled.WEIGHTS
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns and weights.stat().st_size == before.st_size
    with pytest.raises(WeightMismatch, match=bundled.SHA256):
        resolve(None)


def test_the_bundled_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGE", "no_such_package")
    with pytest.raises(MissingDependency, match=r"hilbert\[bundled\]"):
        resolve(None)


def test_digest_follows_every_file_that_decides(folder: Path) -> None:
    (folder / "artifact.metadata").write_text("{}")  # of Stanford's ColBERT
    first = resolve(str(folder)).digest
    assert len(first) == 64 and resolve(str(folder)).digest == first
    names = ("model.safetensors", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json")
    for name in (*names, "artifact.metadata"):
        path = folder / name
        original = path.read_bytes()
        path.write_bytes(original + b" ")
        assert resolve(str(folder)).digest != first, name
        path.write_bytes(original)
        assert resolve(str(folder)).digest == first, name
    (folder / "README.md").write_text("a model")
    assert resolve(str(folder)).digest == first


def test_the_same_files_elsewhere_have_the_same_digest(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert resolve(str(copy)).digest == resolve(str(folder)).digest


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hilbert.hub import digests

    hashed: list[Path] = []
    monkeypatch.setattr(digests, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    settle(folder)
    resolve(str(folder))
    assert hashed
    hashed.clear()
    resolve(str(folder))
    assert hashed == []
    weights = folder / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    resolve(str(folder))
    assert hashed == [weights], "the same size and mtime, but other bytes"


def test_a_broken_memory_is_no_memory(folder: Path, cache: Path) -> None:
    settle(folder)
    first = resolve(str(folder)).digest
    (memo,) = (cache / "digests").iterdir()
    for garbage in (b"", b"{", b"[]", b'{"model.safetensors": 1}'):
        memo.write_bytes(garbage)
        assert resolve(str(folder)).digest == first


def test_a_cache_that_cannot_be_written_only_costs_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("HILBERT_CACHE_DIR", str(tmp_path / "a-file" / "below"))
    assert resolve(str(folder)).digest


def test_everything_remembered_is_in_the_cache_that_was_named(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    """Which fails as soon as one of them looks at `HILBERT_CACHE_DIR` instead."""
    settle(folder)
    named = tmp_path / "named"
    resolve(str(folder), own_cache=named)
    with StandInHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.add("org/tiny", folder)
        for name, value in hub.environment(tmp_path / "hub").items():
            patch.setenv(name, value)
        patch.setenv("HILBERT_CACHE_DIR", str(cache))
        resolve("org/tiny", own_cache=named)
        before = len(hub.seen)
        resolve("org/tiny", own_cache=named)
        assert len(hub.seen) == before
    assert {path.name for path in named.iterdir()} == {"digests", "listings"}
    assert not cache.exists()


def test_digests_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="gone"):
        digests_of(tmp_path, ["gone"])


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HILBERT_CACHE_DIR", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "named") == tmp_path / "named"
    monkeypatch.delenv("HILBERT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "hilbert"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "hilbert"


def test_an_exported_folder(folder: Path, tmp_path: Path) -> None:
    spec = resolve(str(folder))
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "model.xml").write_bytes(b"<net/>")
    shutil.copy(folder / "tokenizer.json", exported)
    write_manifest(exported, spec, {"program": "packed"})
    found = resolve(str(exported))
    assert (found.path, found.model_id, found.weights) == (str(exported), str(exported), ())
    assert (found.digest, found.modules, found.config) == (spec.digest, spec.modules, spec.config)
    for damage in ({"format": 99}, {"spec": {"model_id": 3}}, {"spec": None}):
        manifest = json.loads((exported / "hilbert.json").read_text())
        write_manifest(exported, spec, {})
        (exported / "hilbert.json").write_text(json.dumps(manifest | damage))
        with pytest.raises(ModelUnavailable, match="export the model again"):
            resolve(str(exported))


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    spec = resolve("model")
    assert (spec.path, spec.model_id) == (str(folder), "model")


@pytest.mark.parametrize(
    ("model_id", "words"),
    [("~nobody-of-this-name/model", "There is no model folder"), ("a" * 5000, "is neither a folder here")],
)
def test_names_that_no_file_system_takes(model_id: str, words: str) -> None:
    for find in (resolve, pull):
        with pytest.raises(ModelUnavailable, match=words):
            find(model_id)


def test_a_warm_resolve_is_fast_and_imports_nothing_heavy(folder: Path) -> None:
    settle(folder)
    resolve(str(folder))
    code = (
        "import sys, time; from hilbert.hub import resolve; a = time.perf_counter(); "
        f"resolve({str(folder)!r}); b = time.perf_counter(); "
        f"resolve({str(folder)!r}); c = time.perf_counter(); "
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'typer', 'rich', 'requests', 'tokenizers', "
        "'openvino', 'httpx2', 'asyncio', 'safetensors'} & set(sys.modules); "
        "print(min(b - a, c - b)); print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 0.02, "0.7 ms on the machine it was written on"


def test_specs_differ_only_where_they_should(folder: Path) -> None:
    one, two = resolve(str(folder)), resolve(f"{folder}/")
    assert msgspec.structs.replace(two, model_id=one.model_id) == one
