"""How much of a device's own memory is in use. Imports nothing: it asks the library that is loaded."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of a device, as it is now; zeros where it has none of its own, or nobody can tell.

    Attributes:
        used_bytes: in use, by whomever.
        total_bytes: all of it.
        held_bytes: what torch keeps of it in this process, for weights and batches, without its own context.
    """

    used_bytes: int = 0
    total_bytes: int = 0
    held_bytes: int = 0

    @property
    def available_bytes(self) -> int:
        """What this process may hold while the others keep what they have."""
        return self.total_bytes - self.used_bytes + self.held_bytes


def device_memory(devices: Iterable[str]) -> DeviceMemory:
    """The memory of the first of these devices that has its own.

    Args:
        devices: names as in `RuntimeInfo.device`.
    Returns:
        Zeros where there is none, or where torch does not compute there.
    """
    device = next((name for name in devices if name.startswith("cuda")), "")
    cuda = _cuda()
    if not device or cuda is None:
        return DeviceMemory()
    free, total = cuda.mem_get_info(device)
    return DeviceMemory(total - free, total, cuda.memory_reserved(device))


def give_device_memory_back() -> None:
    """Return what torch keeps for later of devices with their own memory.

    Nobody else can have it, and it counts as held. What of a model is garbage is collected first.
    """
    cuda = _cuda()
    if cuda is not None:
        gc.collect()
        cuda.empty_cache()


def _cuda() -> Any:
    """``torch.cuda`` where this process computes on it, else None."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)  # torch may be half imported by another thread
    return cuda if is_initialized is not None and is_initialized() else None
