"""Every setting of Hilbert: the one table. Adding one is adding a line here.

`load()` in `load.py` fills these from flags and environment, once, at the edge; nothing changes them
afterwards. A setting enters only with a test that fails when it is ignored (tests/cli).
"""

# ruff: noqa: RUF009  # option() returns a dataclass field, which is what stands here
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from hilbert.config.limits import wrong_limits
from hilbert.config.networks import wrong_networks
from hilbert.config.option import option
from hilbert.config.presets import PRESETS
from hilbert.config.sizes import size_remedy

DEFAULT_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"

Engine = Literal["auto", "openvino", "torch", "onnx", "ctranslate2"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
TaskName = Literal["auto", "embed", "sparse_embed", "multi_embed", "rerank", "classify"]
EmbeddingDtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Pooling = Literal["auto", "cls", "mean", "max", "last"]
LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


def wrong_device(text: str) -> str | None:
    """What to give in place of a device that no machine has, or None."""
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text)
    return None if known else "give auto, cpu, cuda, cuda:1 (the second GPU) or mps"


def _url_prefix(text: str) -> str | None:
    good = re.fullmatch(r"|/|/.*[^/]", text)
    return None if good else "Path must start with '/' and must not end with '/'"


def _path(text: str) -> str | None:
    return None if not text or text.startswith("/") else "Path must start with '/'"


def _header(text: str) -> str | None:
    return None if text.isascii() and text.isprintable() else "give printable ASCII, as headers carry"


def _endpoint(text: str) -> str | None:
    parts = urlsplit(text if "://" in text else f"//{text}")
    is_good = not text or (parts.scheme in ("", "http", "https") and parts.hostname)
    return None if is_good else "give a URL such as http://localhost:4317"


def _model_prefix(text: str) -> str | None:
    good = re.fullmatch(r"|/|(/[A-Za-z0-9._~-]+)+", text)
    return None if good else "give a path such as /bge, or / for the default model"


def _known_preset(text: str) -> str | None:
    return None if not text or text in PRESETS else "give one of " + ", ".join(PRESETS)


