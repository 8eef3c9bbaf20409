"""The same faults for Hilbert and for Infinity: what the guilty, the others and the health check are told.

    python bench/faults.py                      # both; some minutes
    python bench/faults.py --servers hilbert

Each fault meets a fresh server. Hilbert is tests/chaos/dangerous.py on a tiny model, Infinity 0.0.77 (torch)
is `faulty_infinity.py` on all-MiniLM-L6-v2: both are the real servers, in which only what computes and what
tokenizes fails on demand. Where clients leave work behind, Hilbert serves MiniLM as well. TEI and SIE cannot
be run here. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import INFINITY, MODEL, make_all, make_model, python_of
from servers import Server, hilbert_server, running

BENCH = Path(__file__).resolve().parent
PATIENCE = 15.0  # seconds until a caller gives up
WORKER_TIMEOUT = 2.0  # Hilbert's --worker-timeout; Infinity has none
SOFT_FILES = 1024  # what shells allow


def hilbert() -> Server:
    from hilbert.testing.models import tiny_model

    model = tiny_model("static", Path(tempfile.mkdtemp()) / "tiny" / "static")
    program = (
        "prlimit",
        f"--nofile={SOFT_FILES}:",
        sys.executable,
        str(BENCH.parent / "tests/chaos/dangerous.py"),
    )
    return Server(
        "hilbert",
        "Hilbert",
        program,
        ("serve", "-m", str(model), "--port", "{port}", "--worker-timeout", str(WORKER_TIMEOUT)),
    )


def infinity() -> Server:
    program = (
        "prlimit",
        f"--nofile={SOFT_FILES}:",
        str(python_of(INFINITY)),
        str(BENCH / "faulty_infinity.py"),
    )
    arguments = (
        "v2",
        "--model-id",
        str(MODEL),
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--no-bettertransformer",
    )
    return Server(
        "infinity",
        "Infinity",
        program,
        (*arguments, "--log-level", "error", "--host", "127.0.0.1", "--port", "{port}"),
    )


def ask(port: int, data: bytes, patience: float = PATIENCE) -> str:
    """The status of an answer; or what came instead of one."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
            connection.sendall(data)
            head = connection.recv(65536)
    except TimeoutError:
        return "no answer"
    except OSError:
        return "connection broken"
    return head[9:12].decode() if head.startswith(b"HTTP/1.1 ") else "connection closed"


def post(*texts: str) -> bytes:
    body = json.dumps({"model": "bench", "input": list(texts)}).encode()
    return b"POST /embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def timed(work: Callable[[], str]) -> str:
    start = time.perf_counter()
    found = work()
    return f"{found} after {time.perf_counter() - start:.1f} s"


def poison(text: str) -> Callable[[int, int], dict[str, Any]]:
    """One guilty request among twenty good ones, and what holds afterwards."""

    def fault(port: int, pid: int) -> dict[str, Any]:
        with ThreadPoolExecutor(21) as pool:
            guilty = pool.submit(timed, lambda: ask(port, post(f"a room {text}")))
            others = [pool.submit(ask, port, post(f"room {i}")) for i in range(20)]
            found = {"guilty": guilty.result(), "with it": dict(Counter(f.result() for f in others))}
        found["a good one afterwards"] = timed(lambda: ask(port, post("a room")))
        found["/health"] = ask(port, get("/health"))
        return found

    return fault


def left(port: int, pid: int) -> dict[str, Any]:
    """Clients who send 32 long texts and leave: is their work done for nobody?"""
    request = post(*["there is always room for one more guest " * 40] * 32)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(request)
            time.sleep(0.01)
    return {"a good one afterwards": timed(lambda: ask(port, post("a room"), 120.0))}


def slow_headers(port: int, pid: int) -> dict[str, Any]:
    """200 clients who begin a request and send nothing more: who is still held after 40 seconds?"""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"POST /embeddings HTTP/1.1\r\nhost: x\r\n")
        time.sleep(40)
        return {"held after 40 s": sum(not _is_over(connection) for connection in slow)}


def _is_over(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def malformed(port: int, pid: int) -> dict[str, Any]:
    """300 requests with bytes changed."""
    rng, statuses = random.Random(0), Counter[str]()
    for _ in range(300):
        data = bytearray(post("a room"))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        statuses[ask(port, bytes(data), 0.2)] += 1
    return {"statuses": dict(statuses), "a good one afterwards": timed(lambda: ask(port, post("a room")))}


def idle(port: int, pid: int) -> dict[str, Any]:
    """1,500 connections that are open and silent, where a shell allows 1,024 files."""
    with contextlib.ExitStack() as stack:
        for _ in range(1500):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(get("/health"))
        return {"a good one beside them": timed(lambda: ask(port, post("a room")))}


def sigterm(port: int, pid: int) -> dict[str, Any]:
    """SIGTERM while 64 requests are in work."""
    with ThreadPoolExecutor(64) as pool:
        texts = ["there is always room for one more guest " * 20] * 8
        replies = [pool.submit(ask, port, post(*texts), 60.0) for _ in range(64)]
        time.sleep(0.5)
        subprocess.run(["kill", f"-{int(signal.SIGTERM)}", str(pid)], check=True)
        return {"answers": dict(Counter(reply.result() for reply in replies))}


FAULTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "a tokenizer raises": poison("☠"),
    "a runtime raises": poison("!"),
    "a runtime hangs": poison("&"),
    "clients leave": left,
    "headers never end": slow_headers,
    "malformed requests": malformed,
    "1500 idle connections": idle,
    "SIGTERM under load": sigterm,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", default="hilbert,infinity")
    parser.add_argument("--only", default="", help="part of a fault's name")
    options = parser.parse_args()
    names = options.servers.split(",")
    if "infinity" in names and not (INFINITY / "installed.txt").exists():
        make_all()
    make_model(with_onnx=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    found: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        if options.only in name:
            found[name] = {}
            ours = hilbert_server() if fault is left else hilbert()
            for server in (ours, infinity()):
                if server.name in names:
                    with running(server) as live:
                        found[name][server.name] = fault(live.port, live.pid)
                    print(f"{name}: {server.name}: {found[name][server.name]}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
