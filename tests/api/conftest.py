"""A real server on a loopback socket: uvicorn in a thread, the real tokenizer, a fake runtime."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from hilbert import hub
from hilbert.api import ApiSettings, create_app
from hilbert.api.call import ANSWER
from hilbert.cli.http import HttpServer
from hilbert.core import ModelSpec, OutputType
from hilbert.engine import Device, Engine, LocalEngine
from hilbert.models import Registry, ServedModel
from hilbert.models.media import MediaLoader
from hilbert.observability import Metrics
from hilbert.processors import TextProcessor
from hilbert.scheduler import Admission, Scheduler
from hilbert.testing.runtime import FakeRuntime

DIMENSIONS = 384
# Certificates would be read for each request: 22 ms, though there is no TLS here.
NO_TLS = False


@dataclass
class Server:
    """A running server and everything behind it."""

    port: int
    registry: Registry
    runtimes: dict[str, FakeRuntime]
    engines: dict[str, Engine[Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def model(self) -> ServedModel:
        served = self.registry.list()[0].served
        assert served is not None
        return served

    @property
    def runtime(self) -> FakeRuntime:
        return next(iter(self.runtimes.values()))

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        if body is not None:
            more["json"] = body
        return httpx2.post(self.url + path, timeout=30, verify=NO_TLS, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=30, verify=NO_TLS, **more)

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """Send bytes as they are and return all that comes back until the server closes or is done."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            return read_response(connection)


def read_response(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return received
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            break
        body += more
    return head + b"\r\n\r\n" + body


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return hub.resolve("bundled")


@pytest.fixture(scope="session")
def processor(spec: ModelSpec) -> TextProcessor:
    return TextProcessor(spec)


@contextmanager
def running(
    processor: TextProcessor,
    *names: str,
    settings: ApiSettings | None = None,
    runtime: FakeRuntime | None = None,
    max_queued_tokens: int = 1_000_000,
    max_concurrent_requests: int = 1024,
    request_timeout_seconds: float | None = 30.0,
    max_batch_tokens: int = 2048,
    media: MediaLoader | None = None,
) -> Iterator[Server]:
    metrics = Metrics()
    models, runtimes, engines = [], {}, {}
    for name in names or ("all-MiniLM-L6-v2",):
        fake = runtime or FakeRuntime(DIMENSIONS)
        model_metrics = metrics.model(name)
        engine = Engine(fake, Scheduler(max_batch_tokens), Device(), on_batch=model_metrics.on_batch)
        engine.start()
        runtimes[name], engines[name] = fake, engine
        models.append(
            ServedModel(
                name,
                processor.spec,
                processor,
                LocalEngine(engine),
                Admission(max_queued_tokens, max_concurrent_requests),
                model_metrics,
                request_timeout_seconds=request_timeout_seconds,
                media=media,
            )
        )
    registry = Registry(models)
    app = create_app(registry, settings, metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(app, answer_name=ANSWER)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Server(listener.getsockname()[1], registry, runtimes, engines)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        for engine in engines.values():
            engine.stop()


@pytest.fixture(scope="session")
def server(processor: TextProcessor) -> Iterator[Server]:
    with running(processor) as it:
        yield it


@pytest.fixture(scope="session")
def served(processor: TextProcessor) -> Any:
    """A context manager for servers whose model returns these outputs: ``served(*outputs, …)``."""

    def served(*outputs: OutputType, **more: Any) -> Any:
        fake = FakeRuntime(DIMENSIONS, outputs=frozenset(outputs), token_dimensions=4, record=True, **more)
        return running(processor, runtime=fake)

    return served


@pytest.fixture(scope="session")
def served_with() -> Any:
    """A context manager for servers with another processor: ``served_with(processor, …)``."""
    return running


@pytest.fixture
def serve_more() -> Iterator[Any]:
    """Start further servers: ``serve_more(processor, **settings) -> Server``."""
    with ExitStack() as stack:
        yield lambda processor, **more: stack.enter_context(running(processor, settings=ApiSettings(**more)))


@pytest.fixture
def serve(processor: TextProcessor) -> Iterator[Any]:
    """Start further servers with other settings: ``serve("a", "b", settings=…) -> Server``."""
    with ExitStack() as stack:
        yield lambda *names, **more: stack.enter_context(running(processor, *names, **more))
