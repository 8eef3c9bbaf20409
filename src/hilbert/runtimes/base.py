"""The seam between the engine and whatever computes.

A runtime turns a `Batch` into rows. It knows its device and its program; it knows no queue, no
request, no clock. `prepare` is host work and may run while another batch is on the device; `run` is
called by one thread at a time (the engine holds the device's turn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from hilbert.core import Batch, BatchOutput, OutputType

Prepared = TypeVar("Prepared")

# Tokens per batch. On two Zen 4 cores 1024 reached 98 % of the rate of 2048 and answered a short query
# beside a large request in half the time (bench/budget.py, bench/LOG.md). The GPU's is TEI's default,
# until bench/gpu.py has run.
CPU_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 16_384

# What the vocabulary-wide rows of one batch may take (docs/decisions/0008).
OUTPUT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a loaded runtime says of itself; shown by `/v1/models` and `hilbert models info`.

    Attributes:
        engine: ``"openvino"``, ``"torch"``, ``"onnx"``, …
        device: ``"cpu"``, ``"cuda:0"``, …
        dtype: what the matrix products run in.
        program: ``"packed"``, ``"padded"``, ``"static"``, ``"shipped"``, ``"sentence-transformers"`` or
            ``"gliner"``.
        reason: why this program, in one sentence.
        dimensions: ``E``.
        outputs: what one pass can return.
        max_batch_tokens: the token budget that was measured to be best on this kind of device.
        num_labels: ``L``, the width of the logits; 0 where there are none.
        token_dimensions: width of the token vectors; 0 where there are none.
        max_batch_sequences: sequences whose outputs fit into `OUTPUT_BYTES`; None where a row is small.
        is_from_cache: whether its graph lay in the cache, or was made now; None where nothing is traced.
    """

    engine: str
    device: str
    dtype: str
    program: str
    reason: str
    dimensions: int
    outputs: frozenset[OutputType]
    max_batch_tokens: int
    num_labels: int = 0
    token_dimensions: int = 0
    max_batch_sequences: int | None = None
    is_from_cache: bool | None = None


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How one model is to be run; every field has the meaning of the flag with its name.

    Attributes:
        engine: ``"auto"``, ``"openvino"``, ``"torch"``, ``"onnx"`` or ``"ctranslate2"``.
            Auto takes torch where a GPU is, else openvino.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` or ``"fp8"``. Auto takes
            16 bits where the device computes in them natively, else float32.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        threads: compute threads; None takes min(affinity, cgroup quota).
        cache_dir: folder of the artifact cache; ``""`` takes the default.
        trust_remote_code: allow the repository's own Python code.
    """

    engine: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    cache_dir: str = ""
    trust_remote_code: bool = False


class Runtime(Protocol[Prepared]):
    """One loaded model on one device."""

    @property
    def info(self) -> RuntimeInfo:
        """What it is and what it can return."""
        ...

    @property
    def num_slots(self) -> int:
        """Batches that may be in flight: 2 prepares the next one while one runs."""
        ...

    def prepare(self, batch: Batch) -> Prepared:
        """Lay a batch out in memory as the program wants it. Thread-safe."""
        ...

    def num_padding_tokens(self, prepared: Prepared) -> int:
        """Tokens that the linear layers see beyond those of the batch."""
        ...

    def run(self, prepared: Prepared) -> BatchOutput:
        """Compute. One thread at a time.

        Raises:
            OutOfMemory: the batch does not fit; the engine will split it.
            WorkerLost: the device is gone for good.
            Exception: anything else fails this batch; the engine isolates the guilty sequence.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back. No call may follow."""
        ...
