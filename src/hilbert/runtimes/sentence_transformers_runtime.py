"""The last resort: sentence-transformers itself, on padded batches of similar length.

For models that can be neither packed nor traced. The tokens still come from our processor, and the
trailing Normalize is still ours, so a request means the same on every runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence
from hilbert.core.request import FloatArray
from hilbert.errors import OutOfMemory, UnsupportedArchitecture
from hilbert.runtimes.base import RuntimeInfo, RuntimeSettings
from hilbert.runtimes.packing import length_groups

IndexArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class _Padded:
    """Rows of one length group, padded, and where they go."""

    members: IndexArray
    features: dict[str, Any]


class SentenceTransformersRuntime:
    """Runs the module chain of a `SentenceTransformer`."""

    num_slots = 1

    def __init__(self, spec: ModelSpec, settings: RuntimeSettings, reason: str) -> None:
        device = None if settings.device == "auto" else settings.device
        try:
            self._model = SentenceTransformer(
                spec.path,
                device=device,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=True,
                model_kwargs={} if settings.dtype == "auto" else {"dtype": settings.dtype},
            ).eval()
        except Exception as error:  # anything: it is the last one asked
            raise UnsupportedArchitecture(
                f"{spec.model_id} cannot be served: {reason}; nor can sentence-transformers load it: {error}"
            ) from error
        self._chain = list(self._model)
        if isinstance(self._chain[-1], Normalize):
            self._chain.pop()
        tokenizer = self._model.tokenizer
        self._pad_id = int(getattr(tokenizer, "pad_token_id", None) or 0)
        self._left = getattr(tokenizer, "padding_side", "right") == "left"
        self.info = RuntimeInfo(
            engine="torch",
            device=str(self._model.device),
            dtype=str(next(self._model.parameters()).dtype).removeprefix("torch."),
            program="sentence-transformers",
            reason=reason,
            dimensions=self._model.get_embedding_dimension() or spec.dimensions,
            outputs=frozenset({OutputType.DENSE}),
            max_batch_tokens=2048 if self._model.device.type == "cpu" else 16_384,
        )

    def prepare(self, batch: Batch) -> list[_Padded]:
        """Pad each length group to its own longest."""
        return [
            _Padded(members, self._pad([batch.sequences[i] for i in members.tolist()]))
            for members in length_groups(batch.sequences)
        ]

    def run(self, prepared: list[_Padded]) -> BatchOutput:
        """See `Runtime.run`."""
        dense: FloatArray = np.empty(
            (sum(len(p.members) for p in prepared), self.info.dimensions), np.float32
        )
        try:
            with torch.inference_mode():
                for padded in prepared:
                    features = {
                        k: v.to(self._model.device) if isinstance(v, torch.Tensor) else v
                        for k, v in padded.features.items()
                    }
                    for module in self._chain:
                        features = module(features)
                    dense[padded.members] = features["sentence_embedding"].float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error).splitlines()[0]) from error
        return BatchOutput(dense=dense)

    def close(self) -> None:
        """Release the model."""
        del self._model
        del self._chain

    def _pad(self, sequences: list[Sequence]) -> dict[str, Any]:
        width = max(s.num_tokens for s in sequences)
        ids = np.full((len(sequences), width), self._pad_id, np.int64)
        types = np.zeros_like(ids)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            n = sequence.num_tokens
            span = slice(width - n, width) if self._left else slice(0, n)
            ids[row, span] = sequence.input_ids
            mask[row, span] = 1
            if sequence.token_type_ids is not None:
                types[row, span] = sequence.token_type_ids
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
        }
        if "token_type_ids" in getattr(self._model.tokenizer, "model_input_names", ()):
            features["token_type_ids"] = torch.from_numpy(types)
        if sequences[0].prompt_len:
            features["prompt_length"] = sequences[0].prompt_len
        return features
