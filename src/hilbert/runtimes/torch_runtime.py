"""The same programs run eagerly by torch: CUDA, Apple's MPS, or the CPU.

On CUDA in half precision attention runs in torch's variable-length kernel, whose result for a sequence
does not depend on its neighbours; elsewhere in length groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence
from hilbert.errors import InvalidInput, UnsupportedArchitecture
from hilbert.programs.build import Built, build
from hilbert.programs.choose import token_dimensions, trailing_id, unseen_id
from hilbert.programs.layout import VarlenLayout
from hilbert.programs.program import PackedProgram
from hilbert.runtimes.base import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    Runtime,
    RuntimeInfo,
    RuntimeSettings,
)
from hilbert.runtimes.memory import give_device_memory_back
from hilbert.runtimes.outputs import SERVED_AS, OutputBuilder, max_batch_sequences, served_outputs
from hilbert.runtimes.packing import NUM_GROUPS, PackedBatch, pack, pack_groups, without_trailing
from hilbert.runtimes.torch_device import bound_threads, device_errors, pick_device
from hilbert.runtimes.torch_quantized import FP8_CAPABILITY, quantize_linears
from hilbert.runtimes.towers import Stack, placed, take_apart

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EIGHT_BITS = ("int8", "fp8")


def load_torch(spec: ModelSpec, settings: RuntimeSettings) -> Runtime[Any]:
    """Load a model for eager execution; through sentence-transformers where no program fits it.

    Raises:
        ModelError: the weights are missing, wrong or unsafe.
        InvalidInput: the device does not exist, or cannot compute in the dtype.
    """
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    eight_bits = settings.dtype if settings.dtype in EIGHT_BITS else ""
    bound_threads(device, settings)
    try:
        built = build(spec, dtype, NUM_GROUPS, settings.trust_remote_code, device)
    except UnsupportedArchitecture as error:
        from hilbert.runtimes.sentence_transformers_runtime import SentenceTransformersRuntime

        return SentenceTransformersRuntime(spec, settings, error.message)
    if eight_bits:
        quantize_linears(built.graph.program.body, eight_bits)
    return TorchRuntime(spec, built, device, dtype, eight_bits)


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """The dtype of the weights, or, for 8 bits, of what is not quantised.

    16 bits on CUDA where nothing was asked for, else float32.

    Raises:
        InvalidInput: unknown, or not computed by this device.
    """
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype not in ("auto", *EIGHT_BITS):
        raise InvalidInput(f"dtype {dtype!r} is unknown; take auto, {', '.join((*_DTYPES, *EIGHT_BITS))}")
    if dtype == "fp8" and not _multiplies_fp8(device):
        raise InvalidInput(
            f"dtype fp8 is not computed by device {device!r}, but by NVIDIA GPUs of compute capability "
            f"{'.'.join(map(str, FP8_CAPABILITY))} and higher; take --dtype int8 or bfloat16"
        )
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _multiplies_fp8(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


@dataclass(slots=True)
class _Feed:
    """One run of the program: host tensors and where its rows go."""

    part: PackedBatch
    tensors: tuple[Tensor, ...]
    cu_seqlens: Tensor | None
    skips: Tensor | None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is asked for, and the runs of the program that answer it."""

    outputs: frozenset[OutputType]
    num_sequences: int
    feeds: list[_Feed]
    stacks: list[tuple[Stack, Tensor]]


