"""`make audit` says what it knows: vulnerable, passed, or that it could not ask."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from audit import PASSED, UNREACHABLE, VULNERABLE, audit, verdict

FOUND = {
    "id": "GHSA-room-1729",
    "summary": "always room for one more",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "hotel", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """Knows one vulnerability, of `hotel`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"vulns": [FOUND]} if asked["package"]["name"] == "hotel" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_vulnerable_passed_and_unreachable(osv: str, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("hotel==1.0\nroom==3.1\n")
    status, lines = audit(requirements, osv)
    assert status == VULNERABLE and lines[0] == "hotel 1.0: GHSA-room-1729, mended in 2.0", lines
    requirements.write_text("room==3.1\n")
    assert audit(requirements, osv) == (PASSED, ["passed: no known vulnerability in 1 packages"])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    status, (line,) = audit(requirements, nowhere)
    assert status == UNREACHABLE and line.startswith("unreachable: ")


def test_what_pip_audit_skipped_has_not_passed() -> None:
    skipped = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}
    status, (line,) = verdict({"dependencies": [skipped, {"name": "b", "version": "1", "vulns": []}]})
    assert status == UNREACHABLE and "1 of 2" in line
    assert verdict({"dependencies": []})[0] == UNREACHABLE
