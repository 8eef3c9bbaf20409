"""Errors as Voyage's client reads them: ``detail``, with OpenAI's object beside."""

from __future__ import annotations

from hilbert.api.openai.errors import SharedDialect


class VoyageDialect(SharedDialect):
    """Words errors as Voyage does."""
