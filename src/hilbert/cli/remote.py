"""The operator's verbs: talk to a running server, and show what it says."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import httpx2
import typer

from hilbert.errors import ServingError

DEFAULT_URL = "http://127.0.0.1:7997"
# Loading may mean downloading.
_TIMEOUT_SECONDS = 600.0
# One of them is in every answer that is shown here.
_MEMBERS = {"data", "stats", "models"}
_CLEAR = "\x1b[H\x1b[2J"

Url = Annotated[str, typer.Option("--url", envvar="HILBERT_URL", metavar="URL", help="Where the server is.")]
ApiKey = Annotated[
    str,
    typer.Option("--api-key", envvar="HILBERT_API_KEY", metavar="KEY", help="A key that may administer."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The served model's name or alias.")]


class RemoteError(ServingError):
    """The server cannot be reached, or refuses."""


def fetch(method: str, url: str, path: str, api_key: str = "", body: Any = None) -> httpx2.Response:
    """The server's answer, which is a good one.

    Raises:
        RemoteError: what went wrong, in its words.
    """
    if not url.startswith(("http://", "https://")):
        raise RemoteError(
            f"--url {url!r} is no address; it begins with http:// or https://, as {DEFAULT_URL}"
        )
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        reply = httpx2.request(
            method, url.rstrip("/") + path, json=body, headers=headers, timeout=_TIMEOUT_SECONDS
        )
    except httpx2.RequestError as error:
        raise RemoteError(
            f"no server answers at {url} ({error}); start one with `hilbert serve`, or name another one "
            "with --url"
        ) from None
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise RemoteError(f"--url {url!r} is no address: {error}") from None
    if reply.is_success:
        return reply
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:500]
    raise RemoteError(f"{url} answers {reply.status_code}: {message}")


def ask(method: str, url: str, path: str, api_key: str, body: Any = None) -> Any:
    """What the server says of itself. Raises as `fetch`, and where whoever answers is no such server."""
    reply = fetch(method, url, path, api_key, body)
    try:
        found = reply.json()
    except ValueError:
        found = None
    if not isinstance(found, dict) or not _MEMBERS & found.keys():
        raise no_hilbert(url)
    return found


def no_hilbert(url: str) -> RemoteError:
    """The error that somebody else answers there."""
    return RemoteError(f"whoever answers at {url} is no Hilbert server; name another one with --url")


def models_table(models: list[dict[str, Any]]) -> str:
    """One line for each model."""
    head = ("NAME", "STATE", "TASK", "DIMS", "MEMORY", "IN WORK", "REQUESTS", "TOKENS", "LOADS", "AT")
    lines = [head]
    for model in models:
        stats, error = model["stats"], model["last_error"]
        lines.append(
            (
                model["id"] + (" (pinned)" if model["pinned"] else ""),
                model["state"] + (f": {error['message']}" if error else ""),
                model["task"] or "-",
                str(model["dimensions"] or "-"),
                _megabytes(stats["memory_bytes"]) if stats["memory_bytes"] else "-",
                str(stats["requests_in_work"]),
                str(stats["requests"]),
                str(stats["tokens"]),
                str(stats["loads"]),
                model["prefix"] or "-",
            )
        )
    widths = [min(48, max(len(line[column]) for line in lines)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def status_text(status: dict[str, Any]) -> str:
    """The server in a few lines, and its models."""
    memory, config = status["memory"], status["config"]
    lines = [
        f"hilbert {status['version']}, process {status['pid']}, up {status['uptime_seconds']:.0f} s, "
        + ("ready" if status["ready"] else "not ready")
    ]
    for place in [*([memory] if memory else []), *status["devices"]]:
        name = "memory" if place is memory else f"memory of {place['device']}"
        budget = place["budget_bytes"]
        of = "" if budget is None else f" of {_megabytes(budget)}"
        lines.append(f"{name} {_megabytes(place['used_bytes'])}{of}")
    if config:
        refused = f": the last edit is REFUSED: {config['error']}" if config["error"] else ""
        lines.append(f"settings {config['path']}{refused}")
        if config["needs_restart"]:
            lines.append("changed and waiting for a restart: " + ", ".join(config["needs_restart"]))
    return "\n".join([*lines, "", models_table(status["models"])])


def watch_status(url: str, api_key: str, seconds: float) -> None:
    """Show the status; again and again on a terminal, once elsewhere."""
    while True:
        text = status_text(ask("GET", url, "/admin/status", api_key))
        if not sys.stdout.isatty():
            typer.echo(text)
            return
        typer.echo(_CLEAR + text)
        time.sleep(seconds)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
