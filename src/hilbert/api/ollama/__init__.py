"""What Ollama's clients need for embeddings: `/api/embed`, and what they ask before it."""

from hilbert.api.ollama.routes import ollama_routes

__all__ = ["ollama_routes"]
