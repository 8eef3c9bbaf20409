"""What a person sees when the server is ready: where it is, and a line to paste."""

from __future__ import annotations

import json
import os

from hilbert import __version__
from hilbert.config import ServerSettings

_KEY_VARIABLES = ("HILBERT_API_KEY", "INFINITY_API_KEY")


def banner(settings: ServerSettings, url: str) -> str:
    """A few lines; the curl line works as it stands where the shell has the key in its environment."""
    names = [model.name for model in settings.models]
    where = f"{url} (unix socket {settings.uds})" if settings.uds else url
    head = f"hilbert {__version__} serves {', '.join(names)} on {where}"
    return f"{head}\n\n{_hint(settings)}  {curl(settings, url)}\n"


def curl(settings: ServerSettings, url: str) -> str:
    """One request as a shell line."""
    words = ["curl"]
    if settings.uds:
        words.append(f"--unix-socket {_quoted(settings.uds)}")
    words.append(_quoted(f"{url}/v1/embeddings"))
    if settings.api_key or settings.keys_file:
        words.append(f'-H "Authorization: Bearer ${_key_variable() or _KEY_VARIABLES[0]}"')
    words.append("-H 'Content-Type: application/json'")
    body = {"model": settings.models[0].name, "input": "There is always room for one more guest."}
    words.append("-d " + _quoted(json.dumps(body)))
    return " ".join(words)


def _key_variable() -> str:
    """The variable that the server has its key from; ``""`` where it came in another way."""
    return next((name for name in _KEY_VARIABLES if os.environ.get(name)), "")


def _hint(settings: ServerSettings) -> str:
    """Where the key of the curl line is to be taken from, as it is never printed itself."""
    origin = "--api-key" if settings.api_key else settings.keys_file
    return (
        f"  export {_KEY_VARIABLES[0]}=...   # a key of {origin}\n" if origin and not _key_variable() else ""
    )


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
