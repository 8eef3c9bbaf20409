"""The Python client: what the bare package holds. Knows the wire, nothing of the server's insides."""

from hilbert.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