class TorchRuntime:
    """A program on one torch device."""

    num_slots = 2

    def __init__(
        self, spec: ModelSpec, built: Built, device: str, dtype: torch.dtype, eight_bits: str = ""
    ) -> None:
        self._graph = built.graph.eval()
        self._towers = {graph.tower.modality: graph for graph in built.towers}
        self._device = torch.device(device)
        self._padded = built.program == "padded"
        self._varlen = (
            self._device.type == "cuda"
            and dtype in (torch.bfloat16, torch.float16)
            and isinstance(built.graph.program, PackedProgram)
            and unseen_id(spec) is None  # the kernel shows every token of a sequence to all of it
        )
        self._special_ids = spec.special_ids
        self._trailing_id = trailing_id(spec)
        self._unseen_id = unseen_id(spec)
        self._pin = self._device.type == "cuda"
        on_gpu = self._device.type != "cpu"
        self.info = RuntimeInfo(
            engine="torch",
            device=device,
            dtype=eight_bits or str(dtype).removeprefix("torch."),
            program=built.program,
            reason=built.reason,
            dimensions=spec.dimensions,
            outputs=served_outputs(built.graph.program.heads.names),
            max_batch_tokens=GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS,
            num_labels=len(spec.labels),
            token_dimensions=token_dimensions(spec),
            max_batch_sequences=max_batch_sequences(built.graph.program.heads.names, spec.vocab_size),
        )

    def prepare(self, batch: Batch) -> _Prepared:
        """Host tensors, in page-locked memory for a GPU. Raises as `run`."""
        places, texts, stacks = take_apart(batch.sequences, self._towers)
        parts = self._parts(texts) if texts else []
        if stacks:
            parts = placed(parts, places)
        with device_errors():
            feeds = [self._feed(part) for part in parts]
            inputs = [(stack, self._host(stack.features)) for stack in stacks]
        return _Prepared(batch.outputs, len(batch.sequences), feeds, inputs)

    def num_padding_tokens(self, prepared: _Prepared) -> int:
        """See `Runtime.num_padding_tokens`."""
        if self._varlen:
            return 0
        is_padded = self._padded
        return sum([feed.part.num_padding_tokens(is_padded=is_padded) for feed in prepared.feeds])

    def run(self, prepared: _Prepared) -> BatchOutput:
        """See `Runtime.run`."""
        builder = OutputBuilder(prepared.num_sequences, prepared.outputs, self._special_ids)
        names = self._graph.program.heads.names
        with device_errors(), torch.inference_mode():
            for stack, features in prepared.stacks:
                rows = self._towers[stack.modality](features.to(self._device, non_blocking=True))
                builder.add_dense(stack.places, rows.float().cpu().numpy())
            for feed in prepared.feeds:
                outputs = zip(names, self._outputs(feed), strict=True)
                wanted = {n: rows for n, rows in outputs if SERVED_AS[n] in prepared.outputs}
                builder.add(feed.part, {n: rows.float().cpu().numpy() for n, rows in wanted.items()})
        return builder.finish()

    def close(self) -> None:
        """Release the weights and the device's cached memory."""
        del self._graph
        self._towers.clear()
        give_device_memory_back()

    def _parts(self, texts: tuple[Sequence, ...]) -> list[PackedBatch]:
        sequences = without_trailing(texts, self._trailing_id)
        if self._padded:
            return pack_groups(sequences, self._unseen_id)
        return [pack(sequences, 1 if self._varlen else self._graph.num_groups, self._unseen_id)]

    def _feed(self, part: PackedBatch) -> _Feed:
        if self._varlen:
            num_tokens = int(part.lengths.sum())  # the kernel takes any length: no rounding
            arrays = [a[:num_tokens] for a in (part.input_ids, part.position_ids, part.token_type_ids)]
            borders = np.zeros(len(part.lengths) + 1, np.int32)
            np.cumsum(part.lengths, out=borders[1:])
            skips = part.skips if self._graph.skips else None
            return _Feed(
                part,
                tuple(self._host(a) for a in arrays),
                self._host(borders),
                None if skips is None else self._host(skips),
            )
        arrays = [
            part.input_ids,
            part.position_ids,
            part.token_type_ids,
            part.unpad,
            *part.slots,
            *part.group_lengths,
            *(part.group_skips if self._graph.skips else ()),
        ]
        return _Feed(part, tuple(self._host(a) for a in arrays), None, None)

    def _outputs(self, feed: _Feed) -> tuple[Tensor, ...]:
        tensors = [t.to(self._device, non_blocking=True) for t in feed.tensors]
        if feed.cu_seqlens is None:
            return self._graph(*tensors)  # type: ignore[no-any-return]
        layout = VarlenLayout(
            feed.cu_seqlens.to(self._device, non_blocking=True),
            int(feed.part.lengths[-1]),
            None if feed.skips is None else feed.skips.to(self._device, non_blocking=True),
        )
        return self._graph.program(*tensors, layout)  # type: ignore[no-any-return]

    def _host(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._pin else tensor
