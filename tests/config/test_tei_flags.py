"""``hilbert tei``: every flag and variable of text-embeddings-inference."""

from __future__ import annotations

from typing import Any

import pytest

from hilbert.config import BadSetting, ServerSettings, load
from hilbert.config.help import help_text


def tei(*argv: str, **environ: str) -> ServerSettings:
    return load(argv, environ, "tei")[0]


# TEI's flag, its variable, a value, our setting, what comes out.
SAME = [
    ("--model-id", "MODEL_ID", "BAAI/bge-m3", "model_id", "BAAI/bge-m3"),
    ("--revision", "REVISION", "refs/pr/3", "revision", "refs/pr/3"),
    ("--dtype", "DTYPE", "float16", "dtype", "float16"),
    ("--served-model-name", "SERVED_MODEL_NAME", "m3", "served_model_name", "m3"),
    ("--pooling", "POOLING", "mean", "pooling", "mean"),
    ("--pooling", "POOLING", "last-token", "pooling", "last"),
    ("--pooling", "POOLING", "splade", "task", "sparse_embed"),
    ("--max-concurrent-requests", "MAX_CONCURRENT_REQUESTS", "9", "max_concurrent_requests", 9),
    ("--max-batch-tokens", "MAX_BATCH_TOKENS", "1384", "max_batch_tokens", 1384),
    ("--max-batch-requests", "MAX_BATCH_REQUESTS", "5", "max_batch_requests", 5),
    ("--max-client-batch-size", "MAX_CLIENT_BATCH_SIZE", "2", "max_client_batch_size", 2),
    ("--auto-truncate", "AUTO_TRUNCATE", "false", "auto_truncate", False),
    ("--default-prompt-name", "DEFAULT_PROMPT_NAME", "query", "default_prompt_name", "query"),
    ("--default-prompt", "DEFAULT_PROMPT", "find: ", "prompts", (("default", "find: "),)),
    ("--default-prompt", "DEFAULT_PROMPT", "find: ", "default_prompt_name", "default"),
    ("--hf-token", "HF_API_TOKEN", "hf_x", "token", "hf_x"),
    ("--hf-api-token", "HF_API_TOKEN", "hf_x", "token", "hf_x"),
    ("--hostname", "HOSTNAME", "127.0.0.2", "host", "127.0.0.2"),
    ("--port", "PORT", "80", "port", 80),
    ("-p", "PORT", "80", "port", 80),
    ("--huggingface-hub-cache", "HUGGINGFACE_HUB_CACHE", "/data", "hub_cache_dir", "/data"),
    ("--payload-limit", "PAYLOAD_LIMIT", "2000000", "max_body_bytes", 2_000_000),
    ("--api-key", "API_KEY", "sesame", "api_key", "sesame"),
    ("--json-output", "JSON_OUTPUT", "true", "json_output", True),
    ("--otlp-endpoint", "OTLP_ENDPOINT", "http://localhost:4317", "otlp_endpoint", "http://localhost:4317"),
    ("--otlp-service-name", "OTLP_SERVICE_NAME", "s3", "otlp_service_name", "s3"),
    ("--cors-allow-origin", "CORS_ALLOW_ORIGIN", "http://a", "cors_origins", "http://a"),
]


def value_of(found: ServerSettings, name: str) -> Any:
    return getattr(found.models[0] if hasattr(found.models[0], name) else found, name)


@pytest.mark.parametrize(("flag", "variable", "text", "name", "value"), SAME)
def test_every_flag_and_its_variable(flag, variable, text, name, value) -> None:
    assert value_of(tei(), name) != value
    argv = (flag,) if text == "true" else (flag, text)
    assert value_of(tei(*argv), name) == value
    assert value_of(tei(**{variable: text}), name) == value
    if flag.startswith("--"):
        assert value_of(tei(f"{flag}={text}"), name) == value
    assert value_of(load((), {variable: text})[0], name) != value  # bare names are read here alone
    assert flag in help_text("tei") or flag == "--default-prompt"


def test_defaults_are_teis_where_clients_would_notice() -> None:
    found = tei()
    assert (found.host, found.port, found.redirect_slash) == ("0.0.0.0", 3000, "")
    assert found.auto_truncate and found.permissive_cors and found.tei_metrics
    named = tei("--cors-allow-origin", "http://a", "--cors-allow-origin=http://b")
    assert (named.permissive_cors, named.cors_origins) == (False, "http://a,http://b")
    assert "[3000]" in help_text("tei") and "[7997]" in help_text("serve")
    assert tei("--auto-truncate").auto_truncate and tei("--auto-truncate", "true").auto_truncate
    assert not tei("--no-auto-truncate").auto_truncate


def test_a_machines_name_is_no_address() -> None:
    assert tei(HOSTNAME="0a1b2c3d4e5f").host == "0.0.0.0"
    assert tei(HOSTNAME="::1").host == "::1"


def test_what_means_nothing_is_said_once() -> None:
    argv = (
        "--tokenization-workers",
        "4",
        "--uds-path",
        "/tmp/x",
        "--disable-spans",
        "--prometheus-port",
        "1",
    )
    _, notes = load(argv, {"TOKENIZATION_WORKERS": "2"}, "tei")
    said = [note.split()[0] for note in notes]
    assert sorted(said) == ["--disable-spans", "--prometheus-port", "--tokenization-workers", "--uds-path"]
    assert all("has no meaning here: " in note for note in notes)
    with pytest.raises(BadSetting):
        load(argv, {})


def test_what_cannot_be_followed() -> None:
    with pytest.raises(BadSetting, match=r"--dense-path '2_Dense_768' .* modules.json"):
        tei("--dense-path", "2_Dense_768")
    with pytest.raises(BadSetting, match="contradict"):
        tei("--default-prompt", "q: ", "--default-prompt-name", "query")
    with pytest.raises(BadSetting, match="unknown flag --max-client-batch; did you mean"):
        tei("--max-client-batch", "3")
