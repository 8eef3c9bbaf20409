"""The loop that runs batches, and the handle that hides where it runs."""

from hilbert.engine.base import EngineHandle, Health, raise_if_failed
from hilbert.engine.device import Device
from hilbert.engine.engine import Engine
from hilbert.engine.local import LocalEngine
from hilbert.engine.stats import BatchStats

__all__ = ["BatchStats", "Device", "Engine", "EngineHandle", "Health", "LocalEngine", "raise_if_failed"]
