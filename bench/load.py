"""The load generator: its own process, raw HTTP/1.1 over sockets, the same for every server.

    python bench/load.py closed --port 7997 --bodies bodies.jsonl --connections 32 --seconds 20
    python bench/load.py closed --port 7997 --bodies bodies.jsonl --connections 32 --count 20000
    python bench/load.py beside --port 7997 --bulk bulk.jsonl --bodies query.jsonl --seconds 20
    python bench/load.py open --port 7997 --bodies bodies.jsonl --rate 4000 --connections 512 --seconds 20

`closed` keeps every connection busy with one request at a time; `beside` sends a short query over and over
while requests of many texts run on another connection; `open` sends at a fixed rate, whatever is answered.
Each prints one line of JSON.

A closed loop stops sending after its time, **waits for what is in flight** and divides all answers by the
time of the last one. A generator that hangs up instead (wrk does) loses up to one request per connection,
which takes 10 % from a server that answers ten per connection and nothing from a fast one; and it leaves
the abandoned requests in the queue, where they spoil the next measurement. On uvloop a request costs 12 us
of processor time here, against 8 us in wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request in flight; answers are counted, not parsed."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.waiting: asyncio.Future[int] | None = None
        self.head = b""
        self.left = -1
        self.status = 0
        self.has_retry_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.answered(0)

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.head[:end].lower()
            mark = head.find(b"content-length:")
            if mark < 0:
                raise RuntimeError("the answer has no Content-Length")
            self.status = int(head[9:12])
            self.has_retry_after = b"\r\nretry-after:" in head
            self.left = int(head[mark + 15 :].split(b"\r", 1)[0])
            self.left -= len(self.head) - end - 4
            self.head = b""
        else:
            self.left -= len(data)
        if self.left <= 0:
            self.left = -1
            self.answered(self.status)

    def answered(self, status: int) -> None:
        """An answer is here as a whole; 0 when there will be none."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(status)

    async def send(self, request: bytes) -> int:
        """Send one request and return the status of its answer; 0 when the connection broke."""
        if self.transport is None:
            return 0
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiting


def requests_of(bodies: Path, port: int, path: str) -> list[bytes]:
    """The bytes of each request, made once, before the clock starts."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return [
        f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for body in bodies.read_bytes().splitlines()
    ]


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(Connection, "127.0.0.1", port)
    return protocol


def percentile(latencies: list[float], share: float) -> float:
    """Milliseconds; NaN is not JSON, so an empty list gives 0."""
    ordered = sorted(latencies)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 3) if ordered else 0.0


def summary(latencies: list[float], seconds: float, failed: int) -> dict[str, float]:
    return {
        "requests": len(latencies),
        "seconds": round(seconds, 3),
        "failed": failed,
        "p50_ms": percentile(latencies, 0.5),
        "p90_ms": percentile(latencies, 0.9),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": percentile(latencies, 1.0),
    }


async def closed_loop(
    port: int, path: str, bodies: Path, connections: int, seconds: float | None, count: int | None
) -> dict[str, float]:
    prepared = requests_of(bodies, port, path)
    source: Iterator[bytes] = cycle(prepared) if count is None else islice(cycle(prepared), count)
    latencies: list[float] = []
    failed = 0
    opened = [await connect(port) for _ in range(connections)]
    start = time.perf_counter()
    end = start + seconds if seconds else float("inf")

    async def guest(connection: Connection) -> None:
        nonlocal failed
        for request in source:
            sent = time.perf_counter()
            if sent > end:
                return
            status = await connection.send(request)
            latencies.append(time.perf_counter() - sent)
            if status != 200:
                failed += 1
                if connection.transport is None:
                    return

    await asyncio.gather(*(guest(c) for c in opened))
    took = time.perf_counter() - start
    for connection in opened:
        if connection.transport is not None:
            connection.transport.close()
    return summary(latencies, took, failed)


@dataclass
class Tally:
    """Answers of an open loop: seconds by what they were.

    Attributes:
        accepted, rejected: latencies of 200 and 429.
        others: how many answers had each other status; 0 is a broken connection.
        num_without_retry_after: 429s that do not say when to come back.
        num_unsent: requests that were due while every connection was busy.
        lag: how late the last request of each turn was sent.
    """

    accepted: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    others: dict[int, int] = field(default_factory=dict)
    num_without_retry_after: int = 0
    num_unsent: int = 0
    lag: list[float] = field(default_factory=list)

    def count(self, status: int, seconds: float, has_retry_after: bool) -> None:
        if status == 200:
            self.accepted.append(seconds)
        elif status == 429:
            self.rejected.append(seconds)
            self.num_without_retry_after += not has_retry_after
        else:
            self.others[status] = self.others.get(status, 0) + 1


class Flight(Connection):
    """One of the connections over which an open loop sends, without an event loop."""

    def __init__(self, port: int, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.sent = 0.0
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def ask(self, request: bytes) -> None:
        self.sent = time.perf_counter()
        if self.socket.send(request) != len(request):
            raise RuntimeError("a request is larger than what the system takes at once")

    def hear(self) -> bool:
        """Take what has come; whether that ends the request, well or not."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        if data:
            self.data_received(data)
        else:
            self.status, self.left = 0, -1
        is_over = not self.head and self.left < 0
        if is_over and self.sent:
            self.tally.count(self.status, time.perf_counter() - self.sent, self.has_retry_after)
            self.sent = 0.0
        return is_over


