"""Encoders that take padded ids and end in token vectors or logits: shipped graphs, CTranslate2.

Decides how such an encoder is fed (one call per length group) and pools what it returns. Each library that
runs one is a few lines behind `Encoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hilbert.core import (
    Batch,
    BatchOutput,
    ClassifierModule,
    LogitScoreModule,
    ModelSpec,
    OutputType,
    Sequence,
    TokenVectorsModule,
)
from hilbert.core.request import FloatArray
from hilbert.errors import UnsupportedArchitecture
from hilbert.programs.choose import has_other_end, token_dimensions, trailing_id
from hilbert.runtimes.base import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, RuntimeInfo
from hilbert.runtimes.packing import IndexArray, length_groups
from hilbert.runtimes.pooling import PoolingChain

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
LOGITS = "logits"


class Encoder(Protocol):
    """One model in one library.

    Attributes:
        engine, device, dtype: as in `RuntimeInfo`.
        inputs: what it takes, some of `INPUTS`.
        outputs: what it returns, by name.
    """

    engine: str
    device: str
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def encode(self, arrays: dict[str, np.ndarray], output: str) -> FloatArray:
        """Run on ``[B, S]`` int64 arrays and return one output, ``[B, S, D]`` or ``[B, L]``."""
        ...

    def close(self) -> None:
        """Release its memory."""
        ...


@dataclass(frozen=True, slots=True)
class _Padded:
    """One length group: places of its rows, and the arrays ``[B, S]`` that the encoder reads."""

    members: IndexArray
    arrays: dict[str, np.ndarray]
    lengths: np.ndarray
    skips: np.ndarray


@dataclass(frozen=True, slots=True)
class _Prepared:
    outputs: frozenset[OutputType]
    groups: list[_Padded]


class PaddedRuntime:
    """Pools, or passes on, what an encoder returns."""

    num_slots = 2

    def __init__(self, spec: ModelSpec, encoder: Encoder, program: str, reason: str) -> None:
        self._encoder = encoder
        kind = _output_of(spec)
        found = [name for name in encoder.outputs if name in kind]
        unknown = set(encoder.inputs) - INPUTS
        if unknown or not found:
            raise UnsupportedArchitecture(
                f"{spec.model_id}: its graph takes {sorted(encoder.inputs)} and returns "
                f"{sorted(encoder.outputs)}; needed are some of {sorted(INPUTS)} in and one of "
                f"{', '.join(kind)} out; take --engine openvino or torch"
            )
        self._output = found[0]
        self._pooling = None if self._output == LOGITS else PoolingChain(spec)
        outputs = {OutputType.LOGITS} if self._pooling is None else {OutputType.DENSE}
        if self._pooling is not None and _returns_token_vectors(spec):
            outputs.add(OutputType.MULTIVECTOR)
        self.info = RuntimeInfo(
            engine=encoder.engine,
            device=encoder.device,
            dtype=encoder.dtype,
            program=program,
            reason=reason,
            dimensions=spec.dimensions,
            outputs=frozenset(outputs),
            max_batch_tokens=CPU_BATCH_TOKENS if encoder.device == "cpu" else GPU_BATCH_TOKENS,
            num_labels=len(spec.labels),
            token_dimensions=token_dimensions(spec) if OutputType.MULTIVECTOR in outputs else 0,
        )

    def prepare(self, batch: Batch) -> _Prepared:
        """Pad each length group to its own longest."""
        groups = [
            _pad([batch.sequences[i] for i in members.tolist()], members)
            for members in length_groups(batch.sequences)
        ]
        return _Prepared(batch.outputs, groups)

    def num_padding_tokens(self, prepared: _Prepared) -> int:
        """See `Runtime.num_padding_tokens`."""
        return sum([g.arrays["input_ids"].size - int(g.lengths.sum()) for g in prepared.groups])

    def run(self, prepared: _Prepared) -> BatchOutput:
        """See `Runtime.run`."""
        num_sequences = sum(len(group.members) for group in prepared.groups)
        width = self.info.num_labels if self._pooling is None else self.info.dimensions
        rows = np.empty((num_sequences, width), np.float32)
        vectors: list[FloatArray] = [rows] * num_sequences
        for group in prepared.groups:
            found = self._encoder.encode({n: group.arrays[n] for n in self._encoder.inputs}, self._output)
            if self._pooling is None:
                rows[group.members] = found
                continue
            if OutputType.DENSE in prepared.outputs:
                mask = group.arrays["attention_mask"].astype(bool)
                rows[group.members] = self._pooling(found, mask, group.skips)
            if OutputType.MULTIVECTOR in prepared.outputs:
                for place, hidden, length in zip(group.members.tolist(), found, group.lengths, strict=True):
                    vectors[place] = np.array(hidden[:length], np.float32)
        return BatchOutput(
            dense=rows if OutputType.DENSE in prepared.outputs else None,
            logits=rows if OutputType.LOGITS in prepared.outputs else None,
            multivector=tuple(vectors) if OutputType.MULTIVECTOR in prepared.outputs else None,
        )

    def close(self) -> None:
        """Release the encoder."""
        self._encoder.close()


def _returns_token_vectors(spec: ModelSpec) -> bool:
    """Whether a model's token vectors are its hidden states as they are."""
    return not any(isinstance(module, TokenVectorsModule) for module in spec.modules)


def _output_of(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the graph's output that this model is served from.

    Raises:
        UnsupportedArchitecture: it needs a head that such graphs do not hold.
    """
    if any(isinstance(module, LogitScoreModule) for module in spec.modules) or (
        spec.pooling is not None and has_other_end(spec)
    ):
        raise UnsupportedArchitecture(f"{spec.model_id}: a shipped graph does not hold its head")
    if any(isinstance(module, ClassifierModule) for module in spec.modules):
        if trailing_id(spec) is not None:
            raise UnsupportedArchitecture(
                f"{spec.model_id}: a padded graph of a causal classifier reads the padding; "
                "take --engine openvino or torch"
            )
        return (LOGITS,)
    return TOKEN_OUTPUTS


def _pad(sequences: list[Sequence], members: IndexArray) -> _Padded:
    lengths = np.array([s.num_tokens for s in sequences])
    ids = np.zeros((len(sequences), int(lengths.max())), np.int64)
    types, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : sequence.num_tokens] = sequence.input_ids
        mask[row, : sequence.num_tokens] = 1
        if sequence.token_type_ids is not None:
            types[row, : sequence.num_tokens] = sequence.token_type_ids
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "position_ids": places}
    return _Padded(members, arrays, lengths, np.array([s.prompt_len for s in sequences]))