def _not_empty(text: str) -> str | None:
    return None if text.strip() else "give a hub id such as BAAI/bge-small-en-v1.5, or a folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How one model is served."""

    model_id: str = option(
        DEFAULT_MODEL_ID,
        "hub id or local folder of the model; repeat to serve several",
        short="-m",
        metavar="ID",
        check=_not_empty,
        infinity="MODEL_ID",
        per_model=True,
    )
    served_model_name: str = option(
        "",
        "the name that clients use",
        metavar="NAME",
        default_note="last two parts of the model id",
        infinity="SERVED_MODEL_NAME",
        per_model=True,
    )
    aliases: tuple[str, ...] = option(
        (),
        "further names that the model answers to",
        metavar="NAME,NAME",
        default_note="its id",
        per_model=True,
    )
    prefix: str = option(
        "",
        "path that selects the model, such as /bge; / makes it the default for names that are not configured",
        metavar="PATH",
        default_note="none",
        check=_model_prefix,
        per_model=True,
    )
    revision: str = option(
        "",
        "branch, tag or commit on the hub",
        metavar="REV",
        default_note="the main branch",
        infinity="REVISION",
        per_model=True,
    )
    engine: Engine = option(
        "auto",
        "what computes; auto takes torch where a GPU is, else openvino",
        synonyms=(("optimum", "onnx"),),
        infinity="ENGINE",
        per_model=True,
    )
    dtype: Dtype = option(
        "auto",
        "type of the matrix products; auto takes 16 bits where the device has them natively, else float32",
        infinity="DTYPE",
        per_model=True,
    )
    device: str = option(
        "auto",
        "auto, cpu, cuda, cuda:N or mps",
        metavar="DEVICE",
        check=wrong_device,
        infinity="DEVICE",
        per_model=True,
    )
    task: TaskName = option(
        "auto",
        "what the model is served for; auto asks its repository",
        per_model=True,
    )
    pooling: Pooling = option(
        "auto",
        "how token vectors become one; auto does what the model's files say",
        aliases=("--pooling-method",),
        infinity="POOLING_METHOD",
        per_model=True,
    )
    prompts: tuple[tuple[str, str], ...] = option(
        (),
        "texts that requests may have put before their inputs by prompt_name, beside the model's own",
        metavar="JSON",
        default_note="the model's own",
        per_model=True,
    )
    default_prompt_name: str = option(
        "",
        "name of the prompt that stands before inputs where a request names none",
        metavar="NAME",
        default_note="what the model's files say",
        per_model=True,
    )
    embedding_dtype: EmbeddingDtype = option(
        "float32",
        "type of the vectors in answers to requests that name none",
        infinity="EMBEDDING_DTYPE",
        per_model=True,
    )
    max_batch_tokens: int | None = option(
        None,
        "tokens that one batch may hold",
        default_note="measured for the kind of device",
        minimum=1,
        per_model=True,
    )
    max_batch_requests: int | None = option(
        None,
        "texts that one batch may hold",
        default_note="as many as the tokens allow",
        aliases=("--batch-size",),
        minimum=1,
        infinity="BATCH_SIZE",
        per_model=True,
    )
    trust_remote_code: bool = option(
        False,
        "run Python code that the model repository brings; only for authors you trust",
        infinity="TRUST_REMOTE_CODE",
        per_model=True,
    )
    pin: bool = option(
        False, "keep the model in memory once it is loaded, however little it is used", per_model=True
    )
    preload: bool = option(
        True,
        "load the model at start where it fits into --memory; otherwise on first use",
        per_model=True,
    )

    @property
    def name(self) -> str:
        """The name that clients use: given, or the last two parts of the model id."""
        return self.served_model_name or "/".join(self.model_id.rstrip("/").split("/")[-2:]).lstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server runs, and what it serves."""

    models: tuple[ModelSettings, ...] = (ModelSettings(),)
    config: str = option(
        "",
        "YAML file of settings; models in it are added, changed and removed while the server runs",
        metavar="FILE",
        default_note="none",
    )
    preset: str = option(
        "",
        "a set of defaults: " + ", ".join(PRESETS),
        metavar="NAME",
        default_note="none",
        check=_known_preset,
    )
    host: str = option(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 for all",
        metavar="ADDRESS",
        infinity="HOST",
        infinity_default="0.0.0.0",
    )
    port: int = option(
        7997, "port to listen on; 0 takes a free one", minimum=0, maximum=65535, infinity="PORT"
    )
    uds: str = option(
        "",
        "listen on this unix socket instead of a port",
        metavar="PATH",
        default_note="none",
    )
    url_prefix: str = option(
        "",
        "serve every route under this path, too; /health, /metrics and the probes stay where they are",
        metavar="PATH",
        check=_url_prefix,
        default_note="none",
        infinity="URL_PREFIX",
    )
    redirect_slash: str = option(
        "/docs",
        "where a visitor of / is sent; empty for nowhere",
        metavar="PATH",
        check=_path,
        infinity="REDIRECT_SLASH",
    )
    proxy_root_path: str = option(
        "",
        "the path under which a proxy in front publishes this server",
        metavar="PATH",
        check=_path,
        default_note="none",
        infinity="PROXY_ROOT_PATH",
    )
    permissive_cors: bool = option(
        False, "let web pages of any origin call this server", infinity="PERMISSIVE_CORS"
    )
    cors_origins: str = option(
        "",
        "origins, divided by commas, whose web pages may call this server",
        metavar="ORIGINS",
        default_note="none",
    )
    api_key: str = option(
        "",
        "the key that clients must send as a bearer token; better set in the environment",
        metavar="KEY",
        default_note="none, everyone may call",
        infinity="API_KEY",
        secret=True,
    )
    keys_file: str = option(
        "",
        "file of the keys that clients must send, one `<token> # <label>` a line; edits count at once",
        metavar="FILE",
        default_note="none",
    )
    limits_per_key: str = option(
        "",
        "what each key may ask for (each client address where no keys are asked for): any of `rate=80` "
        "requests per second, `burst=50` requests, `tokens=100000` per minute, `concurrent=16` requests",
        metavar="LIMITS",
        check=wrong_limits,
        default_note="no limits",
    )
    limits_overall: str = option(
        "",
        "what all callers together may ask for, in the same words",
        metavar="LIMITS",
        check=wrong_limits,
        default_note="no limits",
    )
    trusted_proxies: str = option(
        "",
        "addresses or networks, divided by commas, whose `X-Forwarded-For` is believed; `private` is all "
        "that are not public, `unix` whoever comes through `--uds`",
        metavar="NETWORKS",
        check=wrong_networks,
        default_note="none",
    )
    ssl_certfile: str = option(
        "",
        "serve HTTPS with this certificate chain (PEM)",
        metavar="FILE",
        default_note="plain HTTP",
    )
    ssl_keyfile: str = option(
        "",
        "the certificate's private key (PEM)",
        metavar="FILE",
        default_note="in the certificate's file",
    )
    token: str = option(
        "",
        "hub token for private models",
        metavar="TOKEN",
        default_note="what `HF_TOKEN` or the hub's own login says",
        secret=True,
    )
    hub_cache_dir: str = option(
        "",
        "folder for models from the hub",
        metavar="FOLDER",
        default_note="`HF_HUB_CACHE`, as for the hub's own tools",
    )
    cache_dir: str = option(
        "",
        "folder for traced graphs",
        metavar="FOLDER",
        default_note="`~/.cache/hilbert`",
    )
    threads: int | None = option(
        None,
        "compute threads",
        default_note="the CPUs this process may use, by affinity and cgroup quota",
        minimum=1,
        maximum=4096,
    )
    memory: str = option(
        "auto",
        "memory for everything together, such as 8GB or 70%; models that do not fit take turns",
        metavar="SIZE",
        default_note="90 % of what the machine or the container has free",
        check=size_remedy,
    )
    idle_unload_seconds: float | None = option(
        None,
        "seconds without a request after which a model leaves memory",
        aliases=("--idle-unload",),
        default_note="it stays while there is room",
        minimum=0.1,
    )
    load_timeout: float = option(
        60.0, "seconds that a request waits for its model to be loaded before it is answered 503", minimum=0.1
    )
    max_queued_tokens: int = option(
        1_000_000,
        "tokens that may wait for a model; a request beyond that is answered 429",
        minimum=1,
    )
    max_concurrent_requests: int = option(
        1024, "requests that may be in work for a model; one more is answered 429", minimum=1
    )
    auto_truncate: bool = option(
        True,
        "cut inputs that are too long for the model where a request does not say; otherwise they are refused",
    )
    max_client_batch_size: int = option(
        2048, "texts that one request may carry", minimum=1, infinity="MAX_CLIENT_BATCH_SIZE"
    )
    max_body_bytes: int = option(
        32 * 1024 * 1024,
        "bytes that a request's body may have; a larger one is answered 413",
        minimum=1000,  # a sentence and a model's name
    )
    body_timeout: float = option(
        20.0,
        "seconds that a request's body may take to arrive, and one more for each 64 KiB of it; then 408",
        minimum=0.001,
    )
    fetch_urls: bool = option(
        True, "fetch images and sounds that requests name by http and https URLs of the public internet"
    )
    fetch_private_hosts: str = option(
        "",
        "hosts, divided by commas, that may be fetched from although they lie in a private network",
        metavar="NAMES",
        default_note="none",
    )
    max_fetch_bytes: int = option(
        64 * 1024 * 1024, "bytes that the URLs of one request may bring together", minimum=1
    )
    http_client_user_agent: str = option(
        "Mozilla/5.0 (compatible; Hilbert)",
        "what fetching calls itself",
        metavar="TEXT",
        plain_env="HTTP_CLIENT_USER_AGENT",
        check=_header,
    )
    http_client_timeout: float = option(
        10.0,
        "seconds that one URL may take, redirects included",
        minimum=0.001,
        plain_env="HTTP_CLIENT_TIMEOUT",
    )
    http_client_max_connections: int = option(
        50, "connections that fetching may open at a time", minimum=1, plain_env="HTTP_CLIENT_MAX_CONNECTIONS"
    )
    http_client_max_keepalive_connections: int = option(
        20,
        "idle connections that fetching keeps",
        minimum=0,
        plain_env="HTTP_CLIENT_MAX_KEEPALIVE_CONNECTIONS",
    )
    request_timeout: float = option(
        60.0, "seconds after which a waiting request is dropped and answered 503", minimum=0.001
    )
    header_timeout: float = option(
        30.0, "seconds within which a request's headers must have come", minimum=0.01
    )
    idle_timeout: float = option(75.0, "seconds after which an idle connection is closed", minimum=0.01)
    worker_timeout: float = option(
        30.0, "seconds without a sign of life after which the worker is replaced", minimum=0.1
    )
    runpod_api: bool = option(
        False,
        "answer the routes of RunPod's platform, too: /run, /runsync, /status/ID and /v2/ENDPOINT/…; for "
        "local work",
    )
    runpod_max_concurrency: int = option(
        300,
        "jobs that run at a time under --runpod-api, or that `hilbert runpod` takes at a time",
        minimum=1,
        plain_env="RUNPOD_MAX_CONCURRENCY",
    )
    in_process: bool = option(False, "compute in the HTTP process, without a worker process")
    preload_only: bool = option(
        False,
        "fetch, trace and cache the models, then exit",
        infinity="PRELOAD_ONLY",
    )
    log_level: LogLevel = option("info", "how much is logged", infinity="LOG_LEVEL")
    json_output: bool = option(False, "log JSON objects, one a line, in place of lines for people")
    slow_request: float = option(
        5.0,
        "seconds after which an answered request has a line in the log; failed ones always have",
        minimum=0.0,
    )
    tei_metrics: bool = option(
        False, "show the metrics under the names of text-embeddings-inference (`te_…`), too"
    )
    otlp_endpoint: str = option(
        "",
        "send traces to this OpenTelemetry collector, such as http://localhost:4317 (gRPC) or "
        "http://localhost:4318 (HTTP)",
        metavar="URL",
        default_note="what `OTEL_EXPORTER_OTLP_ENDPOINT` says, else none",
        check=_endpoint,
    )
    otlp_service_name: str = option(
        "",
        "what this server is called in traces",
        metavar="NAME",
        default_note="what `OTEL_SERVICE_NAME` says, else hilbert",
    )
