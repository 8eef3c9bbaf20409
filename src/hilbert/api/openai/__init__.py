"""OpenAI's embeddings API, on `/v1` and `/openai/v1`."""

from hilbert.api.openai.routes import openai_routes

__all__ = ["openai_routes"]
