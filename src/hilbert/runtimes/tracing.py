"""The child process that traces models, so that torch and transformers never enter the process that serves.

Importing them takes longer than tracing a small model, so one child may trace several models, one after the
other. A model whose trace brings the child down fails alone: the next one gets a new child. So does a model
that brings code of its own, which must not see the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import msgspec

from hilbert.core import ModelSpec
from hilbert.errors import (
    MissingDependency,
    ModelError,
    UnsafeWeights,
    UnsupportedArchitecture,
    WeightMismatch,
)
from hilbert.programs.choose import Target
from hilbert.programs.export import ExportOrder
from hilbert.runtimes.packing import NUM_GROUPS

_ERRORS: dict[str, type[ModelError]] = {
    e.__name__: e for e in (UnsupportedArchitecture, WeightMismatch, UnsafeWeights, MissingDependency)
}
_shared: ContextVar[Tracer | None] = ContextVar("shared_tracer", default=None)


def trace(
    spec: ModelSpec, dtype: str, folder: Path, trust_remote_code: bool, target: Target = "openvino"
) -> dict[str, Any]:
    """Write a model's graph into a folder, in the child of `one_child` or in one of its own.

    Returns:
        The program's description for the manifest.

    Raises:
        ModelError: it cannot be loaded or traced, or the child died of it.
    """
    order = ExportOrder(spec, str(folder), dtype, NUM_GROUPS, trust_remote_code, target)
    tracer = _shared.get() or Tracer()
    # Without `one_child` a child for this one is as good as a shared one.
    is_alone = _shared.get() is None or (spec.remote_code and trust_remote_code)
    return tracer.trace(order, is_alone=is_alone)


@contextmanager
def one_child(tracer: Tracer | None = None) -> Iterator[Tracer]:
    """Inside, in this context, `trace` uses one child for all models. A tracer that is given stays open."""
    shared = tracer or Tracer()
    token = _shared.set(shared)
    try:
        yield shared
    finally:
        _shared.reset(token)
        if tracer is None:
            shared.close()


class Tracer:
    """A child process that is started by the first order, and again after it was closed or died.

    It dies with the thread that gave it its first order, so that thread must live as long as the tracer is
    used. Thread-safe: orders wait for each other.

    Args:
        has_more: asked after each trace, whether another one may follow. Otherwise the child ends, as its
            memory is worth more than the start of the next one.
    """

    def __init__(self, has_more: Callable[[], bool] = lambda: True) -> None:
        self._has_more = has_more
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def trace(self, order: ExportOrder, *, is_alone: bool = False) -> dict[str, Any]:
        """Have one model traced.

        Args:
            order: which, and where to.
            is_alone: in a child that sees no other model.

        Raises:
            ModelError: what the child says, or that it ended.
        """
        if is_alone:
            with Tracer() as own:
                return own.trace(order)
        with self._lock:
            answer = self._ask(msgspec.json.encode(order))
            if answer is None:
                raise ModelError(f"{order.spec.model_id}: tracing ended with {self._end()}")
            if not self._has_more():
                self._stop()
        if "error" in answer:
            raise _ERRORS.get(answer["error"], ModelError)(answer["message"])
        program: dict[str, Any] = answer["program"]
        return program

    def close(self) -> None:
        """End the child and give its memory back."""
        with self._lock:
            if self._child is not None:
                self._stop()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, order: bytes) -> dict[str, Any] | None:
        """The child's answer; None when it has died."""
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(order + b"\n")
            self._child.stdin.flush()
            answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        except (OSError, ValueError):
            return None
        return answer

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by _end
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hilbert.programs.export", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def _stop(self) -> None:
        assert self._child is not None
        self._child.kill()  # it waits for orders; taking torch down properly would take a second
        self._end()

    def _end(self) -> str:
        """Wait for the child, which is dead or dying; how it ended, and its last words."""
        child, errors = self._child, self._errors
        assert child is not None and errors is not None
        child.communicate()
        errors.seek(0)
        tail = errors.read().decode(errors="replace").strip().splitlines()[-3:]
        errors.close()
        self._child = self._errors = None
        return f"status {child.returncode}: {' | '.join(tail) or 'nothing'}"
