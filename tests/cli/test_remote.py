"""The verbs that ask a running server, where there is none, and the words for several keys of one label."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hilbert.cli import main

NOBODY = "http://127.0.0.1:9"
VERBS = [["status"], ["models", "list"], ["models", "load", "m"], ["keys", "usage"]]


class Stranger(BaseHTTPRequestHandler):
    """Any other web server: its answers are pages, and the one of its metrics is not ours."""

    def do_GET(self) -> None:
        body = b"[]" if self.path.startswith("/v1") else b"<p>welcome</p>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_where_no_server_is(words: list[str], stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(url: str) -> str:
        assert main([*words, "--url", url]) == 1
        said = capsys.readouterr()
        assert not said.out and said.err.count("\n") == 1 and said.err.startswith("hilbert: "), said
        return said.err

    assert "--url 'nonsense'" in refused("nonsense") and "http://" in refused("nonsense")
    assert "--url 'ftp://a'" in refused("ftp://a")
    assert "'http://[::1'" in refused("http://[::1")
    dead = refused(NOBODY)
    assert f"no server answers at {NOBODY} (" in dead and "--url" in dead and "urlopen" not in dead
    assert "no Hilbert server" in refused(stranger)


def test_a_pause_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--every", "-1", "--url", NOBODY]) == 2
    assert "--every" in capsys.readouterr().err


def test_a_second_key_of_one_label_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--keys-file", str(tmp_path / "keys")]
    assert main(["keys", "add", "alice", *file]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("tok_") and not first.err
    assert main(["keys", "add", "alice", *file]) == 0
    second = capsys.readouterr()
    assert re.fullmatch(r"tok_[0-9a-f]{32}\n", second.out) and second.out != first.out
    assert main(["keys", "list", *file]) == 0
    old, new = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    assert (
        "alice has 2 keys now" in second.err and f"the new one is {new}" in second.err and old in second.err
    )
    assert main(["keys", "revoke", old, *file]) == 0
    assert main(["keys", "list", *file]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(new)
