"""Clients that leave, dawdle, listen to nothing and talk nonsense; and a process without file descriptors."""

from __future__ import annotations

import json
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from chaos_house import HILBERT, Held, address_of, read_answer, request_bytes, serving, until
from cli_house import Server

PATIENCE = 0.6  # --header-timeout, --body-timeout and --idle-timeout of the server here
BUSY_SECONDS = 15.0  # that an answer may take on a machine that does other things as well
REQUEST = request_bytes({"input": "a room"})


@pytest.fixture(scope="module")
def server(static: str) -> Iterator[Server]:
    """A server that waits for nobody for long."""
    seconds = str(PATIENCE)
    flags = ("--header-timeout", seconds, "--body-timeout", seconds, "--idle-timeout", seconds)
    with serving("-m", static, *flags, "--log-level", "error") as it:
        it.post(["warm"])
        yield it


def connect(server: Server) -> socket.socket:
    return socket.create_connection(address_of(server), timeout=20)


def check_well(server: Server, before: Held) -> None:
    """It answers at once, and holds no more than it did."""
    start = time.monotonic()
    assert server.post(["a room"]).status_code == 200
    assert time.monotonic() - start < BUSY_SECONDS
    until(lambda: Held.by(server.process.pid).files <= before.files, f"{before.files} open files again")
    after = Held.by(server.process.pid)
    assert after.threads <= before.threads + 6  # pools fill when they are first needed
    until(lambda: server.metric("hilbert_queue_requests") == 0, "nobody waits")
    assert server.process.poll() is None


def test_clients_that_leave_in_the_middle(server: Server) -> None:
    before = Held.by(server.process.pid)
    large = request_bytes({"input": ["room for one more guest " * 40] * 64})
    for length in (1, 20, len(REQUEST) - 1, len(REQUEST)):
        for _ in range(20):
            with connect(server) as connection:
                connection.sendall(REQUEST[:length])
    for _ in range(20):
        with connect(server) as connection:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(large)
    check_well(server, before)


@pytest.mark.parametrize("sent", [b"", REQUEST[:30], REQUEST[:-1]], ids=["nothing", "headers", "a body"])
def test_a_byte_at_a_time_is_cut_off_and_others_are_served(server: Server, sent: bytes) -> None:
    before = Held.by(server.process.pid)
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(100)]
        for connection in slow:
            connection.sendall(sent)
        start = time.monotonic()
        assert server.post(["a room"]).status_code == 200
        assert time.monotonic() - start < BUSY_SECONDS
        statuses = [read_answer(connection)[0] for connection in slow]
        assert time.monotonic() - start < PATIENCE + BUSY_SECONDS
    assert set(statuses) == ({408} if sent else {0})
    check_well(server, before)


def test_answers_that_nobody_reads(server: Server) -> None:
    before = Held.by(server.process.pid)
    body = request_bytes({"input": ["a room"] * 2048})  # an answer of 1.5 MB
    with ExitStack() as stack:
        for _ in range(8):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(address_of(server))
            deaf.settimeout(0.5)
            with suppress(TimeoutError, ConnectionError):
                for _ in range(6):
                    deaf.sendall(body)
        check_well(server, before)  # while they are still there


def test_an_answer_that_is_read_slowly_arrives_whole(server: Server) -> None:
    """A slow reader is not a deaf one: it takes several times as long as the patience and gets everything."""
    body = json.dumps({"input": ["a room"] * 2048}).encode() + b" " * 10
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address_of(server))
        slow.settimeout(20)
        slow.sendall(request_bytes(body) * 3)
        received = 0
        head = slow.recv(16384)
        each = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        start, received = time.monotonic(), len(head)
        while received < 3 * each and (more := slow.recv(65536)):
            received += len(more)
            if time.monotonic() - start < 4 * PATIENCE:
                time.sleep(0.05)
    assert received >= 3 * each


