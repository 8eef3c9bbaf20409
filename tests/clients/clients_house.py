"""What the tests of the clients share. Runs in the clients' environments, without Hilbert's server."""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

TOLERANCE = 1e-5


@dataclass(frozen=True)
class World:
    """The servers, what they are asked, and what they should answer.

    Attributes:
        open: URL of a server that asks for no key. Both serve the models minilm, reranker, classifier,
            splade, m3, clip and gliner.
        guarded: URL of one that wants `key` and takes one request at a time for each model.
        texts: N texts to embed or classify.
        query: what `documents` are ranked by.
        labels: the classes of the classifier.
        kinds: what gliner looks for.
        images: files.
        folders: of the models that were made here, by name.
        cache: folder of traced graphs.
        expected: what the Python API answered: ``dense`` [N, 384], ``dense_64``, ``query`` [384],
            ``documents`` (vectors), ``chunks`` (late chunking of the texts); ``ranking``, ``scores`` (after
            the sigmoid) and ``logits``, best first; ``labels`` and ``label_scores`` [N, 3], best first;
            ``sparse`` [N, vocabulary]; ``m3_dense``, ``m3_sparse``, ``m3_tokens_0`` … [n, 64];
            ``clip_images``, ``clip_jpegs`` (the same images as JPEG) and ``clip_texts`` of length 1. And what
            gliner itself found in the texts: ``entity_places`` [M, 3] (the text's place, start, end),
            ``entity_labels`` and ``entity_scores`` [M].
    """

    open: str
    guarded: str
    key: str
    texts: list[str]
    query: str
    documents: list[str]
    labels: list[str]
    kinds: list[str]
    images: list[str]
    folders: dict[str, str]
    cache: str
    expected: dict[str, np.ndarray]

    def at(self, model: str, server: str | None = None) -> str:
        """URL of one model, for clients that name none: every route exists below it."""
        return f"{server or self.open}/{model}"

    def same(self, found: Any, name: str, tolerance: float = TOLERANCE) -> None:
        """Fail where these numbers are not those of the Python API."""
        wanted, given = self.expected[name], np.asarray(found, np.float64)
        assert given.shape == wanted.shape, (given.shape, wanted.shape)
        assert np.abs(given - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())

    def same_ranking(self, found: list[tuple[int, float]], name: str = "scores") -> None:
        """Fail where ``(index, score)``, best first, are not those of the Python API."""
        assert [index for index, _ in found] == self.expected["ranking"].tolist()
        self.same([score for _, score in found], name)

    @contextmanager
    def full(self) -> Iterator[None]:
        """`guarded` has no room for one more request to minilm while this lasts: an embed, or a rerank."""
        guest = _Guest(self)
        guest.start()
        try:
            _wait_until(lambda: _status(self) == 429, "the server never got full")
            yield
        finally:
            guest.leave()
            _wait_until(lambda: _status(self) == 200, "the server stayed full")


def _body(texts: list[str]) -> bytes:
    return json.dumps({"model": "minilm", "input": texts}).encode()


def _connection(world: World) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(world.guarded).netloc, timeout=60)


def _headers(world: World) -> dict[str, str]:
    return {"content-type": "application/json", "authorization": f"Bearer {world.key}"}


class _Guest(threading.Thread):
    """Keeps the model's only place with one long request after another; leaves in the middle of one."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._connection = _connection(world)
        self._is_leaving = False

    def run(self) -> None:
        body = _body(["one more guest " * 100] * 512)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not self._is_leaving:
                self._connection.request("POST", "/v1/embeddings", body, _headers(self._world))
                self._connection.getresponse().read()

    def leave(self) -> None:
        self._is_leaving = True
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.join()
        self._connection.close()


def _status(world: World) -> int:
    connection = _connection(world)
    try:
        connection.request("POST", "/v1/embeddings", _body(["a"]), _headers(world))
        return connection.getresponse().status
    finally:
        connection.close()


def _wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, otherwise


@functools.cache
def load_world() -> World:
    file = Path(os.environ["HILBERT_CLIENTS_WORLD"])
    with np.load(file.parent / "expected.npz") as arrays:
        expected = dict(arrays)
    return World(**json.loads(file.read_text()), expected=expected)


def library(name: str, package: str | None = None) -> Any:
    """The module `name`; where pip could not install its package, its tests are skipped with pip's words."""
    package = package or name.partition(".")[0].replace("_", "-")
    try:
        return importlib.import_module(name)
    except ImportError:
        said = Path(sys.prefix) / "missing" / f"{package}.txt"
        if not said.exists():
            raise
        last = " ".join(said.read_text().split())[-400:]
        pytest.skip(f"{package} cannot be installed: {last}", allow_module_level=True)
