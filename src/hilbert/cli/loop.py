"""The event loop, imported before anything that HTTP needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one; None for Python's own."""
    try:
        import uvloop
    except ModuleNotFoundError:  # not made for Windows
        return None
    return uvloop.new_event_loop
