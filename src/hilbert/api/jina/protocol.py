"""Jina's answer with a vector for each token; its bodies are those of `api/openai/protocol.py`."""

from __future__ import annotations

import msgspec

from hilbert.api.body import Usage


class TokenEmbeddings(msgspec.Struct):
    """The vectors of one text's tokens: numbers, or base64 of their bytes."""

    object: str
    index: int
    embeddings: list[list[float] | str]


class TokenEmbeddingList(msgspec.Struct):
    """The texts, in the order of the inputs."""

    object: str
    data: list[TokenEmbeddings]
    model: str
    usage: Usage
