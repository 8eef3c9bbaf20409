"""The API of Hugging Face's text-embeddings-inference (TEI), so that its users change nothing."""

from hilbert.api.tei.routes import tei_rerank, tei_routes

__all__ = ["tei_rerank", "tei_routes"]
