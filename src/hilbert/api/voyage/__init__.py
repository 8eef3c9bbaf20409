"""Voyage's API, as far as its paths are its own; `/v1/embeddings` and `/v1/rerank` are shared."""

from hilbert.api.voyage.routes import voyage_routes

__all__ = ["voyage_routes"]
