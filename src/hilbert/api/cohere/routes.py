"""The route of `/v1/rerank`."""

from __future__ import annotations

from collections.abc import Iterator

from hilbert.api.cohere import protocol
from hilbert.api.cohere.errors import CohereDialect
from hilbert.api.rerank import RerankBody, RerankRoute
from hilbert.api.routing import Route
from hilbert.api.settings import ApiSettings
from hilbert.models import Registry


def cohere_routes(models: Registry, settings: ApiSettings, base: str) -> Iterator[Route]:
    """The route under one base, such as ``/v1``."""
    yield Route(
        "POST",
        f"{base}/rerank",
        RerankRoute(models, settings, protocol.rerank_json),
        CohereDialect(),
        summary="Order documents by relevance (the answer of Cohere and Jina)",
        request=RerankBody,
        response=protocol.Ranking,
    )
