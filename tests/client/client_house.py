"""A real HTTP server on loopback that says what a test wants it to say, and clients of it."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import numpy as np


class Server:
    """Answers with `answer`, or the vectors of the texts that it is asked for.

    Attributes:
        script: what comes first: for each request a status with headers and body, or None for a connection
            that is cut without an answer.
        seen: path, headers and body of each request.
        busiest: requests that were in work at a time.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status = 200
        self.answer: bytes = b""
        self.extra_headers: dict[str, str] = {}
        self.script: deque[tuple[int, dict[str, str], bytes] | None] = deque()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.busy, self.busiest, self._lock = 0, 0, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.reply(self)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        is_msgpack = "msgpack" in handler.headers["content-type"]
        body = msgspec.msgpack.decode(raw) if is_msgpack else json.loads(raw)
        with self._lock:
            self.seen.append((handler.path, dict(handler.headers), body))
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            planned = self.script.popleft() if self.script else (self.status, self.extra_headers, self.answer)
        self.gate.wait(10)
        with self._lock:
            self.busy -= 1
        if planned is None:
            handler.close_connection = True
            return
        status, headers, content = planned
        content = content or vectors_answer(body["input"])
        with contextlib.suppress(ConnectionError):  # a client that gave up
            self._send(handler, status, headers, content)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def stop_listening(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def close(self) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def vector_of(text: str) -> np.ndarray:
    return np.array([len(text), 1 / 3, -1e-30], "<f4")


def vectors_answer(texts: list[str]) -> bytes:
    data = [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(vector_of(t).tobytes()).decode()}
        for i, t in enumerate(texts)
    ]
    # Out of order on purpose: `index` says which is which.
    return json.dumps({"object": "list", "data": data[::-1], "model": "m", "usage": {}}).encode()


def error_answer(message: str, code: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, **more}}).encode()


def array(values: np.ndarray) -> dict[bytes, Any]:
    """As msgpack-numpy writes it."""
    return {
        b"nd": True,
        b"type": values.dtype.str,
        b"kind": b"",
        b"shape": values.shape,
        b"data": values.tobytes(),
    }


def encoded_answer(*items: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({"model": "m", "items": items, "timing": {}})