def test_half_open_connections_end(server: Server) -> None:
    """TCP repair closes a socket without a word: the other side believes that somebody is there."""
    before = Held.by(server.process.pid)
    repair = 19
    for sent in (b"", REQUEST[:30], REQUEST[:-1], REQUEST):
        for _ in range(10):
            ghost = connect(server)
            ghost.sendall(sent)
            try:
                ghost.setsockopt(socket.IPPROTO_TCP, repair, 1)
            except PermissionError:
                pytest.skip("TCP_REPAIR needs CAP_NET_ADMIN")
            ghost.close()
    check_well(server, before)


MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
    b"GET \xff\xfe HTTP/1.1\r\n\r\n",
    b"GET /" + b"%00%ff" * 100 + b" HTTP/1.1\r\n\r\n",
    request_bytes(b'{"input": '),
    request_bytes(b"\xff\xfe"),
    request_bytes({"input": {"a": 1}}),
    request_bytes({"input": [[1, 2], "a"]}, "/embeddings"),
    request_bytes({"input": "a", "dimensions": -1}),
    request_bytes({"query": 3}, "/v1/rerank"),
    request_bytes({"items": [{}]}, "/v1/encode/x"),
    b"\x00" * 64,
]


def malformed(rng: random.Random) -> bytes:
    """One of the list, or a sound request with some bytes changed."""
    if rng.random() < 0.5:
        return rng.choice(MALFORMED)
    data = bytearray(REQUEST)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_malformed_requests(server: Server, number: int) -> None:
    before = Held.by(server.process.pid)
    rng = random.Random(number)
    statuses: dict[int, int] = {}
    for _ in range(number):
        data = malformed(rng)
        with connect(server) as connection, suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            status = read_answer(connection)[0]
            statuses[status] = statuses.get(status, 0) + 1
    assert all(status < 500 for status in statuses), statuses
    check_well(server, before)


@pytest.mark.parametrize("number", [300, pytest.param(2000, marks=pytest.mark.chaos)])
def test_idle_connections_cost_little(static: str, number: int) -> None:
    """Of a client that may open as many: the server raises its own soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * number:
        pytest.skip(f"{hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 500), hard))
    limited = ["prlimit", f"--nofile=128:{hard}", *HILBERT]
    with serving("-m", static, program=limited) as server, ExitStack() as stack:
        server.post(["warm"])
        before = Held.by(server.process.pid)
        for index in range(number):
            idle = stack.enter_context(connect(server))
            if index % 2:
                idle.sendall(REQUEST)
                assert read_answer(idle)[0] == 200
        start = time.monotonic()
        assert server.post(["a room"]).status_code == 200
        assert time.monotonic() - start < BUSY_SECONDS
        after = Held.by(server.process.pid)
        assert after.files > number  # they are there; one of before may have gone meanwhile
        assert after.resident - before.resident < 10 + number * 0.03
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_out_of_file_descriptors(static: str, tmp_path: Path) -> None:
    limited = ["prlimit", "--nofile=64:64", *HILBERT]
    with serving("-m", static, "--idle-timeout", "60", program=limited) as server:
        with connect(server) as first, ExitStack() as stack:
            first.sendall(REQUEST)
            assert read_answer(first)[0] == 200
            crowd = [stack.enter_context(connect(server)) for _ in range(100)]
            answers = []
            for connection in crowd:
                connection.settimeout(0.05)
                with suppress(OSError):
                    connection.sendall(REQUEST)
            until(lambda: Held.by(server.process.pid).files >= 63, "it has no file left")
            first.sendall(REQUEST)  # who is in is served
            assert read_answer(first)[0] == 200
            for connection in crowd:
                with suppress(OSError):
                    answers.append(read_answer(connection)[0])
            assert answers.count(200) > 10
        until(lambda: Held.by(server.process.pid).files < 50, "the crowd has left")
        assert server.post(["a room"]).status_code == 200
        assert server.stop() == 0
