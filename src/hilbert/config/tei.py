"""``hilbert tei``: the command line that users of text-embeddings-inference (TEI) already have.

What has a meaning here is in the one table; this file holds what differs: other names (in the environment
without any prefix), other words for values, other defaults, and flags that are accepted and mean nothing.
Limits that TEI has only to refuse keep Hilbert's own defaults, which are wider.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hilbert.config.option import Option
from hilbert.config.sources import BadSetting, Given, Source

DEFAULTS: Mapping[str, Any] = {
    "host": "0.0.0.0",
    "port": 3000,
    "redirect_slash": "",
    "permissive_cors": True,
    "tei_metrics": True,
}

# Our name of a setting → TEI's flags for it, beside the one of the same name, and its variable.
_NAMES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "model_id": ((), "MODEL_ID"),
    "served_model_name": ((), "SERVED_MODEL_NAME"),
    "revision": ((), "REVISION"),
    "dtype": ((), "DTYPE"),
    "pooling": ((), "POOLING"),
    "default_prompt_name": ((), "DEFAULT_PROMPT_NAME"),
    "max_batch_tokens": ((), "MAX_BATCH_TOKENS"),
    "max_batch_requests": ((), "MAX_BATCH_REQUESTS"),
    "host": (("--hostname",), "HOSTNAME"),
    "port": (("-p",), "PORT"),
    "api_key": ((), "API_KEY"),
    "cors_origins": (("--cors-allow-origin",), "CORS_ALLOW_ORIGIN"),
    "token": (("--hf-token", "--hf-api-token"), "HF_API_TOKEN"),
    "hub_cache_dir": (("--huggingface-hub-cache",), "HUGGINGFACE_HUB_CACHE"),
    "auto_truncate": ((), "AUTO_TRUNCATE"),
    "max_concurrent_requests": ((), "MAX_CONCURRENT_REQUESTS"),
    "max_client_batch_size": ((), "MAX_CLIENT_BATCH_SIZE"),
    "max_body_bytes": (("--payload-limit",), "PAYLOAD_LIMIT"),
    "log_level": ((), "LOG_LEVEL"),
    "json_output": ((), "JSON_OUTPUT"),
    "otlp_endpoint": ((), "OTLP_ENDPOINT"),
    "otlp_service_name": ((), "OTLP_SERVICE_NAME"),
}

VARIABLES = tuple(dict.fromkeys(variable for _, variable in _NAMES.values()))

# Accepted and without effect, with the reason why nothing is lost.
MEANINGLESS = {
    "tokenization_workers": (str, "texts are tokenized where they arrive, long ones in threads"),
    "uds_path": (str, "no Python backend listens on a socket of its own; --uds is where the server listens"),
    "prometheus_port": (str, "metrics are at /metrics of the server's own port"),
    "disable_spans": (bool, "log lines carry no spans"),
}

_DEFAULT_PROMPT = "default_prompt"
_DENSE_PATH = "dense_path"


def _hidden(name: str, kind: type) -> Option:
    return Option(name=name, kind=kind, default="", help="", plain_env=name.upper())


HIDDEN = (
    *(_hidden(name, kind) for name, (kind, _) in MEANINGLESS.items()),
    _hidden(_DEFAULT_PROMPT, str),
    _hidden(_DENSE_PATH, str),
)


def named(options: Sequence[Option]) -> tuple[Option, ...]:
    """The same options with TEI's names beside ours."""
    found = []
    for option in options:
        flags, variable = _NAMES.get(option.name, ((), ""))
        found.append(
            dataclasses.replace(
                option, aliases=(*option.aliases, *flags), plain_env=variable or option.plain_env
            )
        )
    return tuple(found)


def words(argv: Sequence[str]) -> list[str]:
    """A command line as `from_flags` reads it: TEI's switch may have a value, and origins come one by one."""
    found: list[str] = []
    origins: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word in ("true", "false") and found[-1:] == ["--auto-truncate"]:
            found[-1] = f"--auto-truncate={word}"
        elif word == "--cors-allow-origin":
            origins += [text for text in [next(rest, "")] if text]
        elif word.startswith("--cors-allow-origin="):
            origins.append(word.partition("=")[2])
        else:
            found.append(word)
    return [*found, *(["--cors-allow-origin", ",".join(origins)] if origins else [])]


def translate(source: Source) -> Source:
    """Replace TEI's words for values by ours.

    Raises:
        BadSetting: two of them contradict each other, or one cannot be followed.
    """
    found = dict(source)
    if (dense := found.get(_DENSE_PATH)) is not None and any(dense.texts):
        raise BadSetting(
            f"{dense.origin} {dense.texts[-1]!r} cannot be followed: every Dense module that the model's "
            "modules.json names is applied; serve a folder whose modules.json names this one"
        )
    pooling = found.get("pooling")
    if pooling is not None and "splade" in pooling.texts:
        if len(set(pooling.texts)) > 1:
            raise BadSetting(f"{pooling.origin} splade is for all models or none")
        found["task"] = Given(pooling.origin, ("sparse_embed",))
        del found["pooling"]
    elif pooling is not None:
        texts = tuple("last" if text == "last-token" else text for text in pooling.texts)
        found["pooling"] = Given(pooling.origin, texts)
    prompt = found.pop(_DEFAULT_PROMPT, None)
    if prompt is not None:
        if "default_prompt_name" in found:
            other = found["default_prompt_name"].origin
            raise BadSetting(f"{prompt.origin} and {other} contradict each other; give one of them")
        found["prompts"] = Given(prompt.origin, (json.dumps({"default": prompt.texts[-1]}),))
        found["default_prompt_name"] = Given(prompt.origin, ("default",))
    host = found.get("host")
    if host is not None and host.origin == "HOSTNAME" and not _is_address(host.texts[-1]):
        del found["host"]  # a shell or a container has set it to the machine's name
    return found


def defaults(sources: Sequence[Source]) -> dict[str, Any]:
    """TEI's defaults: pages of any origin may call where no origins are named."""
    has_origins = any("cors_origins" in source for source in sources)
    return {**DEFAULTS, "permissive_cors": not has_origins}


def note_hidden(sources: Sequence[Source], notes: list[str]) -> None:
    """Note every setting that has no meaning here."""
    for name, (_, reason) in MEANINGLESS.items():
        given = next((source[name] for source in sources if name in source), None)
        if given is not None:
            notes.append(f"{given.origin} has no meaning here: {reason}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
