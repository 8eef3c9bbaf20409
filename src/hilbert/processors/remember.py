"""Memory of what a method returned, without a hold on the method's object.

`lru_cache` over a bound method that is kept on its own object is a cycle, which only the garbage collector
takes apart, some time: a tokenizer's megabytes would outlive its model's unloading.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TypeVar
from weakref import WeakMethod

T = TypeVar("T")

# Prompts come from callers, so what is remembered of them is bounded.
_MAX_REMEMBERED = 256


def remembered(method: Callable[..., T]) -> Callable[..., T]:
    """A bound method whose last 256 answers are remembered, by its arguments."""
    weak = WeakMethod(method)

    @lru_cache(maxsize=_MAX_REMEMBERED)
    def call(*arguments: Hashable) -> T:
        alive = weak()
        assert alive is not None, "its object owns this function"
        return alive(*arguments)

    return call
