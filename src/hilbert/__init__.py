"""Hilbert: an inference server for embeddings, rerankers and classifiers."""

__version__ = "0.1.0"
