"""A client call on its way through the server: request, sequences, batch, output.

Two levels. `EmbedRequest` and `EmbedResult` are what a dialect translates from and to: texts in,
finished vectors out. `Request`, `Sequence`, `Batch` and `Output` are what the engine sees: token ids
in, raw rows out. Everything carries ids, never futures, so that the engine may live in another process.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from hilbert.core.media import Media, MediaRef, Modality
from hilbert.errors import ServingError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Input = str | IntArray | Media | MediaRef
Side = Literal["left", "right"]

NO_IDS: IntArray = np.empty(0, np.int32)
"""The token ids of what has none."""


class OutputType(StrEnum):
    """What one forward pass can return for a sequence; a request may ask for several."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTIVECTOR = "multivector"
    LOGITS = "logits"


DENSE_ONLY: frozenset[OutputType] = frozenset({OutputType.DENSE})


class EmbedRequest(msgspec.Struct, frozen=True):
    """One call for vectors, in the words of no dialect.

    Attributes:
        inputs: texts, arrays of the model's own token ids (taken as they are, special tokens included),
            images or sounds.
        prompt: text put before every text; wins over `prompt_name`.
        prompt_name: one of the model's prompts. ``""`` means none, None means the model's default.
        input_type: what the inputs are for: ``"query"``, ``"document"``, ``"classification"``,
            ``"clustering"`` or ``"similarity"``; picks the model's prompt of that meaning.
        truncate: cut inputs to the model's length; when false a longer input is an error. None leaves it to
            the server, which cuts unless told otherwise.
        truncation_side: where long texts are cut; None means where the model's tokenizer cuts.
        max_tokens: cut texts to so many tokens, special tokens and prompt included.
        chunks: late chunking: the inputs are the chunks of documents, and this says how many each document
            has; each chunk becomes one vector that has seen its whole document. Empty where every input
            stands alone.
        dimensions: keep the first so many numbers, then normalise again.
        normalize: L2-normalise; None follows the model's own chain.
        timeout_seconds: give up after this time; None takes the server's limit.
        outputs: the kinds of vector wanted; all come from one pass.
    """

    inputs: tuple[Input, ...]
    prompt: str | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    truncate: bool | None = True
    truncation_side: Side | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    timeout_seconds: float | None = None
    outputs: frozenset[OutputType] = DENSE_ONLY
    max_tokens: int | None = None
    chunks: tuple[int, ...] = ()


class Timing(msgspec.Struct, frozen=True):
    """Seconds that one request spent in each stage; the maximum over its sequences.

    Loading is that of images and sounds that the request points to, before anything is tokenized.
    """

    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    load_seconds: float = 0.0


class EmbedResult(msgspec.Struct, frozen=True):
    """Finished vectors ``[N, E]`` float32, C-contiguous, in the order of the inputs."""

    vectors: FloatArray
    num_tokens: int
    timing: Timing = Timing()


class Sequence(msgspec.Struct, frozen=True):
    """One thing the model sees.

    Attributes:
        request_id: the request it belongs to.
        index: its place in that request, from 0.
        input_ids: ``[n]`` int32, special tokens included, n ≥ 1; `NO_IDS` for an image or a sound.
        token_type_ids: ``[n]`` int32, or None where all are zero.
        prompt_len: leading tokens that `include_prompt: false` keeps out of the pool.
        features: what the tower of another modality reads, C-contiguous: a picture's ``[C, H, W]``, a
            spectrogram; None for text.
        modality: which tower that is.
        num_feature_tokens: tokens that the tower makes of the features (its patches, its class token).
    """

    request_id: int
    index: int
    input_ids: IntArray
    token_type_ids: IntArray | None = None
    prompt_len: int = 0
    features: FloatArray | None = None
    modality: Modality = Modality.TEXT
    num_feature_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the linear layers will see."""
        return len(self.input_ids) or self.num_feature_tokens


class Request(msgspec.Struct, frozen=True):
    """One call, tokenized. `deadline` is on the clock of the engine that runs it (`time.monotonic`)."""

    id: int
    sequences: tuple[Sequence, ...]
    outputs: frozenset[OutputType] = DENSE_ONLY
    deadline: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(s.num_tokens for s in self.sequences)


class Batch(msgspec.Struct, frozen=True):
    """What the scheduler hands to the runtime: sequences of any requests, in arrival order."""

    sequences: tuple[Sequence, ...]
    outputs: frozenset[OutputType] = DENSE_ONLY

    @property
    def num_tokens(self) -> int:
        """Real tokens, rounding not counted."""
        return sum(s.num_tokens for s in self.sequences)


class SparseVector(msgspec.Struct, frozen=True):
    """The weights of one sequence over the vocabulary, the zeros left out.

    Attributes:
        token_ids: ``[k]`` int32, ascending.
        weights: ``[k]`` float32, not zero.
    """

    token_ids: IntArray
    weights: FloatArray


class BatchOutput(msgspec.Struct, frozen=True):
    """What a runtime returns: row i belongs to sequence i of the batch. What was not asked for is None.

    Attributes:
        dense: ``[B, E]`` float32, before normalisation and before `dimensions`.
        logits: ``[B, L]`` float32, before any activation.
        multivector: B arrays ``[n, E]`` float32, a row per token, before normalisation and masking.
        sparse: B vectors over the vocabulary.
    """

    dense: FloatArray | None = None
    logits: FloatArray | None = None
    multivector: tuple[FloatArray, ...] | None = None
    sparse: tuple[SparseVector, ...] | None = None


class Output(msgspec.Struct, frozen=True):
    """The engine's answer to one request.

    Attributes:
        dense: ``[N, E]`` float32, before normalisation; rows of failed sequences are zero.
        logits: ``[N, L]`` float32; rows of failed sequences are zero.
        multivector: N arrays ``[n, E]``; empty ones for failed sequences.
        sparse: N vectors; empty ones for failed sequences.
        errors: by sequence index; empty when all is well. A request-wide failure has every index.
    """

    request_id: int
    dense: FloatArray | None = None
    logits: FloatArray | None = None
    multivector: tuple[FloatArray, ...] | None = None
    sparse: tuple[SparseVector, ...] | None = None
    errors: dict[int, ServingError] = msgspec.field(default_factory=dict)
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
