"""``hilbert authz``: only the keys, for a proxy that asks before it lets a request pass.

nginx's ``auth_request`` sends the headers of each request to ``/_authz`` and lets it pass on 204. Knows
neither models nor engines, and imports none. Which model a request is for cannot be known here, so keys
that are for some models only are refused; limits are for the servers behind.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hilbert.access import PASSED, Keys, Proxies, Verdicts
from hilbert.cli.http import HttpServer, HttpSettings
from hilbert.cli.loop import loop_factory
from hilbert.cli.sockets import bind, release, url_of
from hilbert.config import ServerSettings
from hilbert.errors import Forbidden, ServingError, Unauthorized
from hilbert.logs import log_to_stderr

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

VERDICT_PATH = "/_authz"


class Authz:
    """An ASGI application with two routes."""

    def __init__(self, keys: Keys, proxies: Proxies) -> None:
        self._keys = keys
        self._proxies = proxies
        self._verdicts = Verdicts("204 ok")

    async def __call__(self, scope: Scope, receive: object, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == VERDICT_PATH:
            status = self._verdict(scope)
            body = b"" if status == 204 else b'{"error":{"message":"The key is missing or not good here."}}'
        elif scope["path"] == "/healthz":
            status, body = 200, b'{"unix":%.3f}' % time.time()
        else:
            status, body = 404, b'{"error":{"message":"There are /_authz and /healthz here."}}'
        headers = [(b"content-type", b"application/json")]
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        headers += [(b"content-length", b"%d" % len(body))] if status != 204 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _verdict(self, scope: Scope) -> int:
        headers = dict(scope["headers"])
        client = self._proxies.client_of(scope["client"][0] if scope["client"] else None, headers)
        asked = headers.get(b"x-original-uri", scope["path"].encode()).partition(b"?")[0].decode("latin-1")
        method = headers.get(b"x-original-method", scope["method"].encode()).decode("latin-1")
        label, status = "", 204
        try:
            key = self._keys.identify(headers)
            label = key.label
            if key.models is not None:
                raise Forbidden("A key for some models only is of no use here.")
        except ServingError as error:
            status = error.status
        self._verdicts.log(PASSED if status == 204 else status, client, label, method, asked)
        return status


def serve_authz(settings: ServerSettings) -> None:
    """Answer until SIGTERM or SIGINT.

    Raises:
        Unauthorized: there are no keys, so everybody would be let in.
        BadSetting: the address cannot be listened on.
    """
    log_to_stderr(settings.log_level, is_json=settings.json_output)
    keys = Keys(settings.api_key, settings.keys_file)
    if keys.is_open:
        raise Unauthorized("authz needs keys: give --keys-file FILE, or HILBERT_API_KEY.")
    app = Authz(keys, Proxies(settings.trusted_proxies))
    sock = bind(settings)

    async def run() -> None:
        server = HttpServer(app, HttpSettings.of(settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.leave)
        print(f"hilbert authz answers on {url_of(sock, settings)}{VERDICT_PATH}", flush=True)
        await server.run_on(sock)

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run())
    finally:
        release(sock, settings)
