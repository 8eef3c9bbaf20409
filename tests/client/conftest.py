"""A server that says what a test wants, and both clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from client_house import Server

import hilbert


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["sync", "async"])
def embed(request, server):
    """`embed(*args)` of either client, or another `method`, and what it constructs it with."""

    def call(*args, client=None, method="embed", **kwargs):
        client = {"base_url": server.url, **(client or {})}
        if request.param == "sync":
            with hilbert.Client(**client) as sync:
                return getattr(sync, method)(*args, **kwargs)

        async def run():
            async with hilbert.AsyncClient(**client) as asynchronous:
                return await getattr(asynchronous, method)(*args, **kwargs)

        return anyio.run(run)

    return call
