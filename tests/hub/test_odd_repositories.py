"""Broken, unusual and hostile repositories: a clear error or sentence-transformers, never a guess."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilbert.core import Task
from hilbert.errors import ModelError, ModelUnavailable
from hilbert.hub import resolve
from hilbert.hub.files import safe_folder
from hilbert.hub.snapshots import wanted_files
from hilbert.testing.models import Dense, tiny_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILBERT_CACHE_DIR", str(tmp_path / "hilbert-cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model("bert", tmp_path / "model", dense=(Dense(32),))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def set_entry(folder: Path, index: int, **values: Any) -> None:
    def change(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        modules[index] |= values
        return modules

    edit(folder / "modules.json", change)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc",
        "/etc",
        "1_Pooling/../../x",
        "..",
        "\\\\host\\x",
        "C:\\x",
        "C:x",
        "~/x",
        "a\0b",
        "..\\..\\x",
    ],
)
def test_a_path_that_leaves_the_repository_is_refused(folder: Path, path: str) -> None:
    set_entry(folder, 1, path=path)
    with pytest.raises(ModelError, match="leaves the repository"):
        resolve(str(folder))


@pytest.mark.parametrize("path", [None, 3, ["x"]])
def test_a_path_must_be_a_string(folder: Path, path: Any) -> None:
    set_entry(folder, 1, path=path)
    with pytest.raises(ModelError, match="must be a string"):
        resolve(str(folder))


def test_harmless_spellings_of_a_path(tmp_path: Path) -> None:
    for text, canonical in (("", ""), (".", ""), ("./1_P", "1_P"), ("1_P/", "1_P"), ("a//b", "a/b")):
        assert safe_folder(text, tmp_path) == canonical


def test_shards_outside_the_repository_are_refused(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, weights="shards")

    def change(index: dict[str, Any]) -> dict[str, Any]:
        index["weight_map"] = dict.fromkeys(index["weight_map"], "../../secret.safetensors")
        return index

    edit(folder / "model.safetensors.index.json", change)
    with pytest.raises(ModelError, match="leaves the repository"):
        resolve(str(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, weights="shards")
    spec = resolve(str(folder))
    assert len(spec.weights) > 2
    (folder / spec.weights[1]).unlink()
    with pytest.raises(ModelUnavailable, match=spec.weights[1]):
        resolve(str(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "tokenizer_config.json", "1_Pooling/config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b'"text"', b"{} x"])
def test_broken_json_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        resolve(str(folder))
    assert name.rpartition("/")[2] in caught.value.message


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "model_type", []),
        ("config_sentence_transformers.json", "default_prompt_name", ["query"]),
        ("sentence_bert_config.json", "transformer_task", {}),
        ("1_Pooling/config.json", "pooling_mode", [["mean"]]),
    ],
)
def test_values_of_another_kind(folder: Path, name: str, key: str, value: Any) -> None:
    edit(folder / name, lambda config: config | {key: value})
    with pytest.raises(ModelError, match="a value of a kind that does not belong there") as caught:
        resolve(str(folder))
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("modules", [[], {}, ["x"], [None]])
def test_modules_that_are_no_list(folder: Path, modules: Any) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"modules\.json"):
        resolve(str(folder))


@pytest.mark.parametrize(
    "kind",
    [
        "modeling_own.Custom",
        "os.system",
        "pylate.models.Dense.Dense",
        "sentence_transformers.models.CNN",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
        "sentence_transformers.models.Router",
    ],
)
def test_unknown_modules_are_left_to_sentence_transformers(folder: Path, kind: str) -> None:
    set_entry(folder, 1, type=kind)
    spec = resolve(str(folder))
    assert spec.kind == "other" and kind in spec.reason
    assert spec.remote_code == (not kind.startswith("sentence_transformers."))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_residual": True}, "residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_dense_layers_of_another_kind(folder: Path, change: dict[str, Any], reason: str) -> None:
    edit(folder / "2_Dense" / "config.json", lambda config: config | change)
    spec = resolve(str(folder))
    assert spec.kind == "other" and reason in spec.reason


def test_an_activation_from_outside_torch(folder: Path) -> None:
    """Untrusted, it becomes Tanh, as in sentence-transformers; trusted, only that can run it."""
    edit(folder / "2_Dense" / "config.json", lambda config: config | {"activation_function": "os.system"})
    assert resolve(str(folder)).modules[1].activation.endswith(".Tanh")  # type: ignore[union-attr]
    assert resolve(str(folder), trust_remote_code=True).kind == "other"


@pytest.mark.parametrize("value", [None, 0, -1, "64", True, 1.5])
def test_sizes_must_be_positive(folder: Path, value: Any) -> None:
    edit(folder / "2_Dense" / "config.json", lambda config: config | {"out_features": value})
    with pytest.raises(ModelError, match="out_features"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tokenizer_args": {"add_eos_token": True}}, "add_eos_token"),
        ({"transformer_task": "fill-mask"}, "fill-mask"),
        ({"modality_config": {"message": {"method": "forward"}}}, "forward pass"),
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
        ({"query_length": 32}, "query_length"),
    ],
)
def test_transformer_settings_that_change_the_text(
    folder: Path, settings: dict[str, Any], reason: str
) -> None:
    edit(folder / "sentence_bert_config.json", lambda config: config | settings)
    spec = resolve(str(folder))
    assert spec.kind == "other" and reason in spec.reason


def test_transformer_settings_that_are_followed(folder: Path) -> None:
    settings = {
        "tokenizer_args": {"model_max_length": 20},
        "config_args": {"layer_norm_eps": 0.5, "trust_remote_code": True},
        "model_args": {"attn_implementation": "eager"},
    }
    edit(folder / "sentence_bert_config.json", lambda config: config | settings)
    spec = resolve(str(folder))
    assert (spec.kind, spec.max_model_len, spec.config["layer_norm_eps"]) == ("transformer", 20, 0.5)
    assert "trust_remote_code" not in spec.config


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not a model repository"):
        resolve(str(tmp_path))
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"):
        with pytest.raises(ModelUnavailable, match="no model folder"):
            resolve(name)
    with pytest.raises(ModelUnavailable, match="empty"):
        resolve("")


@pytest.mark.parametrize("name", ["org/na me", "org/..", "a--b/c", "-x/y", "org/name\n", "ünï/x", "o" * 97])
def test_what_cannot_be_a_hub_id(name: str) -> None:
    with pytest.raises(ModelUnavailable, match="hub id"):
        resolve(name)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="no weights"):
        resolve(str(folder))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    spec = resolve(str(folder))
    assert (spec.weights, spec.graph_files) == ((), ("onnx/model.onnx",))
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.xml").write_bytes(b"x")
    assert resolve(str(folder)).graph_files == ("onnx/model.onnx",), "an xml without its bin is no graph"
    (folder / "openvino" / "openvino_model.bin").write_bytes(b"x")
    assert resolve(str(folder)).graph_files[0] == "openvino/openvino_model.xml"


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, weights="bin")
    assert resolve(str(folder)).weights == ("pytorch_model.bin",)
    shutil.copy(tiny_model("bert", tmp_path / "other") / "model.safetensors", folder)
    assert resolve(str(folder)).weights == ("model.safetensors",)


@pytest.mark.parametrize("damage", ["short", "header", "empty", "lie"])
def test_a_broken_embedding_table(tmp_path: Path, damage: str) -> None:
    folder = tiny_model("static", tmp_path)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(
        {
            "short": data[:-1],
            "header": data[:8] + b"x" + data[9:],
            "empty": b"",
            "lie": struct.pack("<Q", 1 << 62) + data[8:],
        }[damage]
    )
    with pytest.raises(ModelUnavailable, match="not a whole safetensors file"):
        resolve(str(folder))


def test_a_model2vec_mapping_counts_token_ids(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tiny_model("model2vec", tmp_path)
    tensors = {"embeddings": np.zeros((10, 16), np.float32), "mapping": np.zeros(357, np.int64)}
    save_file(tensors, folder / "model.safetensors")
    spec = resolve(str(folder))
    assert (spec.vocab_size, spec.dimensions) == (357, 16)


@pytest.mark.parametrize(("labels", "task"), [(1, Task.RERANK), (3, Task.CLASSIFY)])
def test_the_task_of_plain_repositories(tmp_path: Path, labels: int, task: Task) -> None:
    folder = tiny_model("bert", tmp_path, layout="plain")
    names = {str(i): f"L{i}" for i in range(labels)}
    head = {"architectures": ["BertForSequenceClassification"], "id2label": names}
    edit(folder / "config.json", lambda config: config | head)
    assert resolve(str(folder)).task == task


def test_remote_code_is_reported(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config | {"auto_map": {"AutoModel": "own.Model"}})
    assert resolve(str(folder)).remote_code


def test_a_default_prompt_that_does_not_exist(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", lambda c: c | {"default_prompt_name": "nope"})
    with pytest.raises(ModelError, match="'nope'"):
        resolve(str(folder))


def test_wanted_files() -> None:
    names = """
        .gitattributes README.md config.json modules.json tokenizer.json vocab.txt merges.txt own.py
        model.safetensors model.fp16.safetensors consolidated.safetensors pytorch_model.bin optimizer.pt
        training_args.bin 1_Pooling/config.json 2_Dense/config.json 2_Dense/pytorch_model.bin
        onnx/model.onnx onnx/model_quantized.onnx onnx/config.json openvino/openvino_model.xml
        openvino/openvino_model.bin openvino/openvino_model_qint8_quantized.xml
        checkpoint-100/model.safetensors
    """.split()  # noqa: SIM905 - a list of files reads better as one
    small = {"config.json", "modules.json", "tokenizer.json", "vocab.txt", "merges.txt"}
    small |= {"1_Pooling/config.json", "2_Dense/config.json"}
    graph = {"openvino/openvino_model.xml", "openvino/openvino_model.bin"}
    dense = {"2_Dense/pytorch_model.bin"}
    assert set(wanted_files(names)) == small | dense | {"model.safetensors"}
    assert set(wanted_files(names, prefer_graphs=True)) == small | dense | graph
    assert "own.py" in wanted_files(names, trust_remote_code=True)
    assert set(wanted_files(["onnx/model.onnx", "onnx/model.onnx_data", "config.json"])) == {
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "config.json",
    }
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert wanted_files([*shards, "consolidated.safetensors"]) == shards
    assert wanted_files(["pytorch_model.bin", "extra.pt"]) == ["pytorch_model.bin"]
    m3 = ["colbert_linear.pt", "model.safetensors", "sparse_linear.pt"]
    assert wanted_files(m3) == m3
