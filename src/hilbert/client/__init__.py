"""The Python client: what the bare package holds. Knows the wire, nothing of the server's insides."""

from hilbert.client.calls import ClassifyOptions, DenseOptions, EmbedOptions, RerankOptions, SparseOptions
from hilbert.client.client import AsyncClient, Client
from hilbert.client.wire import Encoded, Hit, LabelScore

__all__ = [
    "AsyncClient",
    "ClassifyOptions",
    "Client",
    "DenseOptions",
    "EmbedOptions",
    "Encoded",
    "Hit",
    "LabelScore",
    "RerankOptions",
    "SparseOptions",
]
