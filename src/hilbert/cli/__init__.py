"""``hilbert …``: the command line.

`main` is built to start fast: for ``serve`` the worker's interpreter is started before anything else
is imported, and the flags are read without typer. Everything else goes through the typer app in `app`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilbert.worker.spawn import WorkerProcess

__all__ = ["main"]

_SERVE_VERBS = ("serve", "v2", "tei")
# Infinity's older command line: of the same flags, for one model.
_OLD_VERBS = {"v1": "v2"}
# What `[serve]` brings: a missing one of these means that the bare package is installed.
_SERVE_MODULES = frozenset(
    {
        "httptools",
        "huggingface_hub",
        "jinja2",
        "openvino",
        "orjson",
        "prometheus_client",
        "safetensors",
        "starlette",
        "tokenizers",
        "typer",
        "uvicorn",
        "uvloop",
        "yaml",
    }
)
_BARE = "hilbert: {name} is not installed, so only the Python client works. Run: pip install 'hilbert[serve]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``hilbert``; those of this process by default.
    Returns:
        The exit status: 0 well, 1 it failed, 2 the command line is wrong, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] in (["--version"], ["-V"]):
            from hilbert import __version__

            print(f"hilbert {__version__}")
            return 0
        verb = _OLD_VERBS.get(words[0], words[0]) if words else ""
        if verb in _SERVE_VERBS:
            return _serve(verb, words[1:])
        if words[:1] == ["runpod"]:
            return _runpod(words[1:])
        from hilbert.cli.app import run

        return run(words)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _SERVE_MODULES:
            raise
        return _fail(_BARE.format(name=name), 1)
    except KeyboardInterrupt:
        return 130


def _serve(verb: str, flags: list[str]) -> int:
    if "--help" in flags or "-h" in flags:
        from hilbert.config.help import help_text

        print(help_text(verb), end="")
        return 0
    worker = _prestart(flags)
    try:
        from hilbert.config import BadSetting, load
        from hilbert.errors import ServingError

        try:
            settings, notes = load(flags, os.environ, verb)
        except BadSetting as error:
            return _fail(f"hilbert {verb}: {error}", error.exit_code)
        for note in notes:
            _tell(f"hilbert {verb}: {note}", settings.json_output, "WARNING")
        try:
            if settings.preload_only:
                from hilbert.cli.preload import preload

                return preload(settings)
            from hilbert.cli.serve import serve

            adopted, worker = worker, None
            return serve(settings, adopted, lambda: load(flags, os.environ, verb)[0])
        except (ServingError, BadSetting) as error:
            _tell(f"hilbert: {error}", settings.json_output, "ERROR")
            return error.exit_code if isinstance(error, BadSetting) else 1
    finally:
        if worker is not None:
            worker.close()


def _runpod(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        from hilbert.config.help import help_text

        print(help_text("runpod"), end="")
        return 0
    from hilbert.cli.runpod import check_sdk, split_flags, work
    from hilbert.config import BadSetting, load_runpod
    from hilbert.config.runpod import volume_environment
    from hilbert.errors import ServingError

    flags, sdk_flags = split_flags(words)
    os.environ.update(volume_environment(os.environ))  # before the hub's library reads it
    try:
        settings, notes = load_runpod(flags, os.environ)
        for note in notes:
            print(f"hilbert runpod: {note}", file=sys.stderr)
        if settings.preload_only:
            from hilbert.cli.preload import preload

            return preload(settings)
        check_sdk()
        return work(settings, _prestart(flags), sdk_flags)
    except BadSetting as error:
        return _fail(f"hilbert runpod: {error}", error.exit_code)
    except ServingError as error:
        return _fail(f"hilbert: {error.message}", 1)


def _prestart(flags: list[str]) -> WorkerProcess | None:
    """Start the worker's interpreter now; it takes as long to get up as reading the flags and more."""
    if "--in-process" in flags or "--preload-only" in flags:
        return None
    import importlib.util

    if importlib.util.find_spec("uvicorn") is None:  # the bare package: say so, and start nothing
        raise ModuleNotFoundError("uvicorn", name="uvicorn")
    from hilbert.worker.spawn import prestart

    is_torch = any("torch" in flag or "cuda" in flag or "mps" in flag for flag in flags)
    return prestart(preload=() if is_torch else ("hilbert.runtimes.openvino_runtime",))


def _tell(message: str, is_json: bool, level: str) -> None:
    """A line of the log from outside the server: before it listens, and when it cannot."""
    if not is_json:
        print(message, file=sys.stderr)
        return
    import time

    from hilbert.logs import PLAIN, LineHandler

    LineHandler(is_json=True).write_all(level, __name__, PLAIN, [(time.time(), message)])


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
