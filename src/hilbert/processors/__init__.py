"""From what a caller sends to what a model sees: text to token ids, images and sounds to features."""

from hilbert.processors.chunks import ChunkProcessor
from hilbert.processors.naming import called, placed, renamed, spelled
from hilbert.processors.pairs import PairProcessor, PairProcessors, pair_processor
from hilbert.processors.prompts import resolve_prompt
from hilbert.processors.spans import SpanProcessor
from hilbert.processors.static_queries import StaticQueries
from hilbert.processors.text import TextProcessor, token_array

__all__ = [
    "ChunkProcessor",
    "PairProcessor",
    "PairProcessors",
    "SpanProcessor",
    "StaticQueries",
    "TextProcessor",
    "called",
    "pair_processor",
    "placed",
    "renamed",
    "resolve_prompt",
    "spelled",
    "token_array",
]
