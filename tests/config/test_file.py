"""The settings file: what it may say, what wins over it, and how it complains."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilbert.config import BadSetting, ModelSettings, ServerSettings, effective, load
from hilbert.config.presets import PRESETS
from hilbert.config.schema import json_schema, rows

SEED_000 = """
models:
  - id: BAAI/bge-m3
    name: bge-m3
    aliases: [m3, "bge, large"]
    prefix: /bge
    dtype: ${DTYPE:-float32}
    max_batch_requests: ${BGE_M3_BATCH_SIZE:-8}
    prompts: {query: "query: ", passage: ""}
    pin: true
  - id: BAAI/bge-m3          # the same files, served in another way
    name: sparse
    task: sparse_embed
    preload: no
    revision: 0012
  - intfloat/multilingual-e5-large
memory: 12GB
idle_unload_seconds: 600
api_key: ${SECRET}
limits:
  per_key: {rate: 80, burst: 50}
  max_client_batch_size: 64
trusted_proxies: ""
"""


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "hilbert.yaml"
        path.write_text(text)
        return str(path)

    return write


def of_file(path: str, *argv: str, **environ: str) -> ServerSettings:
    return load(["--config", path, *argv], {"SECRET": "s3cret", **environ})[0]


def test_everything_that_a_file_may_say(file) -> None:
    found = of_file(file(SEED_000), BGE_M3_BATCH_SIZE="16")
    bge, sparse, e5 = found.models
    assert bge == ModelSettings(
        model_id="BAAI/bge-m3",
        served_model_name="bge-m3",
        aliases=("m3", "bge, large"),
        prefix="/bge",
        dtype="float32",
        max_batch_requests=16,
        prompts=(("query", "query: "), ("passage", "")),
        pin=True,
    )
    assert (sparse.name, sparse.task, sparse.preload, sparse.revision) == (
        "sparse", "sparse_embed", False, "0012",
    )  # fmt: skip
    assert e5 == ModelSettings(model_id="intfloat/multilingual-e5-large")
    assert (found.memory, found.idle_unload_seconds, found.api_key) == ("12GB", 600.0, "s3cret")
    assert (found.limits_per_key, found.max_client_batch_size) == ("rate=80 burst=50", 64)
    assert found.trusted_proxies == ServerSettings().trusted_proxies  # empty counts as not given


def test_flags_beat_environment_beats_file_beats_preset_beats_default(file) -> None:
    path = file("port: 1\nmax_client_batch_size: 5\nmodels: [{id: a, dtype: float32}, {id: b}]")
    assert of_file(path).port == 1
    assert of_file(path, HILBERT_PORT="2").port == 2
    assert of_file(path, "--port", "3", HILBERT_PORT="2").port == 3
    assert [m.dtype for m in of_file(path, "--dtype", "bfloat16").models] == ["bfloat16"] * 2
    assert [m.dtype for m in of_file(path, HILBERT_DTYPE="auto;float32").models] == ["auto", "float32"]
    with pytest.raises(BadSetting, match="Expected length 2 but got 3"):
        of_file(path, HILBERT_DTYPE="auto;auto;auto")
    assert [m.model_id for m in of_file(path, "-m", "c").models] == ["c"]  # and nothing of the file's models
    preset = of_file(path, "--preset", "seed-004")
    assert (preset.port, preset.max_client_batch_size, preset.max_concurrent_requests) == (1, 5, 1)
    assert [m.model_id for m in preset.models] == ["a", "b"] and preset.models[0].max_batch_tokens == 1384
    assert load((), {"HILBERT_CONFIG": path})[0].port == 1
    assert of_file(file("preset: seed-004")).models[0].max_batch_requests == 5


def test_presets_set_defaults() -> None:
    found = load(["--preset", "seed-004"], {})[0]
    assert (found.port, found.host, found.limits_per_key) == (8080, "0.0.0.0", "rate=80 burst=50")
    assert found.models[0].max_batch_requests == 5 and found.max_client_batch_size == 2
    for name, texts in PRESETS.items():
        origins = effective(["--preset", name], {}).origins
        assert set(texts) == {key.removeprefix("models[0].") for key in origins} - {"preset"}
    with pytest.raises(BadSetting, match="give one of seed-004"):
        load(["--preset", "seed-9"], {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: nine", ["hilbert.yaml: port", "'nine'", "whole number from 0 to 65535"]),
        ("prot: 1", ["hilbert.yaml: prot", "did you mean port?"]),
        ("models: [{id: a, dtyp: x}]", ["models[0].dtyp", "did you mean dtype?"]),
        ("models: [{id: a}, {id: b, dtype: int3}]", ["models[1].dtype", "'int3'", "float32"]),
        ("models: [{name: a}]", ["models[0] has no id"]),
        ("models: a", ["models must be a list"]),
        ("models: []", ["models must be a list"]),
        ("- a", ["must be `key: value` lines"]),
        ("port: [1, 2]", ["port is a list", "give one value"]),
        ("port: 1\nport: 2", ["line 2", "'port' stands twice"]),
        ("port: 1\nhost: {{ .Values.host }}", ["line 2", "where a key belongs", "template"]),
        ("models: " + 2000 * "[", ["nested too deeply"]),
        ("models: [{id: a, prefix: bge}]", ["models[0].prefix", "'bge'", "such as /bge"]),
        ("models: [{id: a, prefix: /x}, {id: b, prefix: /x}]", ["two models have the prefix '/x'"]),
        ("models: [{id: a}, {id: a}]", ["two models have the name 'a'", "`name:` in the file"]),
        ("models: [{id: a, aliases: [b]}, {id: b}]", ["two models have the name 'b'"]),
        ("port: ${NOT_SET}", ["port needs the environment variable NOT_SET", "${NOT_SET:-a default}"]),
        ("api_key: [", ["line 1"]),
        ("limits: {rates: 5}", ["limits.rates is not a setting"]),
        ("memory: much", ["memory 'much'", "8GB"]),
        ("models: [{id: a, prompts: {query: [1]}}]", ["models[0].prompts"]),
        ("config: other.yaml", ["config is not a setting"]),
    ],
)
def test_complaints_name_the_key_the_value_and_the_remedy(file, text, words) -> None:
    with pytest.raises(BadSetting) as refused:
        of_file(file(text))
    assert refused.value.exit_code == 2
    for word in words:
        assert word in str(refused.value), str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(BadSetting, match=r"nothing\.yaml' cannot be read: No such file"):
        of_file(str(tmp_path / "nothing.yaml"))


def test_variables_cannot_add_structure(file) -> None:
    found = of_file(file("cache_dir: ${EVIL}\nhost: $${EVIL}"), EVIL="x\nport: 99")
    assert (found.cache_dir, found.port, found.host) == ("x\nport: 99", 7997, "${EVIL}")


def test_origins_and_masked_secrets(file) -> None:
    path = file(SEED_000)
    found = effective(["--config", path, "--port", "1"], {"SECRET": "s3cret", "HILBERT_HOST": "::1"})
    shown = {name: (value, origin) for name, value, origin in rows(found)}
    assert shown["port"] == ("1", "--port") and shown["host"] == ("::1", "HILBERT_HOST")
    assert shown["memory"] == ("12GB", f"{path}: memory")
    assert shown["models[0].dtype"] == ("float32", f"{path}: models[0].dtype")
    assert shown["models[1].dtype"] == ("auto", "default")
    assert shown["api_key"] == ("********", f"{path}: api_key")
    assert "s3cret" not in str(shown)


def test_the_schema_knows_every_key() -> None:
    schema = json_schema()
    server = schema["properties"]
    assert {"models", "limits", "memory", "port", "keys_file", "idle_unload_seconds"} <= set(server)
    assert "config" not in server
    model = server["models"]["items"]["anyOf"][1]["properties"]
    assert {"id", "name", "prefix", "pin", "preload", "prompts", "pooling"} <= set(model)
    assert "model_id" not in model and model["dtype"]["anyOf"][0]["enum"][0] == "auto"
    assert all(value.get("description") for value in (*model.values(), server["port"]))
