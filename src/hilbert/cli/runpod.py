"""``hilbert runpod``: a worker of RunPod's serverless platform, on its own SDK.

The SDK has the main thread, the loop that takes jobs, and its own flags; a `Backend` has the models. A job
is a call through the very routes that HTTP has (`api.runpod`), so that jobs share batches with each other.
"""

from __future__ import annotations

import importlib.util
import reprlib
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import orjson

from hilbert.cli.backend import Backend
from hilbert.config import ServerSettings
from hilbert.errors import MissingDependency
from hilbert.logs import log_to_stderr
from hilbert.worker.spawn import WorkerProcess

# The SDK's flags, and whether a value follows.
SDK_FLAGS = {
    "--rp_log_level": True,
    "--rp_debugger": False,
    "--rp_serve_api": False,
    "--rp_api_port": True,
    "--rp_api_concurrency": True,
    "--rp_api_host": True,
    "--test_input": True,
}
# What of an output goes into the SDK's log.
_short = reprlib.Repr()
_short.maxdict, _short.maxstring, _short.maxother = 12, 120, 120


def split_flags(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """A command line as ours and the SDK's."""
    ours: list[str] = []
    theirs: list[str] = []
    words = iter(words)
    for word in words:
        takes_value = SDK_FLAGS.get(word.partition("=")[0])
        if takes_value is None:
            ours.append(word)
            continue
        theirs.append(word)
        if takes_value and "=" not in word:
            theirs.extend(value for value in [next(words, None)] if value is not None)
    return ours, theirs


def check_sdk() -> None:
    """Refuse to start what could not take a job.

    Raises:
        MissingDependency: the SDK is not installed.
    """
    if importlib.util.find_spec("runpod") is None:
        raise MissingDependency("RunPod's SDK is not installed: pip install 'hilbert[runpod]'")


def work(settings: ServerSettings, worker: WorkerProcess | None, sdk_words: Sequence[str]) -> int:
    """Take jobs until the platform or a signal ends it.

    Args:
        settings: everything.
        worker: a worker process that was started ahead; adopted, or ended here.
        sdk_words: flags of the SDK.
    Returns:
        The exit status.
    Raises:
        ServingError: a model cannot be served.
        SystemExit: the SDK has ended, after a test.
    """
    log_to_stderr(settings.log_level, is_json=settings.json_output)
    signal.signal(signal.SIGTERM, _end)
    started = time.monotonic()
    backend = Backend(settings, worker)
    backend.start()
    try:
        import runpod.serverless  # seconds, while the models are loaded

        app = backend.wait_ready()
        names = ", ".join(model.name for model in settings.models)
        print(f"hilbert: ready to take jobs for {names} after {time.monotonic() - started:.2f} s", flush=True)
        from hilbert.api.runpod import answer

        async def handler(job: dict[str, Any]) -> Any:
            raw = orjson.dumps(job.get("input"))
            done = await backend.run(answer(app.inside, raw))
            return _output(orjson.loads(done.output))

        sys.argv = [sys.argv[0], *sdk_words]
        concurrency = settings.runpod_max_concurrency
        runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: concurrency})
    finally:
        backend.close()
    return 0


class Output(dict[str, Any]):
    """A job's output whose text is short: the SDK writes it into its log, at every level, whole."""

    def __repr__(self) -> str:
        return _short.repr(dict(self))


def _output(value: Any) -> Any:
    if isinstance(value, dict):
        return Output(value)
    return [_output(item) for item in value] if isinstance(value, list) else value


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)
