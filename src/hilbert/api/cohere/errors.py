"""Errors for clients of several makers.

Cohere's clients read ``message`` at the top, Voyage's and Jina's ``detail`` (they share `/v1/rerank`),
OpenAI's and those built on it the object ``error``; the answer has all three.
"""

from __future__ import annotations

from hilbert.api.openai.errors import OpenAIDialect


class CohereDialect(OpenAIDialect):
    """Words errors as Cohere does, with the others' words beside."""

    names = ("message", "detail")
