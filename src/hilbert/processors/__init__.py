"""From what a caller sends to what a model sees: text to token ids."""

from hilbert.processors.text import TextProcessor, token_array

__all__ = ["TextProcessor", "token_array"]
