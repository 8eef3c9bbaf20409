"""The last resort: sentence-transformers itself, on batches of equal length.

For models that can be neither packed nor traced. Sequences of equal length run together, so that there is
no padding that a module unknown to us (a convolution, say) might let into a vector. The tokens still come
from our processor, and the trailing Normalize is still ours, so a request means the same on every runtime.
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
from hilbert.errors import InvalidInput, OutOfMemory, UnsupportedArchitecture
from hilbert.runtimes.base import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.packing import IndexArray


@dataclass(slots=True)
class _Stack:
    """Sequences of one length, and where their rows go."""

    members: IndexArray
    features: dict[str, Any]


class SentenceTransformersRuntime:
    """Runs the module chain of a `SentenceTransformer`."""

    num_slots = 1

    def __init__(self, spec: ModelSpec, settings: RuntimeSettings, reason: str) -> None:
        if settings.dtype in ("int8", "fp8"):
            raise InvalidInput(
                f"dtype {settings.dtype} is not served for {spec.model_id}, which only sentence-transformers "
                f"can run ({reason}); take --dtype float32 or bfloat16"
            )
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
        names = getattr(self._model.tokenizer, "model_input_names", ())
        self._takes_types = "token_type_ids" in names
        self.info = RuntimeInfo(
            engine="torch",
            device=str(self._model.device),
            dtype=str(next(self._model.parameters()).dtype).removeprefix("torch."),
            program="sentence-transformers",
            reason=reason,
            dimensions=self._model.get_embedding_dimension() or spec.dimensions,
            outputs=frozenset({OutputType.DENSE}),
            max_batch_tokens=CPU_BATCH_TOKENS if self._model.device.type == "cpu" else GPU_BATCH_TOKENS,
        )

    def prepare(self, batch: Batch) -> list[_Stack]:
        """Stack the texts of each length; images go alone, as their sizes differ."""
        sequences = batch.sequences
        stacks = [
            _Stack(np.array([i]), self._seen(s.features))
            for i, s in enumerate(sequences)
            if s.features is not None
        ]
        texts = np.array([i for i, s in enumerate(sequences) if s.features is None], np.int64)
        if not len(texts):
            return stacks
        lengths = np.array([sequences[i].num_tokens for i in texts.tolist()])
        order = np.argsort(lengths, kind="stable")
        for members in np.split(texts[order], np.flatnonzero(np.diff(lengths[order])) + 1):
            stacks.append(_Stack(members, self._features([sequences[i] for i in members.tolist()])))
        return stacks

    def run(self, prepared: list[_Stack]) -> BatchOutput:
        """See `Runtime.run`."""
        dense: FloatArray = np.empty(
            (sum(len(p.members) for p in prepared), self.info.dimensions), np.float32
        )
        try:
            with torch.inference_mode():
                for stack in prepared:
                    features = {
                        k: v.to(self._model.device) if isinstance(v, torch.Tensor) else v
                        for k, v in stack.features.items()
                    }
                    for module in self._chain:
                        features = module(features)
                    dense[stack.members] = features["sentence_embedding"].float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error).splitlines()[0]) from error
        return BatchOutput(dense=dense)

    def close(self) -> None:
        """Release the model."""
        del self._model
        del self._chain

    def _seen(self, pixels: FloatArray) -> dict[str, Any]:
        """What the model's own processor makes of an image, ``[3, H, W]`` from 0 to 255."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8))
        return dict(self._model.preprocess([image]))

    def _features(self, sequences: list[Sequence]) -> dict[str, Any]:
        ids = torch.from_numpy(np.stack([s.input_ids for s in sequences]).astype(np.int64))
        features: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._takes_types:
            blank = np.zeros(ids.shape[1], np.int32)
            types = [blank if s.token_type_ids is None else s.token_type_ids for s in sequences]
            features["token_type_ids"] = torch.from_numpy(np.stack(types).astype(np.int64))
        if sequences[0].prompt_len:
            features["prompt_length"] = sequences[0].prompt_len
        return features
