"""The servers under test: how each is started, with the same model and the same kind of environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peers import INFINITY, MODEL, TMP, offline_env, python_of
from process import first_vector

PROBE = json.dumps({"model": "bench", "input": ["a first text"]}).encode()


@dataclass(frozen=True)
class Server:
    """One way to serve the model over HTTP.

    Attributes:
        name: key in the result file.
        label: words for tables and plots.
        program: what is executed; kept out of results, as it is a path.
        arguments: the rest of the command; ``{port}`` and ``{model}`` are filled in.
        path: the route that is loaded.
        probe: a request for that route; its answer shows that the server works.
        grace_seconds: time to end after SIGTERM.
    """

    name: str
    label: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    path: str = "/embeddings"
    probe: bytes = PROBE
    grace_seconds: float = 15.0

    def command(self, port: int) -> list[str]:
        filled = (a.format(port=port, model=MODEL) for a in self.arguments)
        return [*self.program, *filled]

    def shown(self) -> str:
        """The command as a reader would type it."""
        filled = (a.format(port="PORT", model="all-MiniLM-L6-v2") for a in self.arguments)
        return " ".join([Path(self.program[0]).name, *self.program[1:], *filled])


def hilbert_server(*extra: str) -> Server:
    """Hilbert with its defaults (the bundled model: the same weights), from this script's environment."""
    return Server(
        "hilbert",
        "Hilbert",
        (str(Path(sys.executable).with_name("hilbert")),),
        ("serve", "--host", "127.0.0.1", "--port", "{port}", *extra),
    )


def infinity_servers() -> list[Server]:
    """Infinity's two CPU engines. `--pooling-method mean`: its optimum engine would take CLS otherwise."""
    program = (str(INFINITY / "bin" / "infinity_emb"),)
    common = ("--device", "cpu", "--pooling-method", "mean", "--log-level", "error")
    common += ("--host", "127.0.0.1", "--port", "{port}")
    return [
        Server(
            f"infinity-{engine}",
            f"Infinity {engine}",
            program,
            ("v2", "--model-id", "{model}", "--engine", engine, *common),
        )
        for engine in ("optimum", "torch")
    ]


@dataclass(frozen=True)
class Live:
    """A server that has answered its first request."""

    server: Server
    pid: int
    port: int
    start_seconds: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.server.path}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_env(server: Server) -> dict[str, str]:
    """As for all; Hilbert also reads Infinity's names, so it gets none of them, nor settings of its own."""
    env = offline_env()
    if server.name == "hilbert":
        env = {k: v for k, v in env.items() if not k.startswith(("HILBERT_", "INFINITY_"))}
        env["HILBERT_CACHE_DIR"] = str(TMP / "hilbert-cache")
    return env


@contextlib.contextmanager
def running(server: Server, limit_seconds: float = 180.0) -> Iterator[Live]:
    """Start a server, wait for its first vector, and stop it with its whole process group at the end."""
    logs = TMP / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = server_env(server)
    log_file = logs / f"{server.name}.log"
    with log_file.open("ab") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            server.command(port), stdout=log, stderr=log, env=env, start_new_session=True
        )
        try:
            try:
                first_vector(port, server.path, server.probe, lambda: process.poll() is None, limit_seconds)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{server.name}: {error}; see {log_file.relative_to(TMP.parent)}"
                ) from error
            yield Live(server, process.pid, port, time.perf_counter() - start)
        finally:
            stop(process, server.grace_seconds)


def stop(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def installed_versions(python: Path, names: list[str]) -> dict[str, str]:
    """Versions of packages in another environment; a missing one is left out."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def infinity_versions() -> dict[str, str]:
    names = ["infinity_emb", "torch", "transformers", "optimum", "onnxruntime", "sentence-transformers"]
    return installed_versions(python_of(INFINITY), names)
