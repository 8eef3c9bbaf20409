"""Graphs that a repository ships itself (``openvino/``, ``onnx/``): served without torch.

Taken when there is no artifact and nothing installed to make one. Such a graph is padded and ends in
token vectors, so pooling and what follows it run here, in numpy float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilbert.config.machine import available_threads
from hilbert.core import (
    Batch,
    BatchOutput,
    DenseModule,
    LayerNormModule,
    ModelSpec,
    NormalizeModule,
    OutputType,
    PoolingMode,
    Sequence,
)
from hilbert.core.request import FloatArray
from hilbert.errors import UnsupportedArchitecture, WeightMismatch
from hilbert.runtimes import ov
from hilbert.runtimes.base import CPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.packing import IndexArray, length_groups

_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}


@dataclass(slots=True)
class _Padded:
    """One length group: places of its rows, and the arrays ``[B, S]`` that the graph reads."""

    members: IndexArray
    arrays: dict[str, np.ndarray]
    skips: np.ndarray


class ShippedRuntime:
    """A padded graph from the repository, on the CPU."""

    num_slots = 2

    def __init__(self, spec: ModelSpec, settings: RuntimeSettings, dtype: str) -> None:
        name = spec.graph_files[0]
        model = ov.read_graph(Path(spec.path) / name)
        self._inputs = [port.get_any_name() for port in model.inputs]
        unknown = set(self._inputs) - _INPUTS
        outputs = [(i, port.get_names()) for i, port in enumerate(model.outputs)]
        places = [i for i, names in outputs if names & set(_TOKEN_OUTPUTS)]
        if unknown or not places:
            raise UnsupportedArchitecture(
                f"{spec.model_id}: {name} takes {sorted(self._inputs)} and returns "
                f"{sorted(n for _, names in outputs for n in names)}; needed are {sorted(_INPUTS)} in and "
                f"one of {', '.join(_TOKEN_OUTPUTS)} out"
            )
        if spec.pooling is None:
            raise UnsupportedArchitecture(f"{spec.model_id}: it has no pooling module")
        self._output = places[0]
        self._pooling = spec.pooling
        self._chain = [_Head(spec, m) for m in spec.modules if m is not spec.pooling]
        precision = "bf16" if dtype == "bfloat16" else "f32"
        self._compiled = ov.compile_model(
            model,
            {
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": settings.threads or available_threads(),
            },
        )
        self._request = self._compiled.create_infer_request()
        self.info = RuntimeInfo(
            engine="openvino",
            device="cpu",
            dtype=dtype,
            program="shipped",
            reason=f"torch is not installed, and the repository ships {name}",
            dimensions=spec.dimensions,
            outputs=frozenset({OutputType.DENSE}),
            max_batch_tokens=CPU_BATCH_TOKENS,
        )
        probe = self.prepare(Batch((Sequence(0, 0, np.zeros(1, np.int32)),)))[0]
        ov.first_inference(self._request, [probe.arrays[n] for n in self._inputs])

    def prepare(self, batch: Batch) -> list[_Padded]:
        """Pad each length group to its own longest."""
        return [
            _pad([batch.sequences[i] for i in members.tolist()], members)
            for members in length_groups(batch.sequences)
        ]

    def run(self, prepared: list[_Padded]) -> BatchOutput:
        """See `Runtime.run`."""
        rows = np.empty((sum(len(p.members) for p in prepared), self.info.dimensions), np.float32)
        for padded in prepared:
            self._request.infer([padded.arrays[n] for n in self._inputs], share_inputs=True)
            hidden: FloatArray = self._request.get_output_tensor(self._output).data
            mask = padded.arrays["attention_mask"].astype(bool)
            if not self._pooling.include_prompt:
                mask &= np.arange(mask.shape[1]) >= padded.skips[:, None]
            pooled = np.concatenate([_pool(hidden, mask, mode) for mode in self._pooling.modes], axis=1)
            for head in self._chain:
                pooled = head(pooled)
            rows[padded.members] = pooled
        return BatchOutput(dense=rows)

    def close(self) -> None:
        """Release the graph."""
        del self._request
        del self._compiled


def _pad(sequences: list[Sequence], members: IndexArray) -> _Padded:
    width = max(s.num_tokens for s in sequences)
    ids = np.zeros((len(sequences), width), np.int64)
    types, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : sequence.num_tokens] = sequence.input_ids
        mask[row, : sequence.num_tokens] = 1
        if sequence.token_type_ids is not None:
            types[row, : sequence.num_tokens] = sequence.token_type_ids
    places = np.broadcast_to(np.arange(width), ids.shape).copy()
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "position_ids": places}
    return _Padded(members, arrays, np.array([s.prompt_len for s in sequences]))


def _pool(hidden: Any, mask: np.ndarray, mode: PoolingMode) -> Any:
    """``[B, S, D]`` and a mask ``[B, S]`` → ``[B, D]`` float32."""
    if mode is PoolingMode.CLS:
        return hidden[:, 0]
    if mode is PoolingMode.LAST:
        last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        return hidden[np.arange(len(hidden)), last]
    if mode is PoolingMode.MAX:
        return np.where(mask[..., None], hidden, -np.inf).max(axis=1).astype(np.float32)
    weights = mask.astype(np.float32)
    if mode is PoolingMode.WEIGHTED_MEAN:
        weights *= np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    total = np.einsum("bsd,bs->bd", hidden, weights)
    count = weights.sum(axis=1, keepdims=True)
    mean: FloatArray = total / (np.sqrt(count) if mode is PoolingMode.MEAN_SQRT else count)
    return mean


class _Head:
    """A module behind the pooling, in numpy."""

    def __init__(self, spec: ModelSpec, module: Any) -> None:
        self._module = module
        if isinstance(module, NormalizeModule):
            return
        if not isinstance(module, DenseModule | LayerNormModule):
            raise UnsupportedArchitecture(f"{spec.model_id}: no head for {type(module).__name__}")
        from safetensors.numpy import load_file

        file = Path(spec.path) / module.folder / "model.safetensors"
        if not file.is_file():
            raise WeightMismatch(f"{spec.model_id}: {module.folder} holds no model.safetensors")
        tensors = {k.rpartition(".")[2]: v.astype(np.float32) for k, v in load_file(file).items()}
        self._weight, self._bias = tensors["weight"], tensors.get("bias")
        if isinstance(module, DenseModule) and module.activation.rpartition(".")[2] not in (
            "",
            "Identity",
            "Tanh",
            "ReLU",
        ):
            raise UnsupportedArchitecture(
                f"{spec.model_id}: activation {module.activation} needs torch: pip install 'hilbert[torch]'"
            )

    def __call__(self, rows: FloatArray) -> FloatArray:
        """``[B, D]`` → ``[B, E]``."""
        if isinstance(self._module, NormalizeModule):
            normal: FloatArray = rows / np.maximum(
                np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)
            )
            return normal
        bias = np.float32(0) if self._bias is None else self._bias
        if isinstance(self._module, LayerNormModule):
            centred = rows - rows.mean(axis=1, keepdims=True)
            spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(1e-5))
            scaled: FloatArray = centred / spread * self._weight + bias
            return scaled
        product: FloatArray = rows @ self._weight.T + bias
        kind = self._module.activation.rpartition(".")[2]
        return np.tanh(product) if kind == "Tanh" else np.maximum(product, 0) if kind == "ReLU" else product
