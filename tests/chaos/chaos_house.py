"""What the chaos tests share: servers in odd circumstances, what they hold, and callers of many requests."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from cli_house import HILBERT, NO_TLS, Server

FOLDER = Path(__file__).parent
DANGEROUS = [sys.executable, str(FOLDER / "dangerous.py")]
LOAD = [sys.executable, str(FOLDER.parent.parent / "bench" / "load.py")]


@contextmanager
def serving(
    *argv: str, program: Sequence[str] = HILBERT, wait: bool = True, **environ: str
) -> Iterator[Server]:
    """A server on a free port for as long as the block runs."""
    server = Server(("serve", *argv, "--port", "0"), environ, wait=False, program=program)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        if server.process.returncode is None:
            server.process.terminate()
            server.wait()


def address_of(server: Server) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rpartition(":")[2])


def until(condition: Callable[[], bool], what: str, seconds: float = 40.0) -> float:
    """Wait until something has become true; returns how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - start


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        resident: MB (10^6 bytes) in memory.
        files, threads: how many.
    """

    resident: float
    files: int
    threads: int

    @staticmethod
    def by(pid: int) -> Held:
        proc = Path("/proc") / str(pid)
        pages = int((proc / "statm").read_text().split()[1])
        return Held(
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(os.listdir(proc / "fd")),
            len(os.listdir(proc / "task")),
        )


def request_bytes(body: Any, route: str = "/v1/embeddings", *headers: str) -> bytes:
    """A whole HTTP request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {route} HTTP/1.1", "host: x", f"content-length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, body; status 0 where the connection ends before."""
    received = bytearray()
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                break
            received += more
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    with suppress(ConnectionError):
        while len(body) < length and (more := connection.recv(65536)):
            body += more
    return int(first[9:12] or 0) if first.startswith("HTTP/1.1 ") else 0, headers, body


class Together:
    """Requests that are all in flight at once.

    Attributes:
        answers: the response and the seconds that it took, in the order of the requests.
    """

    def __init__(self, server: Server, bodies: Sequence[Any], route: str = "/v1/embeddings") -> None:
        self._pool = ThreadPoolExecutor(len(bodies))
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.Client(timeout=60, limits=limits, verify=NO_TLS)
        self._futures = [self._pool.submit(self._post, server.url + route, body) for body in bodies]

    def _post(self, url: str, body: Any) -> tuple[httpx2.Response, float]:
        start = time.monotonic()
        reply = self._client.post(url, json=body)
        return reply, time.monotonic() - start

    @property
    def answers(self) -> list[tuple[httpx2.Response, float]]:
        found = [future.result() for future in self._futures]
        self._pool.shutdown()
        self._client.close()
        return found


class Readiness:
    """What `/readyz` says, over and over, while a block runs.

    Attributes:
        seen: the statuses, in order, without repetitions.
    """

    def __init__(self, server: Server) -> None:
        self.seen: list[int] = []
        self._url = server.url + "/readyz"
        self._client = httpx2.Client(timeout=10, verify=NO_TLS)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Readiness:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._client.close()

    def _look_on(self) -> None:
        while not self._is_over.wait(0.02):
            self._look()

    def _look(self) -> None:
        status = self._client.get(self._url).status_code
        if self.seen[-1:] != [status]:
            self.seen.append(status)
