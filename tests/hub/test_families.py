"""What is read from a repository's JSON equals what sentence-transformers loads, for every family."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert.core import DenseModule, LayerNormModule, ModelSpec, NormalizeModule, PoolingMode, PoolingModule
from hilbert.hub import resolve
from hilbert.testing.models import FAMILIES, IDENTITY, STATIC_FAMILIES, Dense, tiny_model

LENGTHS = [1, 2, 7, 8, 15, 16, 17, 33, 48, 100, 126, 127, 300]
TEXTS = [
    "",
    " ",
    "the river, the mountain",
    "日本 \U0001f600 \0 ü",
    *(" ".join(["hotel"] * n) for n in LENGTHS),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILBERT_CACHE_DIR", str(tmp_path / "hilbert-cache"))


def load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def assert_same(spec: ModelSpec, reference: Any) -> None:
    length = reference.max_seq_length
    assert spec.max_model_len == (None if length is None or length > 1e8 or math.isinf(length) else length)
    assert spec.dimensions == reference.get_embedding_dimension()
    kinds = [type(module).__name__ for module in reference]
    assert spec.normalize == (kinds[-1] == "Normalize")
    pooling = [module for module in reference if type(module).__name__ == "Pooling"]
    if pooling:
        assert spec.pooling is not None
        modes = pooling[0].pooling_mode
        assert spec.pooling.modes == ((modes,) if isinstance(modes, str) else tuple(modes))
        assert spec.pooling.include_prompt == pooling[0].include_prompt
    texts = {name: text for name, text in reference.prompts.items() if text}
    assert {name: text for name, text in spec.prompts.items() if text} == texts
    assert spec.default_prompt_name == reference.default_prompt_name
    assert spec.similarity == reference.similarity_fn_name


@pytest.mark.parametrize("family", [*FAMILIES, *STATIC_FAMILIES])
def test_spec_equals_sentence_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / family)
    spec, reference = resolve(str(folder)), load(folder)
    assert_same(spec, reference)
    assert spec.kind == ("static" if family in STATIC_FAMILIES else "transformer"), spec.reason
    if family in FAMILIES:
        assert spec.family == family
        model = reference[0].auto_model
        assert (spec.hidden_size, spec.vocab_size) == (model.config.hidden_size, model.config.vocab_size)
        assert spec.architecture == type(model).__name__
    vectors = reference.encode(TEXTS, batch_size=8)
    assert vectors.shape == (len(TEXTS), spec.dimensions) and np.isfinite(vectors[2:]).all()
    decoded = msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec)
    assert decoded == spec, "a spec survives the way to the worker"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_file_is_what_transformers_uses(family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = tiny_model(family, tmp_path)
    ours, theirs = (
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(str(folder)),
    )
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_not_small(family: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    for name, tensor in load_file(tiny_model(family, tmp_path) / "model.safetensors").items():
        if tensor.size > 1:
            assert tensor.std() >= 0.05, name
        assert np.abs(tensor).min() > 0 or tensor.size > 1000, f"{name} has zeros"


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for family in ("bert", "qwen3", "model2vec"):
        one, two = (tiny_model(family, tmp_path / f"{family}{i}") for i in "ab")
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
        other = tiny_model(family, tmp_path / f"{family}c", seed=1)
        assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("mode", [mode.value for mode in PoolingMode])
def test_pooling_modes(mode: str, tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, pooling=mode)
    assert_same(resolve(str(folder)), load(folder))


def test_several_pooling_modes_keep_their_order(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, pooling=("mean", "cls", "max"), include_prompt=False)
    spec, reference = resolve(str(folder)), load(folder)
    assert_same(spec, reference)
    assert spec.modules == (PoolingModule((PoolingMode.CLS, PoolingMode.MAX, PoolingMode.MEAN), False),)
    assert spec.dimensions == 3 * 64


@pytest.mark.parametrize("family", ["bert", "gemma3_text", "static"])
def test_as_sentence_transformers_itself_saves_it(family: str, tmp_path: Path) -> None:
    """Newer class paths, ``pooling_mode`` as a string, ``embedding_dimension``."""
    layers = (Dense(48, True, IDENTITY), Dense(32))
    folder = tiny_model(family, tmp_path / "old", dense=layers, prompts={"query": "query: ", "document": ""})
    reference = load(folder)
    reference.save(str(tmp_path / "new"))
    old, new = resolve(str(folder)), resolve(str(tmp_path / "new"))
    assert new.kind == old.kind, new.reason
    assert_same(new, load(tmp_path / "new"))
    assert [type(m) for m in new.modules] == [type(m) for m in old.modules]
    assert (new.max_model_len, new.dimensions, new.prompts) == (
        old.max_model_len,
        old.dimensions,
        old.prompts,
    )


def test_a_pooling_list_of_newer_versions(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 64, "pooling_mode": ["lasttoken", "cls"]}))
    spec = resolve(str(folder))
    assert_same(spec, load(folder))
    assert spec.pooling == PoolingModule((PoolingMode.LAST, PoolingMode.CLS))


def test_the_whole_chain(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, dense=(Dense(48), Dense(32, False, IDENTITY)), layer_norm=True)
    spec = resolve(str(folder))
    assert_same(spec, load(folder))
    assert spec.modules[1:] == (
        DenseModule("2_Dense", 64, 48, True, "torch.nn.modules.activation.Tanh"),
        DenseModule("3_Dense", 48, 32, False, ""),
        LayerNormModule("4_LayerNorm", 32),
    )


def test_normalize_in_the_middle_stays_in_the_chain(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path, dense=(Dense(32),))
    modules = json.loads((folder / "modules.json").read_text())
    modules[2], modules[3] = modules[3], modules[2]
    (folder / "modules.json").write_text(json.dumps(modules))
    spec = resolve(str(folder))
    assert not spec.normalize and isinstance(spec.modules[1], NormalizeModule)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_seq_length": 32},
        {"model_max_length": 64},
        {"model_max_length": None},
        {"model_max_length": 10_000},
        {"max_seq_length": 100, "model_max_length": 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "t5", "qwen3", "deberta-v2"])
def test_lengths(family: str, arguments: dict[str, int | None], tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path, **arguments)  # type: ignore[arg-type]
    spec, length = resolve(str(folder)), load(folder).max_seq_length
    if family == "roberta" and length == 130:
        length = 128  # sentence-transformers forgets the padding offset; the table holds 128
    assert spec.max_model_len == (None if length > 1e8 else length)


def test_more_than_the_position_table_holds_is_cut(tmp_path: Path) -> None:
    """Where sentence-transformers would fail on a long text, the limit is the table."""
    assert resolve(str(tiny_model("bert", tmp_path / "b", max_seq_length=512))).max_model_len == 128
    assert resolve(str(tiny_model("roberta", tmp_path / "r", max_seq_length=512))).max_model_len == 128
    assert resolve(str(tiny_model("qwen3", tmp_path / "q", max_seq_length=512))).max_model_len == 512


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "qwen3", "model2vec"])
def test_plain_repositories(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path, layout="plain")
    if family == "model2vec":  # sentence-transformers needs modules.json for these
        spec = resolve(str(folder))
        assert (spec.kind, spec.normalize, spec.dimensions) == ("static", True, 64)
        return
    assert_same(resolve(str(folder)), load(folder))


def test_a_plain_causal_language_model_pools_its_last_token(tmp_path: Path) -> None:
    import transformers

    folder = tiny_model("qwen3", tmp_path, layout="plain")
    config = transformers.AutoConfig.from_pretrained(str(folder))
    transformers.Qwen3ForCausalLM(config).save_pretrained(str(folder))
    spec = resolve(str(folder))
    assert_same(spec, load(folder))
    assert spec.pooling == PoolingModule((PoolingMode.LAST,))


def test_nested_text_config(tmp_path: Path) -> None:
    """Gemma 3 and its like keep the text model's numbers in `text_config`."""
    folder = tiny_model("gemma3_text", tmp_path)
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "architectures": ["Gemma3Model"], "text_config": inner})
    )
    spec = resolve(str(folder))
    assert (spec.family, spec.hidden_size, spec.vocab_size) == ("gemma3_text", 64, inner["vocab_size"])
    assert spec.max_model_len == 128
    assert "text_config" in spec.config


def test_sizes_that_config_leaves_out_come_from_the_weights(tmp_path: Path) -> None:
    folder = tiny_model("gemma3_text", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    vocab_size = config.pop("vocab_size")
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    spec = resolve(str(folder))
    assert (spec.hidden_size, spec.vocab_size, spec.kind) == (64, vocab_size, "transformer")


def test_prompts_and_flags(tmp_path: Path) -> None:
    folder = tiny_model(
        "bert",
        tmp_path,
        prompts={"query": "query: ", "document": "passage: "},
        default_prompt_name="query",
        similarity="dot",
        do_lower_case=True,
    )
    spec = resolve(str(folder))
    assert_same(spec, load(folder))
    assert spec.lower_case and spec.prompts["document"] == "passage: "
