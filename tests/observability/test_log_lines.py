"""The log where nobody can write it, and a log for machines, which nothing but JSON gets into."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cli_house import Server, hilbert

from hilbert.logs import LineHandler

# A worker whose runtimes cannot be made: `operator.add` of a model and its settings.
NO_RUNTIME = [
    sys.executable,
    "-c",
    "import sys; from hilbert.worker import spawn; make = spawn.prestart\n"
    "spawn.prestart = lambda factory=None, preload=(): make('operator:add', preload)\n"
    "from hilbert.cli import main; sys.exit(main())",
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_fails_nobody() -> None:
    handler = LineHandler()
    handler.setStream(open("/dev/full", "w"))  # noqa: SIM115  # closing it fails, too
    for _ in range(3):
        handler.write_all("INFO", "hilbert.access", [(0.0, "ok", {})] * 1000)
    with suppress(OSError):
        handler.stream.close()
    handler.write_all("INFO", "hilbert.access", [(0.0, "closed", {})])
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
