"""Jina's API, as far as its paths are its own; `/v1/embeddings` and `/v1/rerank` are shared."""

from hilbert.api.jina.routes import jina_routes

__all__ = ["jina_routes"]
