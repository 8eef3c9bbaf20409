"""Hilbert: an inference server for embeddings, rerankers and classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilbert.client import AsyncClient, Client
    from hilbert.models.local import Model

__version__ = "0.1.0"

# Public name → the module that has it; imported when first asked for, so that `import hilbert` is free.
_EXPORTS = {
    "AsyncClient": "hilbert.client",
    "Client": "hilbert.client",
    "Model": "hilbert.models.local",
}
__all__ = ["AsyncClient", "Client", "Model", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hilbert' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
