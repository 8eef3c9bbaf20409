"""How much of a device's own memory is in use. Imports nothing: it asks the library that is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def device_memory(devices: Iterable[str]) -> tuple[int, int]:
    """Bytes in use, by whomever, and bytes in all, of the first of these devices that has memory of its own.

    Args:
        devices: names as in `RuntimeInfo.device`.
    Returns:
        Zeros where there is none, or where torch does not compute there.
    """
    device = next((name for name in devices if name.startswith("cuda")), "")
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)  # torch may be half imported by another thread
    if not device or cuda is None or is_initialized is None or not is_initialized():
        return 0, 0
    free, total = cuda.mem_get_info(device)
    return total - free, total
