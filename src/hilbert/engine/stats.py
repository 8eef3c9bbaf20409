"""What the engine tells about a batch when it is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One batch, successful or not.

    Attributes:
        num_sequences: its sequences.
        num_tokens: their tokens, rounding not counted.
        queue_seconds: the longest that a request in it had waited for its batch.
        run_seconds: on the device.
        is_retry: it is a part of a batch that failed.
        error: class name of what was raised; ``""`` if nothing was.
        num_queued_tokens: tokens that wait in the queue after it.
        num_queued_sequences: sequences likewise.
        num_padding_tokens: tokens that were computed only to fill it up.
    """

    num_sequences: int
    num_tokens: int
    queue_seconds: float
    run_seconds: float
    is_retry: bool
    error: str
    num_queued_tokens: int
    num_queued_sequences: int
    num_padding_tokens: int = 0
