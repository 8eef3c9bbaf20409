"""Cohere's API, versions 1 and 2; `/v1/rerank` as Jina, vLLM and Voyage have it, too."""

from hilbert.api.cohere.routes import cohere_routes, cohere_v2_routes

__all__ = ["cohere_routes", "cohere_v2_routes"]
