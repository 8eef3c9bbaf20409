"""Threads for work that would block the event loop: long texts, large answers.

They are few and their own: the event loop's default pool also resolves host names and the like, and
must not be what a flood of long texts fills.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


NUM_THREADS = min(4, os.cpu_count() or 1)
"""Threads of each pool."""


@lru_cache(maxsize=2)
def _threads(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix=name)


async def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of the pool. A cancelled caller's work is dropped unless it has begun.

    Costs about 100 µs (reference: `asyncio.to_thread`), so small work is better done inline.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads("hilbert-front"), lambda: function(*args, **kwargs))


async def offload_media(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in threads for images and sounds alone, whose decoding takes seconds: texts do not wait."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads("hilbert-front-media"), lambda: function(*args, **kwargs))
