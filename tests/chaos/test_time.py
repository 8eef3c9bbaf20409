"""The end of a server under load, and a wall clock that jumps while it runs."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from chaos_house import DANGEROUS, address_of, read_answer, request_bytes, serving
from cli_house import Server

REQUEST = request_bytes({"input": "a room", "encoding_format": "base64"})


class Guest:
    """One connection that asks again and again.

    Attributes:
        answers: when each request was sent, and its status; 0 where the connection ended without an answer.
    """

    def __init__(self, server: Server) -> None:
        self.answers: list[tuple[float, int]] = []
        self._connection = socket.create_connection(address_of(server), timeout=30)

    def run(self) -> None:
        with self._connection as connection, suppress(ConnectionError):
            status = 200
            while status:
                sent = time.monotonic()
                status = 0
                try:
                    connection.sendall(REQUEST)
                    status, headers, body = read_answer(connection)
                    if len(body) < int(headers.get("content-length", "0")):
                        status = 0
                finally:
                    self.answers.append((sent, status))
                if headers.get("connection") == "close":
                    return


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_sigterm_under_load_loses_no_accepted_request(static: str, times: int) -> None:
    for _ in range(times):
        flags = ("-m", static, "--max-batch-requests", "4", "--log-level", "error")
        with serving(*flags, program=DANGEROUS, CHAOS_SECONDS_PER_BATCH="0.02") as server:
            guests = [Guest(server) for _ in range(48)]  # a quarter of a second of work waits at any time
            threads = [threading.Thread(target=guest.run) for guest in guests]
            for thread in threads:
                thread.start()
            time.sleep(1.2)
            ended = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
            assert server.wait() == 0
        sent = [(moment - ended, status) for guest in guests for moment, status in guest.answers]
        assert {status for moment, status in sent if moment < -0.6} == {200}
        # What the server read after the signal is refused in words; only later are connections closed.
        assert {status for moment, status in sent if moment < 0} <= {200, 503}
        assert {status for _, status in sent} <= {200, 503, 0} and len(sent) > 100


JUMPS = ("315360000", "-315360000", "3600", "-3600", "0")


def test_clock_jumps_do_not_matter(static: str, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    flags = ("-m", static, "--request-timeout", "5", "--worker-timeout", "3", "--limits-per-key", "rate=500")
    with serving(*flags, program=DANGEROUS, CHAOS_CLOCK=str(clock), CHAOS_SECONDS_PER_BATCH="0.01") as server:
        (worker,) = server.children
        with ThreadPoolExecutor(8) as pool:
            replies = [pool.submit(server.post, ["a room"]) for _ in range(150)]
            for jump in JUMPS:
                clock.write_text(jump)
                alive = json.loads(server.get("/healthz").text)["unix"]
                assert abs(alive - time.time() - float(jump)) < 5
                assert server.get("/readyz").status_code == 200
                time.sleep(0.1)
            statuses = {reply.result().status_code for reply in replies}
        assert statuses == {200}
        assert server.children == [worker]
        # Limits count real seconds: an hour forth and back buys nothing and costs nothing.
        assert server.post(["a room"]).headers["x-ratelimit-limit-requests"] == "500"
        assert server.stop() == 0
        assert not [line for line in server.errors if "Traceback" in line]
