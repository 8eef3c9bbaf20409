"""The verbs beside serving."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_house import clean_environment, hilbert

import hilbert as package
from hilbert.cli import main
from hilbert.config import DEFAULT_MODEL_ID
from hilbert.hub.bundled import MODEL_ID
from hilbert.testing.hub import StandInHub
from hilbert.testing.models import tiny_model


def test_version_and_help() -> None:
    assert hilbert("--version").stdout == f"hilbert {package.__version__}\n"
    for argv in (
        ("--help",),
        ("models", "--help"),
        ("verify", "--help"),
        ("export", "--help"),
        ("serve", "-h"),
    ):
        ended = hilbert(*argv)
        assert ended.returncode == 0 and "Usage: hilbert" in ended.stdout, argv
    assert "--max-batch-tokens" in hilbert("serve", "--help").stdout
    assert "--onnx" not in hilbert("v2", "--help").stdout  # hidden
    assert hilbert("nonsense").returncode == 2


def test_the_default_model_is_the_bundled_one() -> None:
    assert DEFAULT_MODEL_ID == MODEL_ID


def test_info_says_which_way_and_why(static, tmp_path) -> None:
    def row(text: str, name: str) -> str:
        return next(line[12:] for line in text.splitlines() if line.startswith(name))

    bert = tiny_model("bert", tmp_path / "bert", prompts={"query": "query: "})
    text = hilbert("models", "info", str(bert)).stdout
    assert row(text, "runs").startswith("packed: ") and row(text, "prompts") == "query 'query: '"
    assert row(text, "dimensions") == "64"
    assert row(hilbert("models", "info", static).stdout, "runs").startswith("static: ")
    mpnet = tiny_model("mpnet", tmp_path / "mpnet")
    assert row(hilbert("models", "info", str(mpnet)).stdout, "runs").startswith("padded: ")


def test_pull_revision_and_token(static, tmp_path) -> None:
    other = tiny_model("static", tmp_path / "other", seed=1)
    with StandInHub() as hub:
        hub.add("org/open", static)
        at = hub.add("org/open", other, revision="v2")
        hub.add("org/closed", static, token="hf_secret")
        environ = hub.environment(tmp_path / "cache")
        pulled = hilbert("models", "pull", "org/open", "--revision", "v2", **environ)
        assert pulled.returncode == 0 and at in pulled.stdout
        refused = hilbert("models", "pull", "org/closed", **environ)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert hilbert("models", "pull", "org/closed", "--token", "hf_secret", **environ).returncode == 0


def test_serve_takes_revision_and_token(start, static, tmp_path) -> None:
    other = tiny_model("static", tmp_path / "other", seed=1)
    with StandInHub() as hub:
        hub.add("org/model", static, token="hf_secret")
        hub.add("org/model", other, revision="v2", token="hf_secret")
        environ = hub.environment(tmp_path / "cache")
        newest = start("-m", "org/model", HILBERT_TOKEN="hf_secret", **environ)
        tagged = start("-m", "org/model", "--revision", "v2", "--token", "hf_secret", **environ)
        vectors = [s.post(["room"]).json()["data"][0]["embedding"] for s in (newest, tagged)]
        local = start("-m", str(other)).post(["room"]).json()["data"][0]["embedding"]
    assert vectors[0] != vectors[1] == local


def test_trust_remote_code_fetches_the_code_and_nothing_else_does(static, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    model = tiny_model("static", tmp_path / "model")
    (model / "modeling_own.py").write_text("raise RuntimeError('never run')")
    with StandInHub() as hub:
        hub.add("org/own", model)
        for number, flags in enumerate(((), ("--trust-remote-code",))):
            cache = tmp_path / f"cache-{number}"
            ended = hilbert("serve", "-m", "org/own", "--preload-only", *flags, **hub.environment(cache))
            assert ended.returncode == 0, ended.stderr
            assert bool(list(cache.rglob("modeling_own.py"))) is bool(flags)


@pytest.mark.slow
def test_verify_prints_a_certificate(tmp_path, cache) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    ended = hilbert("verify", model, "--dtype", "float32", "--cache-dir", cache)
    assert ended.returncode == 0, ended.stderr
    for words in ("worst cosine", "largest abs. difference", "sentence-transformers 6", "result", "good"):
        assert words in ended.stdout
    wrong = hilbert("verify", model, "--dtype", "int4")
    assert wrong.returncode == 2 and "--dtype 'int4'" in wrong.stderr


def test_what_has_no_graph_is_not_exported(tmp_path, capsys) -> None:
    model = tiny_model("static", tmp_path / "static")
    assert main(["export", str(model), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "cannot be exported" in said and "a table of token vectors" in said and "serve it as it is" in said


@pytest.mark.slow
def test_an_exported_folder_is_served_without_torch(start, tmp_path, cache) -> None:
    model = tiny_model("bert", tmp_path / "bert", prompts={"query": "find: "})
    folder = tmp_path / "exported"
    made = hilbert("export", str(model), str(folder), "--dtype", "float32")
    assert made.returncode == 0 and f"hilbert serve -m {folder}" in made.stdout, made.stderr
    assert hilbert("export", str(model), str(folder)).returncode == 1  # never over something
    said = hilbert("models", "info", str(folder)).stdout
    assert f"export of   {model} at digest " in said and "for engine openvino 20" in said
    assert "in float32" in said and "\nruns        packed: " in said
    refused = hilbert("serve", "-m", str(folder), "--engine", "torch", "--port", "0")
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    for words in (f"{folder} is an export of {model}", "--engine openvino", f"-m {model}"):
        assert words in refused.stderr, words
    blocked = tmp_path / "blocked"
    for name in ("torch", "transformers"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not installed')")
    flags = ("--dtype", "float32", "--cache-dir", cache)
    exported = start("-m", str(folder), *flags, PYTHONPATH=str(blocked))
    original = start("-m", str(model), *flags)
    for more in ({}, {"prompt_name": "query"}):
        left, right = (
            s.post(["a room"], **more).json()["data"][0]["embedding"] for s in (exported, original)
        )
        assert left == pytest.approx(right, abs=1e-6)


def test_the_bare_package_says_what_to_install(tmp_path) -> None:
    blocker = (
        "import sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'uvicorn', 'typer', 'openvino', 'starlette', 'tokenizers'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Bare())\n"
        "from hilbert.cli import main\n"
        "sys.exit(main())\n"
    )
    for argv in (["serve"], ["models", "info", "x"], ["--help"]):
        ended = subprocess.run(
            [sys.executable, "-c", blocker, *argv],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert "pip install 'hilbert[serve]'" in ended.stderr and len(ended.stderr.splitlines()) == 1
