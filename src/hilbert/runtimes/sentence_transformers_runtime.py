"""The last resort: sentence-transformers itself, on batches of equal length.

For models that can be neither packed nor traced, whatever they are loaded as: embedders, cross-encoders,
sparse and late-interaction encoders. Sequences of equal length run together, so that there is no padding
that a module unknown to us (a convolution, say) might let into a vector. The tokens still come from our
processor, and the trailing Normalize and the choice of token vectors are still ours, so a request means the
same on every runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.base.modules import Router
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.multi_vector_encoder.modules.token_pooling import BaseTokenPooling
from sentence_transformers.sentence_transformer.modules import Normalize

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence, SparseVector
from hilbert.core.request import FloatArray
from hilbert.errors import InvalidInput, UnsupportedArchitecture, in_short
from hilbert.programs.choose import unseen_id
from hilbert.runtimes.base import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.memory import give_device_memory_back
from hilbert.runtimes.outputs import max_batch_sequences
from hilbert.runtimes.packing import IndexArray, without_trailing
from hilbert.runtimes.torch_device import bound_threads, device_errors

# What each class leaves behind its last module, and what that is served as.
_RESULTS = {
    "SentenceTransformer": ("sentence_embedding", OutputType.DENSE),
    "CrossEncoder": ("scores", OutputType.LOGITS),
    "SparseEncoder": ("sentence_embedding", OutputType.SPARSE),
    "MultiVectorEncoder": ("token_embeddings", OutputType.MULTIVECTOR),
}


@dataclass(slots=True)
class _Stack:
    """Sequences of one length, behind prompts of one length, and where their rows go."""

    members: IndexArray
    features: dict[str, Any]


class SentenceTransformersRuntime:
    """Runs the module chain of the class that the repository is made for."""

    num_slots = 1

    def __init__(self, spec: ModelSpec, settings: RuntimeSettings, reason: str) -> None:
        if settings.dtype in ("int8", "fp8"):
            raise InvalidInput(
                f"dtype {settings.dtype} is not served for {spec.model_id}, which only sentence-transformers "
                f"can run ({reason}); take --dtype float32 or bfloat16"
            )
        device = None if settings.device == "auto" else settings.device
        try:
            self._model = getattr(sentence_transformers, spec.loaded_as)(
                spec.path,
                device=device,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=True,
                model_kwargs={} if settings.dtype == "auto" else {"dtype": settings.dtype},
            ).eval()
        except Exception as error:  # anything: it is the last one asked
            if spec.remote_code and not settings.trust_remote_code:
                raise UnsupportedArchitecture(
                    f"{spec.model_id} brings Python code of its own ({reason}); "
                    "if you trust it, allow it with --trust-remote-code"
                ) from error
            raise UnsupportedArchitecture(
                f"{spec.model_id} cannot be served: {reason}; "
                f"nor can sentence-transformers load it: {in_short(error)}"
            ) from error
        bound_threads(self._model.device.type, settings)
        self._chain = [module for module in self._model if not isinstance(module, MultiVectorMask)]
        _refuse_what_needs_a_side(spec, list(self._model))
        self._result, self._kind = _RESULTS[spec.loaded_as]
        if self._kind is OutputType.DENSE and isinstance(self._chain[-1], Normalize):
            self._chain.pop()
        names = getattr(self._model.tokenizer, "model_input_names", ())
        self._takes_types = "token_type_ids" in names
        self._unseen_id = unseen_id(spec)
        is_retriever = getattr(self._chain[0], "transformer_task", "") == "retrieval"
        # sentence-transformers calls the processor itself, which for ColModernVBert leaves out the prompt.
        self._process_images = self._chain[0].processor.process_images if is_retriever else None
        # A first module that the repository brings may want more than token ids, and take more than texts,
        # than sentence-transformers knows of (jina-clip: which inputs are images).
        self._is_own = not type(self._chain[0]).__module__.startswith("sentence_transformers.")
        self._has_template = spec.chat is not None and not is_retriever
        self._is_language_model = any(isinstance(module, LogitScore) for module in self._chain)
        is_scorer = self._kind is OutputType.LOGITS
        size = (
            0 if is_scorer else self._model.get_embedding_dimension() or spec.dimensions or self._measured()
        )
        self.info = RuntimeInfo(
            engine="torch",
            device=str(self._model.device),
            dtype=str(next(self._model.parameters()).dtype).removeprefix("torch."),
            program="sentence-transformers",
            reason=reason,
            dimensions=size,
            outputs=frozenset({self._kind}),
            max_batch_tokens=CPU_BATCH_TOKENS if self._model.device.type == "cpu" else GPU_BATCH_TOKENS,
            num_labels=self._model.num_labels if is_scorer else 0,
            token_dimensions=size if self._kind is OutputType.MULTIVECTOR else 0,
            max_batch_sequences=(
                max_batch_sequences(["vocabulary"], size) if self._kind is OutputType.SPARSE else None
            ),
        )

    def prepare(self, batch: Batch) -> list[_Stack]:
        """Stack texts that differ in nothing but their tokens; images go alone, as their sizes differ."""
        sequences = batch.sequences
        stacks = [
            _Stack(np.array([i]), self._seen(s.features))
            for i, s in enumerate(sequences)
            if s.features is not None
        ]
        texts = np.array([i for i, s in enumerate(sequences) if s.features is None], np.int64)
        if not len(texts):
            return stacks
        sizes = np.array([(sequences[i].num_tokens, sequences[i].prompt_len) for i in texts.tolist()])
        order = np.lexsort(sizes.T[::-1])
        borders = np.flatnonzero(np.diff(sizes[order], axis=0).any(axis=1)) + 1
        for members in np.split(texts[order], borders):
            stacks.append(_Stack(members, self._features([sequences[i] for i in members.tolist()])))
        return stacks

    def num_padding_tokens(self, prepared: list[_Stack]) -> int:
        """None: texts of one length make a stack."""
        return 0

    def run(self, prepared: list[_Stack]) -> BatchOutput:
        """See `Runtime.run`."""
        rows: dict[int, FloatArray] = {}
        with device_errors(), torch.inference_mode():
            for stack in prepared:
                rows |= zip(stack.members.tolist(), self._rows(stack.features), strict=True)
        ordered = [rows[i] for i in range(len(rows))]
        if self._kind is OutputType.MULTIVECTOR:
            return BatchOutput(multivector=tuple(ordered))
        if self._kind is OutputType.SPARSE:
            return BatchOutput(sparse=tuple(_without_zeros(row) for row in ordered))
        stacked: FloatArray = np.stack(ordered)
        is_dense = self._kind is OutputType.DENSE
        return BatchOutput(dense=stacked) if is_dense else BatchOutput(logits=stacked)

    def close(self) -> None:
        """Release the model and the device's cached memory."""
        del self._model
        del self._chain
        give_device_memory_back()

    def _seen(self, pixels: FloatArray) -> dict[str, Any]:
        """What the model's own processor makes of an image, ``[3, H, W]`` from 0 to 255."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8))
        if self._process_images is not None:
            return {k: v for k, v in self._process_images([image]).items() if k != "labels"}
        return self._own_features([image]) if self._is_own else dict(self._model.preprocess([image]))

    def _measured(self) -> int:
        """Numbers in a vector, where nothing says it but a vector."""
        with torch.inference_mode():
            return int(self._rows(dict(self._model.preprocess(["a"]))).shape[-1])

    def _own_features(self, inputs: list[Any]) -> dict[str, Any]:
        """What the repository's own first module makes of texts or images."""
        module = self._chain[0]
        return dict((getattr(module, "preprocess", None) or module.tokenize)(inputs))

    def _rows(self, features: dict[str, Any]) -> FloatArray:
        """``[B, …]`` float32: what the chain makes of one stack, on the host."""
        features = {
            k: v.to(self._model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()
        }
        for module in self._chain:
            features = module(features)
        rows: FloatArray = features[self._result].float().cpu().numpy()
        return rows.reshape(len(rows), -1) if self._kind is OutputType.LOGITS else rows

    def _features(self, sequences: list[Sequence]) -> dict[str, Any]:
        ids = torch.from_numpy(np.stack([s.input_ids for s in sequences]).astype(np.int64))
        mask = torch.ones_like(ids)
        for row, seen in zip(mask, without_trailing(tuple(sequences), self._unseen_id), strict=True):
            row[seen.num_tokens :] = 0
        features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self._is_language_model:
            features["logits_to_keep"] = 1
        if self._has_template:
            features["modality"] = "message"
        if self._takes_types:
            blank = np.zeros(ids.shape[1], np.int32)
            types = [blank if s.token_type_ids is None else s.token_type_ids for s in sequences]
            features["token_type_ids"] = torch.from_numpy(np.stack(types).astype(np.int64))
        if sequences[0].prompt_len:
            features["prompt_length"] = sequences[0].prompt_len
        if self._is_own:
            theirs = self._own_features(["a"] * len(sequences))
            return theirs | {key: value for key, value in features.items() if key in theirs}
        return features


def _refuse_what_needs_a_side(spec: ModelSpec, chain: list[Any]) -> None:
    """A sequence does not say whether it is a query or a document; some modules must know.

    Raises:
        UnsupportedArchitecture: the model has such a module.
    """
    for module in chain:
        if isinstance(module, MultiVectorMask) and (
            module.keep_only_token_ids or (module.skiplist_tasks and "document" not in module.skiplist_tasks)
        ):
            raise UnsupportedArchitecture(
                f"{spec.model_id}: it keeps the token vectors of some ids only, or skips none of documents"
            )
        if isinstance(module, BaseTokenPooling):
            raise UnsupportedArchitecture(f"{spec.model_id}: it merges the token vectors of documents")
        if isinstance(module, Router) and _route(module, "query") != _route(module, "document"):
            raise UnsupportedArchitecture(
                f"{spec.model_id}: its router sends queries and documents through different modules"
            )
    if spec.loaded_as == "MultiVectorEncoder" and spec.multivector is None and spec.chat is None:
        raise UnsupportedArchitecture(
            f"{spec.model_id}: how it tells queries from documents is not known: {spec.reason}"
        )


def _route(router: Any, task: str) -> Any:
    try:
        return router._resolve_route(task=task, modality="text")
    except ValueError:  # no such route
        return router.default_route


def _without_zeros(row: FloatArray) -> SparseVector:
    token_ids = np.flatnonzero(row)
    return SparseVector(token_ids.astype(np.int32), row[token_ids].copy())
