"""The loop that runs batches, and the handle that hides where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilbert.engine.base import EngineHandle, Health, raise_if_failed
from hilbert.engine.device import Device
from hilbert.engine.engine import Engine
from hilbert.engine.stats import BatchStats

if TYPE_CHECKING:
    from hilbert.engine.local import LocalEngine

__all__ = ["BatchStats", "Device", "Engine", "EngineHandle", "Health", "LocalEngine", "raise_if_failed"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: it brings asyncio, which a worker process does without.
    if name == "LocalEngine":
        from hilbert.engine.local import LocalEngine

        return LocalEngine
    raise AttributeError(f"module 'hilbert.engine' has no attribute {name!r}")
