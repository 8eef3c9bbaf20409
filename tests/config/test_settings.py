import dataclasses
import shlex

import pytest

from hilbert.config import (
    DEFAULT_MODEL_ID,
    OPTIONS,
    BadSetting,
    ModelSettings,
    ServerSettings,
    load,
)
from hilbert.config.schema import json_schema


def settings(*argv: str, **environ: str) -> ServerSettings:
    return load(argv, environ)[0]


def infinity(*argv: str, **environ: str) -> ServerSettings:
    return load(argv, environ, "v2")[0]


# A value for every option that differs from its default: flag text, and what must come out.
OTHER = {
    "model_id": ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"),
    "served_model_name": ("small", "small"),
    "aliases": ("one, two", ("one", "two")),
    "prefix": ("/bge", "/bge"),
    "revision": ("v2", "v2"),
    "engine": ("openvino", "openvino"),
    "dtype": ("float32", "float32"),
    "device": ("cuda:1", "cuda:1"),
    "task": ("rerank", "rerank"),
    "pooling": ("cls", "cls"),
    "prompts": ('{"query": "q: "}', (("query", "q: "),)),
    "default_prompt_name": ("query", "query"),
    "embedding_dtype": ("int8", "int8"),
    "max_batch_tokens": ("2048", 2048),
    "max_batch_requests": ("32", 32),
    "trust_remote_code": ("true", True),
    "pin": ("true", True),
    "preload": ("false", False),
    "config": ("/dev/null", "/dev/null"),
    "preset": ("seed-004", "seed-004"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("8000", 8000),
    "uds": ("hilbert.sock", "hilbert.sock"),
    "url_prefix": ("/v1", "/v1"),
    "redirect_slash": ("", ""),
    "proxy_root_path": ("/embed", "/embed"),
    "permissive_cors": ("true", True),
    "api_key": ("sesame", "sesame"),
    "keys_file": ("keys.txt", "keys.txt"),
    "limits_per_key": ("rate=80 burst=50", "rate=80 burst=50"),
    "limits_overall": ("concurrent=9", "concurrent=9"),
    "trusted_proxies": ("10.0.0.0/8,private", "10.0.0.0/8,private"),
    "ssl_certfile": ("chain.pem", "chain.pem"),
    "ssl_keyfile": ("key.pem", "key.pem"),
    "cors_origins": ("https://a.example", "https://a.example"),
    "header_timeout": ("4.5", 4.5),
    "idle_timeout": ("5.5", 5.5),
    "token": ("hf_x", "hf_x"),
    "hub_cache_dir": ("hub", "hub"),
    "cache_dir": ("graphs", "graphs"),
    "threads": ("3", 3),
    "memory": ("8GB", "8GB"),
    "idle_unload_seconds": ("30", 30.0),
    "load_timeout": ("5", 5.0),
    "max_queued_tokens": ("5000", 5000),
    "max_concurrent_requests": ("7", 7),
    "auto_truncate": ("false", False),
    "max_client_batch_size": ("16", 16),
    "max_body_bytes": ("1000", 1000),
    "body_timeout": ("3.5", 3.5),
    "fetch_urls": ("false", False),
    "fetch_private_hosts": ("minio,files.local", "minio,files.local"),
    "max_fetch_bytes": ("999", 999),
    "http_client_user_agent": ("guest/1.0", "guest/1.0"),
    "http_client_timeout": ("0.5", 0.5),
    "http_client_max_connections": ("9", 9),
    "http_client_max_keepalive_connections": ("0", 0),
    "request_timeout": ("1.5", 1.5),
    "worker_timeout": ("2.5", 2.5),
    "runpod_api": ("true", True),
    "runpod_max_concurrency": ("7", 7),
    "in_process": ("true", True),
    "preload_only": ("true", True),
    "log_level": ("debug", "debug"),
    "json_output": ("true", True),
    "slow_request": ("0.5", 0.5),
    "tei_metrics": ("true", True),
    "otlp_endpoint": ("http://localhost:4318", "http://localhost:4318"),
    "otlp_service_name": ("rooms", "rooms"),
}


def value_of(found: ServerSettings, name: str) -> object:
    return getattr(found.models[0] if hasattr(found.models[0], name) else found, name)


def test_the_table_has_every_field_and_every_field_is_tested() -> None:
    names = {option.name for option in OPTIONS}
    fields = {f.name for cls in (ModelSettings, ServerSettings) for f in dataclasses.fields(cls)}
    assert names == fields - {"models"} == set(OTHER)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_default_flag_and_environment_of_every_option(option) -> None:
    text, value = OTHER[option.name]
    assert value_of(settings(), option.name) == option.default
    for flag in option.flags:
        if option.kind is bool:
            assert value_of(settings(flag), option.name) is True
            off = "--no-" + option.flag[2:]
            assert value_of(settings(off, **{option.env: "true"}), option.name) is False
        else:
            assert value_of(settings(flag, text), option.name) == value
            if flag.startswith("--"):
                assert value_of(settings(f"{flag}={text}"), option.name) == value
    for name in filter(None, (option.env, option.infinity_env)):
        if text:  # an empty variable counts as not set
            assert value_of(settings(**{name: text}), option.name) == value


def test_flag_beats_hilbert_beats_infinity() -> None:
    environ = {"HILBERT_PORT": "2", "INFINITY_PORT": "3"}
    assert settings("--port", "1", **environ).port == 1
    assert settings(**environ).port == 2
    assert settings(INFINITY_PORT="3").port == 3
    assert settings(HILBERT_PORT="", INFINITY_PORT="3").port == 3


def test_models_from_repeated_flags_and_lists() -> None:
    two = settings("-m", "a/b/c", "--model-id", "d/e", "--dtype", "float32")
    assert [(m.model_id, m.dtype, m.name) for m in two.models] == [
        ("a/b/c", "float32", "b/c"),
        ("d/e", "float32", "d/e"),
    ]
    listed = settings(HILBERT_MODEL_ID="a;b;", INFINITY_REVISION=";v2")
    assert [(m.model_id, m.revision) for m in listed.models] == [("a", ""), ("b", "v2")]
    # One flag replaces the whole list of the environment.
    assert len(settings("-m", "x", HILBERT_MODEL_ID="a;b").models) == 1
    assert settings("-m", "a", "-m", "b", "--max-batch-tokens", "").models[1].max_batch_tokens is None
    mixed = settings("-m", "a", "-m", "b", "--trust-remote-code", "--no-trust-remote-code")
    assert [m.trust_remote_code for m in mixed.models] == [True, False]


def test_the_name_of_a_local_folder() -> None:
    assert ModelSettings(model_id="/models/bge/").name == "models/bge"
    assert ModelSettings(model_id="/bge").name == "bge"


def test_a_setting_that_is_not_per_model_takes_the_last_flag_and_keeps_semicolons() -> None:
    assert settings("--port", "1", "--port", "2").port == 2
    assert settings(HILBERT_API_KEY="a;b;").api_key == "a;b;"


@pytest.mark.parametrize("word", ["true", "T", "1", "yes", "Y"])
def test_true(word: str) -> None:
    assert settings(HILBERT_IN_PROCESS=word).in_process is True


@pytest.mark.parametrize("word", ["false", "F", "0", "no", "N"])
def test_false(word: str) -> None:
    assert settings(HILBERT_IN_PROCESS=word).in_process is False


BAD = {
    "--port=abc": ["--port", "'abc'", "whole number from 0 to 65535"],
    "--port=65536": ["65535"],
    "--threads=0": ["--threads", "from 1 to 4096"],
    "--request-timeout=nan": ["--request-timeout", "'nan'", "number of at least"],
    "--request-timeout=0": ["at least"],
    "--worker-timeout=inf": ["--worker-timeout", "'inf'", "number of at least"],
    f"--max-queued-tokens={'9' * 400}": [
        "--max-queued-tokens",
        "whole number of at most 9223372036854775807",
    ],
    f"--max-queued-tokens={'9' * 5000}": ["whole number of at least 1"],
    f"--max-queued-tokens=-{'9' * 400}": ["whole number of at least 1"],
    f"--port={'9' * 400}": ["whole number from 0 to 65535"],
    f"--memory={'9' * 400}GB": ["--memory", "70%"],
    "--request-timeout=1e300": ["number of at most"],
    "--engine=neuron": ["--engine", "'neuron'", "auto, openvino, torch, onnx, ctranslate2"],
    "--device=gpu": ["--device", "'gpu'", "cuda:1"],
    "--url-prefix=v1": ["--url-prefix", "'v1'", "Path must start with '/' and must not end with '/'"],
    "--url-prefix=/v1/": ["must not end"],
    "--redirect-slash=docs": ["must start with '/'"],
    "--model-id=": ["--model-id", "hub id", "folder"],
    "--in-process=maybe": ["--in-process", "true or false"],
    "--prot=1": ["--prot", "did you mean --port"],
    "--zzzzzz": ["--zzzzzz", "--help"],
    "BAAI/bge": ["BAAI/bge", "--model-id BAAI/bge"],
    "--port": ["--port", "needs a value"],
    "-x": ["-x"],
}


@pytest.mark.parametrize("flag", BAD)
def test_a_bad_value_names_flag_value_and_remedy(flag: str) -> None:
    with pytest.raises(BadSetting) as caught:
        settings(flag)
    assert caught.value.exit_code == 2
    for part in BAD[flag]:
        assert part in str(caught.value)


def test_a_bad_value_names_the_variable_it_came_from() -> None:
    with pytest.raises(BadSetting, match=r"INFINITY_PORT 'x'"):
        settings(INFINITY_PORT="x")


def test_lists_of_the_wrong_length() -> None:
    argv = ("-m", "a", "-m", "b", "-m", "c", "--dtype", "float32", "--dtype", "auto")
    with pytest.raises(BadSetting, match=r"--dtype: Expected length 3 but got 2") as caught:
        settings(*argv)
    assert caught.value.exit_code == 2
    with pytest.raises(BadSetting, match="Expected length 3 but got 2") as caught:
        infinity(*argv)
    assert caught.value.exit_code == 1


def test_two_models_of_one_name() -> None:
    with pytest.raises(BadSetting, match="--served-model-name"):
        settings("-m", "x/a/b", "-m", "y/a/b")


def test_secrets_are_not_shown() -> None:
    shown = repr(settings("--api-key", "sesame", "--token", "hf_x"))
    assert "sesame" not in shown and "hf_x" not in shown


def test_the_default_is_the_bundled_model() -> None:
    assert settings().models == (ModelSettings(),)
    assert settings().models[0].model_id == DEFAULT_MODEL_ID


# ── hilbert v2 ──────────────────────────────────────────────────────────────────────────────────────


def test_v2_listens_everywhere_as_infinity_does() -> None:
    assert (settings().host, infinity().host) == ("127.0.0.1", "0.0.0.0")
    assert infinity("--host", "127.0.0.1").host == "127.0.0.1"


def test_v2_accepts_all_flags_of_infinity_and_says_which_mean_nothing() -> None:
    argv = shlex.split(
        "--model-id m --served-model-name n --batch-size 8 --revision r --no-trust-remote-code "
        "--engine torch --no-model-warmup --vector-disk-cache --device cpu --device-id 0 "
        "--lengths-via-tokenize --dtype float16 --embedding-dtype float32 --pooling-method mean "
        "--compile --no-bettertransformer --onnx-disable-optimize --onnx-do-not-prefer-quantized "
        "--no-preload-only --host h --port 1 --url-prefix /p --redirect-slash /d --log-level trace "
        "--permissive-cors --api-key k --proxy-root-path /r"
    )
    found, notes = load(argv, {}, "v2")
    assert found.models[0].max_batch_requests == 8
    for flag in (
        "--no-model-warmup",
        "--vector-disk-cache",
        "--lengths-via-tokenize",
        "--compile",
        "--no-bettertransformer",
        "--onnx-disable-optimize",
        "--onnx-do-not-prefer-quantized",
        "--device-id",
    ):
        assert sum(note.startswith(flag + " ") for note in notes) == 1, (flag, notes)
    assert len(notes) == 8
    assert found.models[0].pooling == "mean"


def test_those_flags_are_unknown_to_serve_and_silent_by_default() -> None:
    with pytest.raises(BadSetting):
        settings("--bettertransformer")
    assert load((), {}, "v2")[1] == []
    assert load((), {"INFINITY_COMPILE": "1"}, "v2")[1] != []


def test_optimum_is_onnx_wherever_an_engine_is_named(tmp_path) -> None:
    file = tmp_path / "hilbert.yaml"
    file.write_text("models: [{id: a/b, engine: optimum}]")
    for found in (
        settings("--engine", "optimum"),
        settings(HILBERT_ENGINE="optimum"),
        settings(INFINITY_ENGINE="optimum"),
        settings("--config", str(file)),
    ):
        assert found.models[0].engine == "onnx"
    model = json_schema()["properties"]["models"]["items"]["anyOf"][1]["properties"]
    assert "optimum" in model["engine"]["anyOf"][0]["enum"]


def test_infinitys_words_for_values() -> None:
    assert load(("--engine", "optimum"), {}, "v2")[0].models[0].engine == "onnx"
    assert infinity("--engine", "ctranslate2", "--dtype", "int8").models[0].engine == "ctranslate2"
    found, notes = load(("--device", "tensorrt"), {}, "v2")
    assert found.models[0].device == "cuda" and len(notes) == 1 and "tensorrt" in notes[0]
    found, notes = load((), {"INFINITY_DEVICE": "tensorrt"})
    assert found.models[0].device == "cuda" and len(notes) == 1
    with pytest.raises(BadSetting):
        settings("--device", "tensorrt")
    assert infinity("--embedding-dtype", "binary").models[0].embedding_dtype == "binary"
    with pytest.raises(BadSetting, match="ubinary"):
        infinity("--embedding-dtype", "int4")
    with pytest.raises(BadSetting, match="--dtype 'int4'"):
        infinity("--dtype", "int4")


def test_device_id() -> None:
    assert infinity("--device", "cuda", "--device-id", "1").models[0].device == "cuda:1"
    assert infinity("--device", "cuda", "--device-id", "").models[0].device == "cuda"
    two = infinity("-m", "a", "-m", "b", "--device", "cuda", "--device-id", "0", "--device-id", "1")
    assert [m.device for m in two.models] == ["cuda:0", "cuda:1"]
    with pytest.raises(BadSetting, match="one GPU"):
        infinity("--device", "cuda", "--device-id", "0,1")
    notes = load(("-m", "a", "-m", "b", "--device", "cpu", "--device-id", "0"), {}, "v2")[1]
    assert len(notes) == 1 and "--device cuda" in notes[0]
