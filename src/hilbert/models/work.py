"""What differs between the tasks: how a call becomes sequences, and how rows become its result.

Everything else (admission, deadline, engine, metrics) is one path, in `served.py`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from hilbert.core import Output, OutputType, Sequence, Timing
from hilbert.errors import ServingError

Result = TypeVar("Result", covariant=True)


class Work(Protocol[Result]):
    """One call, as a served model carries it out. Its methods are called in this order."""

    @property
    def outputs(self) -> frozenset[OutputType]:
        """What the engine is asked for."""
        ...

    @property
    def num_inputs(self) -> int:
        """Inputs that the caller sent, for the metrics."""
        ...

    @property
    def timeout_seconds(self) -> float | None:
        """The caller's own time limit."""
        ...

    def check(self) -> None:
        """Refuse what the model cannot do.

        Raises:
            ClientError: it cannot.
        """
        ...

    def estimate_tokens(self) -> int:
        """A guess, for admission."""
        ...

    def is_small(self) -> bool:
        """Whether tokenizing costs less than handing it to a thread."""
        ...

    def tokenize(self, request_id: int) -> tuple[Sequence, ...]:
        """The sequences of the call; some may be empty. May run in a thread.

        Raises:
            ClientError: an input is at fault.
        """
        ...

    def finish(self, output: Output, num_tokens: int, timing: Timing) -> Result:
        """The result; `output` has a row for each sequence, in their order. May run in a thread."""
        ...

    def name(self, error: ServingError) -> ServingError:
        """An error about ``input[i]``, sequence i, in the words of the call."""
        ...
