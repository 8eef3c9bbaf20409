"""Jina's own route: `/v1/multi-vector`."""

from __future__ import annotations

from collections.abc import Iterator

from hilbert.api.jina import protocol
from hilbert.api.jina.errors import JinaDialect
from hilbert.api.openai.protocol import EmbeddingsBody, to_json
from hilbert.api.openai.routes import EmbeddingsRoute
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.api.vectors import vector_lists
from hilbert.core import OutputType
from hilbert.models import Registry


def jina_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The routes under one base, such as ``/v1``."""
    yield Route(
        "POST",
        f"{base}/multi-vector",
        EmbeddingsRoute(models, settings, to_json, output=OutputType.MULTIVECTOR, write_tokens=vector_lists),
        JinaDialect(),
        summary="A vector for each token (Jina's answer)",
        request=EmbeddingsBody,
        response=protocol.TokenEmbeddingList,
    )
