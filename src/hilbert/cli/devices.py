"""What loads the models of a device that has memory of its own, such as a GPU, and measures them there."""

from __future__ import annotations

from hilbert.cli.fleet import Fleet
from hilbert.cli.loader import ModelLoader
from hilbert.config.sizes import size_bytes
from hilbert.core import ModelSpec
from hilbert.models import Entry, Residency, ServedModel
from hilbert.models.residency import UNKNOWN_BYTES


class DeviceLoader:
    """Implements `models.Loader` for a device that has memory of its own: what counts is held there.

    The device says how much it has once its first model is there; of what is free for this server then, the
    models may take the same share as of a machine's memory.

    Args:
        loader: brings models up, wherever they live.
        fleet: knows the device's memory.
        device: its name.
        residency: learns the budget.
    """

    def __init__(self, loader: ModelLoader, fleet: Fleet, device: str, residency: Residency) -> None:
        self._fleet = fleet
        self._device = device
        self._residency = residency
        self._loader = loader
        self.resolve = loader.resolve
        self.unload = loader.unload
        self.epoch = loader.epoch
        self.size_of = loader.size_of
        self.remember_size = loader.remember_size

    async def load(self, entry: Entry, spec: ModelSpec) -> ServedModel:
        """See `models.Loader`."""
        served = await self._loader.load(entry, spec)
        memory = self._fleet.device_memory(self._device)
        if memory.total_bytes and self._residency.budget_bytes == UNKNOWN_BYTES:
            self._residency.set_budget(size_bytes("auto", memory.available_bytes))
        return served

    def used_bytes(self) -> int:
        """See `models.Loader`: what the models, and the batches that ran, hold on the device."""
        return self._fleet.device_memory(self._device).held_bytes
