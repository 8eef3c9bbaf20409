"""``hilbert keys …``: who may call."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(help="Add, list and revoke the keys of a keys file.", no_args_is_help=True)

KeysFile = Annotated[
    Path, typer.Option("--keys-file", metavar="FILE", envvar="HILBERT_KEYS_FILE", help="The file of keys.")
]
_DEFAULT_FILE = Path("api_keys.txt")
_COUNT = re.compile(r'^hilbert_key_(requests|tokens)_total\{key="((?:[^"\\]|\\.)*)"\} (\S+)$', re.M)


@keys.command()
def add(
    label: Annotated[str, typer.Argument(help="Whose key it is, as logs and metrics will say.")],
    keys_file: KeysFile = _DEFAULT_FILE,
    models: Annotated[str, typer.Option(metavar="NAMES", help="The only models, divided by commas.")] = "",
    limits: Annotated[str, typer.Option(metavar="LIMITS", help="As --limits-per-key.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="It may load and unload models.")] = False,
    hashed: Annotated[bool, typer.Option("--hashed", help="Write only its SHA-256 into the file.")] = False,
) -> None:
    """Make a key, add it to the file, and print it. A label may have several, as while a key is replaced."""
    from hilbert.access import edit

    settings = [f"models={models}"] if models else []
    settings += ["admin"] if admin else []
    settings += limits.replace(",", " ").split()
    with _clear_errors():
        token = edit.add(keys_file, label, " ".join(settings), is_hashed=hashed)
        same = [key.digest.hex()[:8] for key in edit.keys_of(keys_file) if key.label == label]
    typer.echo(token)
    if len(same) > 1:
        typer.echo(
            f"hilbert keys: {label} has {len(same)} keys now, the new one is {same[-1]}; `hilbert keys "
            f"revoke` removes one by its digits ({', '.join(same[:-1])}), or all by the label",
            err=True,
        )


@keys.command("list")
def list_keys(keys_file: KeysFile = _DEFAULT_FILE) -> None:
    """List labels and settings; the tokens stay in the file."""
    from hilbert.access import edit

    with _clear_errors():
        found = edit.keys_of(keys_file)
    for key in found:
        words = [f"models={','.join(sorted(key.models))}"] if key.models is not None else []
        words += ["admin"] if key.is_admin else []
        limits = {"rate": key.limits.rate, "burst": key.limits.burst}
        limits |= {"tokens": key.limits.tokens, "concurrent": key.limits.concurrent}
        words += [f"{name}={value:g}" for name, value in limits.items() if value is not None]
        typer.echo("  ".join(filter(None, (key.digest.hex()[:8], key.label, " ".join(words)))))


@keys.command()
def revoke(
    label: Annotated[str, typer.Argument(help="The label, or the first digits that `list` shows.")],
    keys_file: KeysFile = _DEFAULT_FILE,
) -> None:
    """Remove every key with this label; the next request with one of them is refused."""
    from hilbert.access import edit

    with _clear_errors():
        gone = edit.revoke(keys_file, label)
    typer.echo(f"revoked {len(gone)}: {', '.join(key.label for key in gone)}")


@keys.command()
def usage(
    url: Annotated[
        str, typer.Option(envvar="HILBERT_URL", help="Where the server is.")
    ] = "http://127.0.0.1:7997",
) -> None:
    """Say how many requests and tokens each key has used since the server started."""
    rows = _usage(url)
    if not rows:
        typer.echo("no key has been used")
    width = max((len(label) for label in rows), default=0)
    for label, counts in sorted(rows.items(), key=lambda row: -row[1].get("tokens", 0)):
        requests, tokens = (counts.get(name, 0) for name in ("requests", "tokens"))
        typer.echo(f"{label:{width}}  {requests:>12,} requests  {tokens:>15,} tokens")


def _usage(url: str) -> dict[str, dict[str, int]]:
    from hilbert.cli.remote import fetch, no_hilbert

    text = fetch("GET", url, "/metrics").text
    if "hilbert_" not in text:
        raise no_hilbert(url)
    rows: dict[str, dict[str, int]] = {}
    for name, label, number in _COUNT.findall(text):
        rows.setdefault(re.sub(r"\\(.)", r"\1", label), {})[name] = int(float(number))
    return rows


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What went wrong, in one line."""
    from hilbert.access.edit import CannotEdit

    try:
        yield
    except CannotEdit as error:
        typer.echo(f"hilbert keys: {error}", err=True)
        raise typer.Exit(1) from None
