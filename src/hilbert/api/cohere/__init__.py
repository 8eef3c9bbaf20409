"""Reranking as Cohere, Jina and vLLM have it: `/v1/rerank`."""

from hilbert.api.cohere.routes import cohere_routes

__all__ = ["cohere_routes"]
