"""Model id to local snapshot to `ModelSpec`, and the cache of traced artifacts. Knows no torch."""

from hilbert.hub.lookup import pull, resolve

__all__ = ["pull", "resolve"]
