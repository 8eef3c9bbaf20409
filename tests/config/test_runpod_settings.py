"""The variables of RunPod's embedding worker, read by `hilbert runpod` alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilbert.config import BadSetting, ServerSettings, load, load_runpod
from hilbert.config.runpod import runpod_defaults, volume_environment


def settings(*argv: str, **environ: str) -> ServerSettings:
    return load_runpod(argv, environ)[0]


def test_lists() -> None:
    found = settings(
        MODEL_NAMES="BAAI/bge-small-en-v1.5; intfloat/e5-large-v2;",
        BATCH_SIZES="8;16",
        DTYPES="fp16;auto",
        BACKEND="optimum",
    )
    assert [(model.name, model.max_batch_requests, model.dtype, model.engine) for model in found.models] == [
        ("BAAI/bge-small-en-v1.5", 8, "float16", "onnx"),
        ("intfloat/e5-large-v2", 16, "auto", "onnx"),
    ]
    for word, dtype in (("fp8", "fp8"), ("bf16", "bfloat16"), ("fp32", "float32"), ("int8", "int8")):
        assert settings(MODEL_NAMES="a/b", DTYPES=word).models[0].dtype == dtype
    for word in ("torch", "ctranslate2"):
        assert settings(MODEL_NAMES="a/b", BACKEND=word).models[0].engine == word


def test_names_and_who_wins() -> None:
    assert settings(MODEL_NAME="a/one").models[0].model_id == "a/one"
    environ = {"MODEL_NAMES": "a/two", "MODEL_NAME": "a/one"}
    assert settings(**environ).models[0].model_id == "a/two"
    assert settings(**environ, INFINITY_MODEL_ID="a/three").models[0].model_id == "a/three"
    assert settings("-m", "a/four", **environ).models[0].model_id == "a/four"
    assert load((), environ)[0].models[0].model_id != "a/two"  # `serve` knows no bare names


def test_room_for_what_was_taken() -> None:
    plain = settings(MODEL_NAMES="a/b")
    assert (plain.runpod_max_concurrency, plain.max_concurrent_requests) == (300, 1024)
    assert (plain.max_queued_tokens, plain.request_timeout) == (48_000 * 512, 600.0)
    assert settings(MODEL_NAMES="a/b", INFINITY_QUEUE_SIZE="10").max_queued_tokens == 5120
    many = settings(MODEL_NAMES="a/b", RUNPOD_MAX_CONCURRENCY="5000")
    assert (many.runpod_max_concurrency, many.max_concurrent_requests) == (5000, 5000)
    told = settings(MODEL_NAMES="a/b", RUNPOD_MAX_CONCURRENCY="5000", HILBERT_MAX_CONCURRENT_REQUESTS="9")
    assert told.max_concurrent_requests == 9
    fetching = settings(
        MODEL_NAMES="a/b",
        HTTP_CLIENT_USER_AGENT="guest",
        HTTP_CLIENT_TIMEOUT="3",
        HTTP_CLIENT_MAX_CONNECTIONS="4",
        HTTP_CLIENT_MAX_KEEPALIVE_CONNECTIONS="2",
    )
    assert (fetching.http_client_user_agent, fetching.http_client_timeout) == ("guest", 3.0)
    assert (fetching.http_client_max_connections, fetching.http_client_max_keepalive_connections) == (4, 2)


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, "MODEL_NAMES is not set"),
        ({"MODEL_NAMES": " ; "}, "MODEL_NAMES is not set"),
        ({"MODEL_NAMES": "a/b", "BATCH_SIZES": "1;2"}, "BATCH_SIZES: Expected length 1 but got 2"),
        ({"MODEL_NAMES": "a/b", "DTYPES": "fp9"}, "DTYPES 'fp9' cannot be used: give one of auto"),
        ({"MODEL_NAMES": "a/b", "BACKEND": "magic"}, "BACKEND 'magic' cannot be used"),
        ({"MODEL_NAMES": "a/b", "INFINITY_QUEUE_SIZE": "9" * 5000}, "give a whole number from 1 to"),
        ({"MODEL_NAMES": "a/b", "INFINITY_QUEUE_SIZE": "many"}, "INFINITY_QUEUE_SIZE 'many' cannot be used"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_own_name(environ: dict[str, str], shown: str) -> None:
    with pytest.raises(BadSetting, match=shown):
        settings(**environ)


def test_the_network_volume(tmp_path: Path) -> None:
    assert volume_environment({}, tmp_path) == {"HF_HOME": str(tmp_path)}
    assert runpod_defaults(tmp_path)["cache_dir"] == str(tmp_path / "hilbert")
    assert volume_environment({"HF_HOME": "/elsewhere"}, tmp_path) == {}
    absent = tmp_path / "absent"
    assert volume_environment({}, absent) == {} and "cache_dir" not in runpod_defaults(absent)
