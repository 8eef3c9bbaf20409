"""What a person sees when the server is ready: where it is, and a line to paste."""

from __future__ import annotations

import json

from hilbert import __version__
from hilbert.config import ServerSettings


def banner(settings: ServerSettings, url: str) -> str:
    """A few lines; the curl line works as it stands (the key comes from the environment)."""
    names = [model.name for model in settings.models]
    where = f"{url} (unix socket {settings.uds})" if settings.uds else url
    return f"hilbert {__version__} serves {', '.join(names)} on {where}\n\n  {curl(settings, url)}\n"


def curl(settings: ServerSettings, url: str) -> str:
    """One request as a shell line."""
    words = ["curl"]
    if settings.uds:
        words.append(f"--unix-socket {_quoted(settings.uds)}")
    words.append(_quoted(f"{url}/v1/embeddings"))
    if settings.api_key or settings.keys_file:
        words.append('-H "Authorization: Bearer $HILBERT_API_KEY"')
    words.append("-H 'Content-Type: application/json'")
    body = {"model": settings.models[0].name, "input": "There is always room for one more guest."}
    words.append("-d " + _quoted(json.dumps(body)))
    return " ".join(words)


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
