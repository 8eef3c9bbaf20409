"""The log where nobody can write it, and a log for machines, which nothing but JSON gets into."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from cli_house import Server, hilbert, served_folder

from hilbert.logs import PLAIN, LineHandler, without_message

# A worker whose runtimes cannot be made: `operator.add` of a model and its settings.
NO_RUNTIME = [
    sys.executable,
    "-c",
    "import sys; from hilbert.worker import spawn; make = spawn.prestart\n"
    "spawn.prestart = lambda factory=None, preload=(): make('operator:add', preload)\n"
    "from hilbert.cli import main; sys.exit(main())",
]


FETCHES = """
import asyncio, sys
from hilbert.logs import log_to_stderr
from hilbert.processors.fetch import ByteBudget, Fetcher, FetchSettings
log_to_stderr("trace")

async def main():
    fetcher = Fetcher(FetchSettings(private_hosts=frozenset({"localhost"})))
    assert await fetcher.fetch(sys.argv[1], ByteBudget(100)) == b"room"
    await fetcher.aclose()

asyncio.run(main())
"""


def test_no_level_tells_what_a_client_sent(static: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("room")
    with served_folder(tmp_path) as site:
        asked = [sys.executable, "-c", FETCHES, f"{site}/a.txt?sig=dawn"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    server = Server(("serve", "-m", static, "--log-level", "trace", "--port", "0"), {}, True)
    reply = server.post(["dawn"], route="/v1/embeddings?q=dawn", headers={"x-api-key": "dawn"})
    assert reply.status_code == 200 and server.stop() == 0
    assert "TRACE" in "".join(server.errors)  # it does say everything else
    assert "dawn" not in done.stderr + "".join(server.errors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_fails_nobody() -> None:
    handler = LineHandler()
    handler.setStream(open("/dev/full", "w"))  # noqa: SIM115  # closing it fails, too
    for _ in range(3):
        handler.write_all("INFO", "hilbert.access", PLAIN, [(0.0, "ok")] * 1000)
    with suppress(OSError):
        handler.stream.close()
    handler.write_all("INFO", "hilbert.access", PLAIN, [(0.0, "closed")])
    assert handler.stream.closed


def test_every_line_is_json(static: str) -> None:
    server = Server(("serve", "-m", static, "--json-output", "--port", "0"), {}, False, NO_RUNTIME)
    assert server.wait() == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        busy = hilbert("serve", "-m", static, "--json-output", "--port", port)
    assert busy.returncode == 1
    lines = [json.loads(line) for line in (*server.errors, *busy.stderr.splitlines())]
    assert {line["level"] for line in lines} >= {"ERROR"} and all("timestamp" in line for line in lines)
    assert [line for line in lines if "exception" in line and "TypeError" in line["exception"]]
    assert "is in use" in lines[-1]["message"]


def test_what_caused_a_failure_is_not_quoted_either() -> None:
    def explode() -> None:
        try:
            raise ValueError("dawn")
        except ValueError as error:
            raise RuntimeError("dawn") from error

    try:
        explode()
    except RuntimeError as error:
        shown = "".join(traceback.format_exception(without_message(error)))
    assert "RuntimeError: ValueError" in shown and "explode" in shown
    assert "Error: dawn" not in shown
