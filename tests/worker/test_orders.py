"""Who builds when: one at a time, and nobody waits for a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hilbert.runtimes import tracing
from hilbert.runtimes.tracing import Tracer
from hilbert.worker.orders import Orders


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every trace takes until this is set."""
    event = threading.Event()

    def trace(self: Tracer, order: object, *, is_alone: bool = False) -> dict[str, Any]:
        assert event.wait(10)
        return {}

    monkeypatch.setattr(Tracer, "trace", trace)
    return event


def test_a_model_that_needs_a_trace_steps_aside_and_builds_alone(traced: threading.Event) -> None:
    seen: list[str] = []
    at_once = [0, 0]  # now, and the most

    def build(name: str, needs_trace: bool, done: threading.Event) -> Callable[[], None]:
        def order() -> None:
            if needs_trace:
                tracer = tracing._shared.get()
                assert tracer is not None
                tracer.trace(None)  # type: ignore[arg-type]  # nobody reads it
            at_once[0] += 1
            at_once[1] = max(at_once)
            threading.Event().wait(0.02)
            seen.append(name)
            at_once[0] -= 1
            done.set()

        return order

    orders = Orders()
    orders.start()
    events = [threading.Event() for _ in range(5)]
    for name, needs_trace, done in zip("abcde", (False, True, False, True, False), events, strict=True):
        orders.put(build(name, needs_trace, done))
    for place in (0, 2, 4):
        assert events[place].wait(5)
    assert seen == ["a", "c", "e"]
    traced.set()
    assert events[1].wait(5) and events[3].wait(5)
    assert seen == ["a", "c", "e", "b", "d"] and at_once == [0, 1]
