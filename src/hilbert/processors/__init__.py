"""From what a caller sends to what a model sees: text to token ids, images and sounds to features."""

from hilbert.processors.naming import called, renamed
from hilbert.processors.pairs import PairProcessor
from hilbert.processors.text import TextProcessor, token_array

__all__ = ["PairProcessor", "TextProcessor", "called", "renamed", "token_array"]
