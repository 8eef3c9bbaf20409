"""`python dangerous.py serve …`: the real server, whose runtime and tokenizer fail on demand.

Only what computes and what tokenizes are wrapped; front, worker, supervisor and HTTP are those that everybody
runs. What fails is told by token ids, which the vocabulary of the tiny models has for punctuation.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

RAISE, PANIC, ALLOCATE, DOES_NOT_FIT, NAN, HANG, SEGFAULT, SLOW = range(5, 13)
SLOW_SECONDS = 0.3
SECONDS_PER_BATCH = float(os.environ.get("CHAOS_SECONDS_PER_BATCH", "0"))
# Texts with these never become tokens.
BROKEN, PANICKING = "☠", "☢"


_CLOCK = os.environ.get("CHAOS_CLOCK", "")


def jump_with(file: Path) -> None:
    """Let the wall clock of this process be off by the seconds that a file says; 0 where it says nothing."""
    true_time = time.time

    def wall_clock() -> float:
        try:
            return true_time() + float(file.read_text())
        except (OSError, ValueError):
            return true_time()

    time.time = wall_clock


if _CLOCK:  # before anything has taken `time.time` by name, in the front and in the worker
    jump_with(Path(_CLOCK))


class NativePanic(BaseException):
    """As pyo3 raises it when a Rust library panics: no `Exception`."""


class DangerousRuntime:
    """A runtime, and tokens that bring it down."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.info = inner.info
        self.num_slots = inner.num_slots

    def prepare(self, batch: Any) -> Any:
        return batch, self._inner.prepare(batch)

    def num_padding_tokens(self, prepared: Any) -> int:
        return self._inner.num_padding_tokens(prepared[1])

    def run(self, prepared: Any) -> Any:
        batch, inner = prepared
        ids = {int(i) for sequence in batch.sequences for i in sequence.input_ids}
        time.sleep(SLOW_SECONDS if SLOW in ids else SECONDS_PER_BATCH)
        if RAISE in ids:
            raise ValueError("the secret insides of a runtime")
        if PANIC in ids:
            raise NativePanic("a library panicked")
        if ALLOCATE in ids:
            np.ones(1 << 46, np.uint8)
        if DOES_NOT_FIT in ids:
            from hilbert.errors import OutOfMemory

            raise OutOfMemory(f"a batch of {batch.num_tokens} tokens does not fit the device")
        if HANG in ids:
            threading.Event().wait()
        if SEGFAULT in ids:
            ctypes.string_at(0)
        output = self._inner.run(inner)
        for row, sequence in zip(output.dense, batch.sequences, strict=True):
            if NAN in sequence.input_ids:
                row[-1] = np.nan
        return output

    def close(self) -> None:
        self._inner.close()


def load(spec: Any, settings: Any) -> DangerousRuntime:
    """In the worker, instead of `runtimes.load_runtime`."""
    from hilbert.runtimes import load_runtime

    return DangerousRuntime(load_runtime(spec, settings))


def main() -> int:
    """In the front."""
    from hilbert.processors.text import TextProcessor
    from hilbert.worker import spawn

    encode, prestart = TextProcessor.encode, spawn.prestart

    def encode_or_fail(self: TextProcessor, request: Any, request_id: int) -> Any:
        words = " ".join(text for text in request.inputs if isinstance(text, str))
        if BROKEN in words:
            raise RuntimeError("the secret insides of a tokenizer")
        if PANICKING in words:
            raise NativePanic("the secret insides of a tokenizer")
        return encode(self, request, request_id)

    TextProcessor.encode = encode_or_fail  # type: ignore[method-assign]
    spawn.prestart = lambda factory=None, preload=(): prestart("dangerous:load", preload)
    folder = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    from hilbert.cli import main as hilbert

    return hilbert()


if __name__ == "__main__":
    sys.exit(main())
