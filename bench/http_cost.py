"""CPU time that the HTTP layer costs per request, with an engine that answers at once.

    python bench/http_cost.py [--requests 20000] [--connections 8]

Starts the real application under uvicorn in a child process, drives it over keep-alive connections from
this one, and reads the child's CPU time before and after. Prints JSON: microseconds of CPU per request
for each kind of request, from a bare ASGI function (the price of uvicorn alone) upwards, so that the
differences explain the sum. The CPU time of the client is not in it. At the end, what the front door adds:
the same requests at applications with 200 keys in a file and a rate with a burst for each key, with every
limit that there is, for each key and for all together, and also with a log line for each verdict. They take
turns with the first in one process, as two processes of the same code differ by more (where their memory
lies), and in several, one after the other. And what a refusal costs: a server which has no room for one
more request and, as by default, logs a line for each that it refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUM_TOKENS = 98  # the mean of the `mixed` workload
A_RATE = "rate=1000000 burst=1000000"
EVERY_LIMIT = A_RATE + " tokens=1000000000 concurrent=10000"
NUM_PROCESSES = 5
# A keys file that was just written is read at each request, as its clock may not have ticked since.
SETTLING_SECONDS = 4
TEXT = "packed rows of hidden states are attended within their own borders and no token is wasted"


def serve(listener: int, keys_file: str, is_full: bool, is_logged: bool) -> None:
    """The child: applications on an inherited listening socket, each under the first part of a path."""
    import numpy as np
    import uvloop

    from hilbert import hub
    from hilbert.api import ApiSettings, create_app
    from hilbert.api.call import ANSWER
    from hilbert.cli.http import HttpServer
    from hilbert.core import Output, OutputType, Request
    from hilbert.engine import Health
    from hilbert.logs import log_to_stderr
    from hilbert.models import Registry, ServedModel
    from hilbert.processors import TextProcessor
    from hilbert.runtimes.base import RuntimeInfo
    from hilbert.scheduler import Admission

    rows = np.random.default_rng(0).standard_normal((2048, 384), dtype=np.float32)

    class Instant:
        """An engine that needs no time."""

        health = Health.READY
        info = RuntimeInfo("none", "cpu", "float32", "none", "", 384, frozenset({OutputType.DENSE}), 2048)

        async def run(self, request: Request) -> Output:
            return Output(request.id, dense=rows[: len(request.sequences)])

    spec = hub.resolve("bundled")
    admission = Admission(1_000_000, 1 if is_full else 1024)
    if is_full:
        admission.admit(1, 0.0)
    model = ServedModel(
        "bench",
        spec,
        TextProcessor(spec),
        Instant(),
        admission,
        request_timeout_seconds=60.0,
    )
    log_to_stderr("info" if is_logged else "error")
    doors = {
        "open": ApiSettings(),
        "rate": ApiSettings(keys_file=keys_file, limits_per_key=A_RATE),
        "limits": ApiSettings(keys_file=keys_file, limits_per_key=EVERY_LIMIT, limits_overall=EVERY_LIMIT),
    }
    apps = {name: create_app(Registry([model]), settings) for name, settings in doors.items()}

    async def bare_or_app(scope: Any, receive: Any, send: Any) -> None:
        name, _, path = scope["path"][1:].partition("/")
        if name == "bare":
            await receive()
            headers = [(b"content-length", b"2"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})
        else:
            scope["path"] = "/" + path
            await apps[name](scope, receive, send)

    server = HttpServer(bare_or_app, answer_name=ANSWER)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.run_on(socket.socket(fileno=listener)))


def text_of(num_tokens: int) -> tuple[str, list[int]]:
    """A text with exactly so many tokens, and those tokens."""
    from hilbert import hub
    from hilbert.core import EmbedRequest
    from hilbert.processors import TextProcessor

    processor = TextProcessor(hub.resolve("bundled"))
    words: list[str] = []
    while True:
        words.append(TEXT.split()[len(words) % 16])
        ids = processor.encode(EmbedRequest((" ".join(words),)), 0)[0].input_ids
        if len(ids) >= num_tokens:
            return " ".join(words), ids.tolist()


def request_bytes(method: str, path: str, body: Any) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer unused\r\nUser-Agent: bench\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Client(asyncio.Protocol):
    """One keep-alive connection that sends the same request until the common count is used up."""

    def __init__(self, data: bytes, left: list[int], done: asyncio.Future[None]) -> None:
        self.data, self.left, self.done = data, left, done
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        if self.left[0] == 0:
            self.transport.close()
            self.done.set_result(None)
            return
        self.left[0] -= 1
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self.received.index(b"content-length: ") + 16
        length = int(self.received[start : self.received.index(b"\r\n", start)])
        if len(self.received) >= end + 4 + length:
            assert self.received.startswith((b"HTTP/1.1 200", b"HTTP/1.1 429")), self.received[:500]
            self.received = self.received[end + 4 + length :]
            self.next()


async def drive(port: int, data: bytes, num_requests: int, num_connections: int) -> float:
    """Send them all; returns the seconds it took."""
    loop = asyncio.get_running_loop()
    left = [num_requests]
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(num_connections)]
    start = time.perf_counter()
    for end in ends:
        await loop.create_connection(lambda end=end: Client(data, left, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return time.perf_counter() - start


def cpu_seconds(pid: int) -> float:
    """Time on a processor of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(num_requests: int, num_connections: int, repeats: int) -> dict[str, Any]:
    text, ids = text_of(NUM_TOKENS)
    embeddings = "/open/v1/embeddings"
    kinds = {
        "bare ASGI function": request_bytes("POST", "/bare", {}),
        "health": request_bytes("GET", "/open/healthz", None),
        f"{NUM_TOKENS} token ids, base64": request_bytes(
            "POST", embeddings, {"input": ids, "model": "bench", "encoding_format": "base64"}
        ),
        "one-word text, base64": request_bytes(
            "POST", embeddings, {"input": "hotel", "model": "bench", "encoding_format": "base64"}
        ),
        f"text of {NUM_TOKENS} tokens, base64": request_bytes(
            "POST", embeddings, {"input": text, "model": "bench", "encoding_format": "base64"}
        ),
        f"text of {NUM_TOKENS} tokens, float": request_bytes(
            "POST", embeddings, {"input": text, "model": "bench", "encoding_format": "float"}
        ),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        keys = ("--keys-file", write_keys(folder))
        with running(*keys, "--full") as full:
            for name in (f"text of {NUM_TOKENS} tokens, base64", "one-word text, base64"):
                runs = sorted(cost(full, kinds[name], num_requests, num_connections) for _ in range(repeats))
                results[f"refused: {name}"] = {"cpu_us_per_request": round(runs[len(runs) // 2][0], 1)}
        with running(*keys) as server:
            for name, data in kinds.items():
                runs = sorted(cost(server, data, num_requests, num_connections) for _ in range(repeats))
                cpu_us, rate = runs[len(runs) // 2]
                results[name] = {"cpu_us_per_request": round(cpu_us, 1), "requests_per_second": round(rate)}
        for name, door, words in (
            ("keys and a rate", "rate", ()),
            ("keys and every limit", "limits", ()),
            ("keys, every limit and a log line each", "limits", ("--logged",)),
        ):
            added = sorted(
                more
                for _ in range(NUM_PROCESSES)
                for more in added_by(door, (*keys, *words), num_requests // 10, num_connections, 3 * repeats)
            )
            results[f"added by {name}"] = {
                "cpu_us_per_request": round(added[len(added) // 2], 1),
                "quartiles": [round(added[len(added) * quarter // 4], 1) for quarter in (1, 3)],
            }
    return results


def added_by(
    door: str, words: tuple[str, ...], num_requests: int, num_connections: int, num_turns: int
) -> list[float]:
    """Microseconds of CPU that a request pays more at this door than at the open one, once for each turn."""
    body = {"input": "hotel", "model": "bench", "encoding_format": "base64"}
    data = [request_bytes("POST", f"/{name}/v1/embeddings", body) for name in (door, "open")]
    with running(*words) as server:
        cost(server, data[0], num_requests, num_connections)
        time.sleep(SETTLING_SECONDS)
        turns = [
            [cost(server, one, num_requests, num_connections)[0] for one in data] for _ in range(num_turns)
        ]
    return [guarded - unguarded for guarded, unguarded in turns]


def write_keys(folder: str) -> str:
    """A file of 200 keys, the last of which the requests carry."""
    path = Path(folder) / "api_keys.txt"
    others = "".join(f"tok_{i:032x} # user {i} <user{i}@example.com>\n" for i in range(199))
    path.write_text(others + "unused # bench\n")
    return str(path)


@contextlib.contextmanager
def running(*words: str) -> Iterator[tuple[int, int]]:
    """A server; yields its process id and port. Its log goes to a file, as it would."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.set_inheritable(True)
    command = [sys.executable, __file__, "--serve", str(listener.fileno()), *words]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=log)
        listener.close()
        try:
            yield server.pid, port
        finally:
            server.terminate()
            server.wait()
            log.seek(0)
            usual = (b" ok ", b": 200 keys", b" status=429 ")
            lines = [line for line in log if not any(words in line for words in usual)]
            sys.stderr.buffer.writelines(lines)


def cost(
    server: tuple[int, int], data: bytes, num_requests: int, num_connections: int
) -> tuple[float, float]:
    """Microseconds of CPU per request, and requests per second."""
    import uvloop

    pid, port = server
    uvloop.run(drive(port, data, 1000, num_connections))
    before = cpu_seconds(pid)
    seconds = uvloop.run(drive(port, data, num_requests, num_connections))
    return (cpu_seconds(pid) - before) / num_requests * 1e6, num_requests / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keys-file", default="", help=argparse.SUPPRESS)
    parser.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--logged", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        is_logged = arguments.logged or arguments.full
        serve(arguments.serve, arguments.keys_file, arguments.full, is_logged)
        return
    results = measure(arguments.requests, arguments.connections, arguments.repeats)
    about = {
        "requests": arguments.requests,
        "connections": arguments.connections,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    print(json.dumps({"http_cost": results, **about}, indent=2))


if __name__ == "__main__":
    main()
