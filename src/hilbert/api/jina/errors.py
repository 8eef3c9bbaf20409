"""Errors as Jina's clients read them: ``detail``, with OpenAI's object beside."""

from __future__ import annotations

from hilbert.api.openai.errors import SharedDialect


class JinaDialect(SharedDialect):
    """Words errors as Jina does."""
