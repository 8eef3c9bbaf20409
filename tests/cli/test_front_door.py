"""`hilbert keys` and `hilbert authz`, as processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from cli_house import HILBERT, Server, clean_environment, hilbert


class Sidecar:
    def __init__(self, *flags: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [*HILBERT, "authz", "--port", "0", *flags],
            env=clean_environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = line.split()[-1].removesuffix("/_authz") if line else ""

    def ask(self, token: str | None, path: str = "/_authz", **headers: str) -> int:
        given = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.get(self.url + path, headers=given | headers).status_code

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.fixture
def sidecar() -> Iterator[Callable[..., Sidecar]]:
    started: list[Sidecar] = []

    def run(*flags: str, **environ: str) -> Sidecar:
        started.append(Sidecar(*flags, **environ))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.stop()


def test_keys_from_first_to_last(start, static, tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    server: Server = start("-m", static, "--served-model-name", "rooms", HILBERT_KEYS_FILE=str(path))
    token = hilbert("keys", "add", "alice <alice@example.com>", "--keys-file", str(path)).stdout.strip()
    bound = hilbert(
        "keys", "add", "bob", "--models", "other", "--limits", "rate=5,burst=2", "--hashed", "--admin",
        HILBERT_KEYS_FILE=str(path),
    ).stdout.strip()  # fmt: skip
    assert bound not in path.read_text()
    used = server.post(["a b c"], headers={"x-api-key": token}).json()["usage"]["total_tokens"]
    assert server.post(["a"], headers={"x-api-key": bound}).status_code == 403
    listed = hilbert("keys", "list", "--keys-file", str(path)).stdout
    assert re.fullmatch(
        r"[0-9a-f]{8}  alice <alice@example.com>\n[0-9a-f]{8}  bob  models=other admin rate=5 burst=2\n",
        listed,
    )
    shown = hilbert("keys", "usage", "--url", server.url).stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["alice", "1", "requests", str(used), "tokens"],
        ["bob", "1", "requests", "0", "tokens"],
    ]
    assert "revoked 1" in hilbert("keys", "revoke", "bob", "--keys-file", str(path)).stdout
    assert server.post(["a"], headers={"x-api-key": bound}).status_code == 401
    again = hilbert("keys", "revoke", "bob", "--keys-file", str(path))
    assert again.returncode == 1 and "no key" in again.stderr and "Traceback" not in again.stderr
    nobody = hilbert("keys", "usage", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1 and "no server answers" in nobody.stderr


def test_the_sidecar(sidecar, tmp_path: Path) -> None:
    path = tmp_path / "api_keys.txt"
    began = time.monotonic()
    it = sidecar("--keys-file", str(path), "--trusted-proxies", "private")
    assert it.ask(None, "/healthz") == 200
    assert time.monotonic() - began < 10
    assert it.ask("tok_1") == 401  # no file yet
    path.write_text("tok_1 # alice <a@example.com>\ntok_2 models=bge # bob\n")
    asked = {"x-forwarded-for": "203.0.113.9", "x-original-uri": "/bge/v1/embeddings?k=tok_1"}
    assert it.ask("tok_1", **asked, **{"x-original-method": "POST"}) == 204
    assert it.ask("tok_2") == 403  # it cannot know the model
    assert it.ask("tok_3") == it.ask(None) == 401
    assert it.ask("tok_1", "/elsewhere") == 404
    refused = httpx2.post(it.url + "/_authz", content=b"x")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    path.write_text("tok_9 # zed\n")
    assert (it.ask("tok_1"), it.ask("tok_9")) == (401, 204)
    status, log = it.stop()
    assert status == 0 and "tok_" not in log
    assert "204 ok 203.0.113.9 [alice <a@example.com>] POST /bge/v1/embeddings\n" in log
    assert "401 deny 127.0.0.1 [-] GET /_authz" in log and "lets nobody in" in log


def test_the_sidecars_flags(sidecar, tmp_path: Path) -> None:
    socket = str(tmp_path / "a.sock")
    it = sidecar("--uds", socket, "--log-level", "error", HILBERT_API_KEY="tok_1")
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=socket)) as client:
        assert client.get("http://x/_authz", headers={"x-api-key": "tok_1"}).status_code == 204
        assert client.get("http://x/_authz").status_code == 401
    assert it.stop() == (0, "")
    spoken = sidecar("--json-output", HILBERT_API_KEY="tok_1")
    assert spoken.ask("tok_2") == 401
    (line,) = spoken.stop()[1].splitlines()
    said = json.loads(line)
    assert (said["level"], said["verdict"], said["path"]) == ("WARNING", "401 deny", "/_authz")
    open_ = hilbert("authz", "--port", "0")
    assert open_.returncode == 1 and "--keys-file" in open_.stderr
    wrong = hilbert("authz", "--host", "192.0.2.1", HILBERT_API_KEY="x")
    assert wrong.returncode == 1 and "192.0.2.1" in wrong.stderr
