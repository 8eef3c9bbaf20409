"""The loop that runs batches, and the handle that hides where it runs."""

from typing import TYPE_CHECKING, Any

from hilbert.engine.base import EngineHandle, Health, has_rows, raise_if_failed
from hilbert.engine.device import Device
from hilbert.engine.engine import Engine
from hilbert.engine.start import EngineLimits, start_engine
from hilbert.engine.stats import BatchStats

if TYPE_CHECKING:
    from hilbert.engine.local import LocalEngine

__all__ = [
    "BatchStats",
    "Device",
    "Engine",
    "EngineHandle",
    "EngineLimits",
    "Health",
    "LocalEngine",
    "has_rows",
    "raise_if_failed",
    "start_engine",
]


def __getattr__(name: str) -> Any:
    # The worker process has no event loop; asyncio would cost it 30 ms at its start.
    if name == "LocalEngine":
        from hilbert.engine.local import LocalEngine

        return LocalEngine
    raise AttributeError(name)