def open_loop(
    port: int, path: str, bodies: Path, connections: int, seconds: float, rate: float, warm_up: float
) -> dict[str, Any]:
    """Send `rate` requests per second for `seconds`, whether or not they are answered, then wait for all.

    What has not been answered when the sending ends is waited for, and does not count as goodput; nor do the
    first `warm_up` seconds, in which the server's queue fills and few answers can come out of it. It wakes
    every two milliseconds, sends what is due and takes what has come: on a machine that it shares with the
    server, a turn for each answer would cost the server several times what the answers cost. So latencies
    are up to two milliseconds longer here than they were.
    """
    source = cycle(requests_of(bodies, port, path))
    tally, poll = Tally(), select.epoll()
    flights: dict[int, Flight] = {}
    idle: deque[Flight] = deque()

    def open_one() -> None:
        flight = Flight(port, tally)
        flights[flight.socket.fileno()] = flight
        poll.register(flight.socket, select.EPOLLIN)
        idle.append(flight)

    def hear_all() -> None:
        for number, _ in poll.poll(0):
            flight = flights[number]
            if not flight.hear():
                continue
            if flight.status:
                idle.append(flight)
                continue
            with contextlib.suppress(ValueError):
                idle.remove(flight)
            poll.unregister(flight.socket)
            flights.pop(number).socket.close()
            open_one()

    for _ in range(connections):
        open_one()
    start = time.perf_counter()
    num_due = num_before = 0
    while (now := time.perf_counter() - start) < seconds:
        if now < warm_up:
            num_before = len(tally.accepted)
        due = int(now * rate)
        while num_due < due:
            num_due += 1
            if idle:
                idle.popleft().ask(next(source))
            else:
                tally.num_unsent += 1
        tally.lag.append(time.perf_counter() - start - now)
        time.sleep(0.002)
        hear_all()
    num_answered, took = len(tally.accepted), time.perf_counter() - start
    while len(idle) < connections:
        time.sleep(0.002)
        hear_all()
    for flight in idle:
        flight.socket.close()
    return {
        "requests": num_due,
        "seconds": round(took, 3),
        "goodput_per_second": round((num_answered - num_before) / (took - warm_up), 3),
        "unsent": tally.num_unsent,
        "others": tally.others,
        "without_retry_after": tally.num_without_retry_after,
        "lag_p99_ms": percentile(tally.lag, 0.99),
        "accepted": summary(tally.accepted, took, 0),
        "rejected": summary(tally.rejected, took, 0),
    }


async def beside(
    port: int, path: str, bulk: Path, query: Path, seconds: float, pause: float
) -> dict[str, Any]:
    """Requests of many texts one after another, and short queries beside them.

    Stops sending at the first moment at which `seconds` have passed and one bulk request has been answered.
    """
    bulk_requests = requests_of(bulk, port, path)
    queries = cycle(requests_of(query, port, path))
    bulk_connection, query_connection = await connect(port), await connect(port)
    bulk_seconds: list[float] = []
    latencies: list[float] = []
    failed = 0
    running = True

    async def bulk_guest() -> None:
        nonlocal failed, running
        start = time.perf_counter()
        for request in cycle(bulk_requests):
            sent = time.perf_counter()
            status = await bulk_connection.send(request)
            failed += status != 200
            bulk_seconds.append(time.perf_counter() - sent)
            if time.perf_counter() - start >= seconds or bulk_connection.transport is None:
                running = False
                return

    async def query_guest() -> None:
        nonlocal failed
        await asyncio.sleep(0.2)
        while running and query_connection.transport is not None:
            sent = time.perf_counter()
            status = await query_connection.send(next(queries))
            failed += status != 200
            latencies.append(time.perf_counter() - sent)
            await asyncio.sleep(pause)

    start = time.perf_counter()
    await asyncio.gather(bulk_guest(), query_guest())
    result: dict[str, Any] = dict(summary(latencies, time.perf_counter() - start, failed))
    result["bulk_seconds"] = [round(s, 3) for s in bulk_seconds]
    return result


def run_loop(main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["closed", "beside", "open"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/embeddings")
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--bulk", type=Path)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second in `open`")
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds in `open` without goodput")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between queries in `beside`")
    a = parser.parse_args()
    if a.mode == "beside":
        result = run_loop(beside(a.port, a.path, a.bulk, a.bodies, a.seconds or 10, a.pause))
    elif a.mode == "open":
        result = open_loop(a.port, a.path, a.bodies, a.connections, a.seconds or 10, a.rate, a.warm_up)
    else:
        result = run_loop(closed_loop(a.port, a.path, a.bodies, a.connections, a.seconds, a.count))
    used = resource.getrusage(resource.RUSAGE_SELF)
    result["generator_cpu_seconds"] = round(used.ru_utime + used.ru_stime, 2)
    result["requests_per_second"] = round(result["requests"] / result["seconds"], 3)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
