"""A real `hilbert serve` in a process of its own, and a tiny model that it loads in no time."""

from __future__ import annotations

import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from hilbert.testing.models import tiny_model

HILBERT = [sys.executable, "-c", "import sys; from hilbert.cli import main; sys.exit(main())"]

# Certificates would be read for each request: 22 ms, though there is no TLS here.
NO_TLS = False


def clean_environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HILBERT_", "INFINITY_"))
    }
    return kept | changes


def hilbert(*argv: str, timeout: float = 120, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HILBERT, *argv],
        env=clean_environment(**environ),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Server:
    """One running server; `url` is set once it has announced itself."""

    def __init__(
        self, argv: tuple[str, ...], environ: dict[str, str], wait: bool, program: Sequence[str] = HILBERT
    ) -> None:
        self.process = subprocess.Popen(
            [*program, *argv],
            env=clean_environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self.banner = ""
        self._drain = threading.Thread(target=self._read_errors)
        self._drain.start()
        if wait:
            self.wait_ready()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def wait_ready(self) -> None:
        """The banner comes when all models can answer; a server that dies closes its output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner += line
            if line.startswith("  curl"):
                return
        self.process.wait()
        self._drain.join()
        raise AssertionError("no server: " + "".join(self.errors))

    @property
    def url(self) -> str:
        return next(word for word in self.banner.split() if word.startswith("http://"))

    @property
    def curl(self) -> str:
        return next(line.strip() for line in self.banner.splitlines() if line.startswith("  curl"))

    @property
    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def post(self, texts: list[str], route: str = "/v1/embeddings", **more: object) -> httpx2.Response:
        headers = more.pop("headers", {})
        body = {"input": texts, **more}
        return httpx2.post(self.url + route, json=body, headers=headers, timeout=60, verify=NO_TLS)

    def get(self, route: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + route, headers=headers, timeout=60, verify=NO_TLS)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = 30) -> int:
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self._drain.join()
            assert self.process.stdout is not None and self.process.stderr is not None
            self.process.stdout.close()
            self.process.stderr.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        _, _, to = self.path.partition("?to=")
        if not to:
            return super().do_GET()
        self.send_response(302)
        self.send_header("location", to)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """The address of a web server with the files of a folder; with ``?to=URL`` it redirects there."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def children_of(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found: list[int] = []
    seen = [pid]
    while seen:
        parent = seen.pop()
        below = [child for child, its_parent in parents.items() if its_parent == parent]
        found += below
        seen += below
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """`start(*argv, wait=True, **environ)`: a server on a free port; stopped at the end."""
    servers: list[Server] = []

    def run(*argv: str, verb: str = "serve", wait: bool = True, **environ: str) -> Server:
        port = () if "--port" in argv or "--uds" in argv or "HILBERT_PORT" in environ else ("--port", "0")
        server = Server((verb, *argv, *port), environ, wait=False)
        servers.append(server)
        if wait:
            server.wait_ready()
        return server

    yield run
    for server in servers:
        if server.process.returncode is None:
            server.process.terminate()
            server.wait()


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that is an embedding table: nothing to trace, ready at once."""
    return str(tiny_model("static", tmp_path_factory.mktemp("models") / "tiny" / "static"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One cache for the session, so that each model is traced once."""
    return str(tmp_path_factory.mktemp("cache"))
