"""The real nginx with deploy/nginx's configuration, before a real sidecar and real servers."""

from __future__ import annotations

import os
import shutil
import socket
import string
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from cli_house import HILBERT, Server, clean_environment

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "deploy/nginx/default.conf.template"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

MAIN = """
daemon off;
master_process on;
worker_processes 1;
$user
pid $folder/nginx.pid;
error_log $folder/error.log warn;
events { worker_connections 128; }
http {
    access_log off;
    client_body_temp_path $folder/body;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;
    include $folder/default.conf;
}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(url: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            httpx2.get(url, timeout=5)
            return
        except httpx2.HTTPError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.05)


@dataclass
class Stack:
    """Gateway, sidecar and three servers.

    Attributes:
        keys: the keys file that the sidecar reads.
        servers: by the name of their address in the configuration.
    """

    folder: Path
    keys: Path
    servers: dict[str, Server]
    sidecar: subprocess.Popen[str]
    sidecar_port: int
    nginx: subprocess.Popen[bytes]
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: object, token: str | None = "tok_alice", **more: str) -> httpx2.Response:
        headers = dict(more)
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return httpx2.post(self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, token: str | None = "tok_alice") -> httpx2.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.get(self.url + path, headers=headers, timeout=60)

    def stop_sidecar(self) -> str:
        self.sidecar.terminate()
        _, log = self.sidecar.communicate(timeout=20)
        return log

    def stop(self) -> None:
        self.nginx.terminate()
        self.nginx.wait(20)
        if self.sidecar.returncode is None:
            self.stop_sidecar()
        for server in self.servers.values():
            if server.process.returncode is None:
                server.stop()


def start_sidecar(keys: Path, port: int) -> subprocess.Popen[str]:
    sidecar = subprocess.Popen(
        [*HILBERT, "authz", "--port", str(port), "--keys-file", str(keys), "--trusted-proxies", "private"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert sidecar.stdout is not None and "authz answers" in sidecar.stdout.readline()
    return sidecar


def start_stack(folder: Path, servers: dict[str, Server]) -> Stack:
    """Bring all of it up; slow clients are cut off after a second instead of thirty."""
    assert NGINX is not None
    keys = folder / "keys" / "api_keys.txt"
    keys.parent.mkdir()
    keys.write_text("tok_alice # alice <alice@example.com>\n")
    sidecar_port, port = free_port(), free_port()
    hosts = {name: server.url.removeprefix("http://") for name, server in servers.items()}
    text = string.Template(TEMPLATE.read_text()).safe_substitute(
        GATEWAY_PORT=f"127.0.0.1:{port}", AUTHZ=f"127.0.0.1:{sidecar_port}", RESOLVER="127.0.0.1", **hosts
    )
    assert "${" not in text and "client_body_timeout 30s" in text
    (folder / "default.conf").write_text(text.replace("client_body_timeout 30s", "client_body_timeout 1s"))
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(string.Template(MAIN).safe_substitute(folder=folder, user=user))
    nginx = subprocess.Popen(
        [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    )
    stack = Stack(folder, keys, servers, start_sidecar(keys, sidecar_port), sidecar_port, nginx, port)
    wait_for(stack.url + "/healthz")
    return stack
