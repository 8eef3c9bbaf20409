"""Traced graphs, whichever library runs them: where one comes from, how it is fed, how rows are collected.

Two kinds of graph: a packed one takes the whole batch, a padded one is run once per length group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from hilbert.core import Batch, BatchOutput, Modality, ModelSpec, OutputType, Sequence
from hilbert.core.request import IntArray
from hilbert.errors import WeightMismatch
from hilbert.hub.artifacts import ArtifactStore, cpu_isa, fingerprint, read_manifest
from hilbert.programs.choose import PROGRAM_VERSION, Target
from hilbert.runtimes import tracing
from hilbert.runtimes.base import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.outputs import SERVED_AS, OutputBuilder, max_batch_sequences, served_outputs
from hilbert.runtimes.packing import NUM_GROUPS, PackedBatch, pack, pack_groups, without_trailing
from hilbert.runtimes.towers import Stack, placed, take_apart

# Runs the graph on one part; returns the outputs with these numbers, rows in packed order.
Infer = Callable[[PackedBatch, list[int]], list[np.ndarray]]


# Runs a tower on one stack; returns dense rows.
InferTower = Callable[[Stack], np.ndarray]


class TowerProgram(msgspec.Struct, frozen=True):
    """A graph beside the main one: features ``[n, *shape]`` in, dense rows out."""

    modality: Modality
    file: str
    shape: tuple[int, ...]


class Program(msgspec.Struct, frozen=True):
    """What an artifact's manifest says of its graph."""

    program: str
    reason: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_groups: int
    dtype: str
    dimensions: int
    num_labels: int = 0
    token_dimensions: int = 0
    vocab_size: int = 0
    special_ids: tuple[int, ...] = ()
    trailing_id: int | None = None
    unseen_id: int | None = None
    towers: tuple[TowerProgram, ...] = ()

    @property
    def takes_skips(self) -> bool:
        """Whether the graph is told which rows to keep out of the pool."""
        return any(name.startswith("skips") for name in self.inputs)

    def info(self, engine: str, device: str, dtype: str, why: str = "") -> RuntimeInfo:
        """What a runtime of this graph says of itself; `why` tells why nothing else was taken."""
        return RuntimeInfo(
            engine=engine,
            device=device,
            dtype=dtype,
            program=self.program,
            reason=f"{self.reason}; {why}" if why else self.reason,
            dimensions=self.dimensions,
            outputs=served_outputs(self.outputs),
            max_batch_tokens=CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS,
            num_labels=self.num_labels,
            token_dimensions=self.token_dimensions,
            max_batch_sequences=max_batch_sequences(self.outputs, self.vocab_size),
        )


def read_program(folder: Path) -> Program:
    """The program of an artifact.

    Raises:
        WeightMismatch: the folder has no manifest that can be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise WeightMismatch(f"{folder} holds no readable hilbert.json")
    return msgspec.convert(manifest["program"], Program, strict=False)


def key_of(spec: ModelSpec, dtype: str, target: Target, version: str) -> str:
    """The name of an artifact: whatever changes the vectors or the file's meaning changes it.

    Args:
        version: of whatever the file must fit.
    """
    return fingerprint(
        spec,
        program_version=PROGRAM_VERSION,
        dtype=dtype,
        runtime_version=f"{target}-{version}",
        cpu_isa=cpu_isa() if target == "openvino" else "",
        extra=f"groups={NUM_GROUPS}",
    )


def find_or_trace(
    spec: ModelSpec, settings: RuntimeSettings, dtype: str, target: Target, version: str
) -> tuple[Path, str, bool]:
    """The folder of an artifact, its key, and whether the cache had it; made first where it had not.

    Raises:
        UnsupportedArchitecture: no program computes what the model computes.
        MissingDependency: there is no artifact, and what makes one is not installed.
        ModelError: the weights are missing, wrong or unsafe.
    """
    store = ArtifactStore(settings.cache_dir)
    key = key_of(spec, dtype, target, version)
    folder = store.open(key)
    if folder is not None:
        return folder, key, True
    with store.building(key) as work:
        program = tracing.trace(spec, dtype, work, settings.trust_remote_code, target)
        return store.commit(key, work, spec, program), key, False


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is asked for, and the runs of the graph that answer it."""

    outputs: frozenset[OutputType]
    num_sequences: int
    parts: list[PackedBatch]
    stacks: list[Stack]


class TracedBatches:
    """The batches of one traced graph."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._takes_skips = program.takes_skips
        self._modalities = frozenset(tower.modality for tower in program.towers)

    def prepare(self, batch: Batch) -> Prepared:
        """One packed batch, or one per length group for a padded graph; images and sounds stacked."""
        places, texts, stacks = take_apart(batch.sequences, self._modalities)
        parts = self._parts(texts) if texts else []
        if stacks:
            parts = placed(parts, places)
        return Prepared(batch.outputs, len(batch.sequences), parts, stacks)

    def _parts(self, texts: tuple[Sequence, ...]) -> list[PackedBatch]:
        program = self._program
        sequences = without_trailing(texts, program.trailing_id)
        if program.program == "padded":
            return pack_groups(sequences, program.unseen_id)
        return [pack(sequences, program.num_groups, program.unseen_id)]

    def num_padding_tokens(self, prepared: Prepared) -> int:
        """See `Runtime.num_padding_tokens`."""
        is_padded = self._program.program == "padded"
        return sum([part.num_padding_tokens(is_padded=is_padded) for part in prepared.parts])

    def feed(self, part: PackedBatch) -> list[IntArray]:
        """The graph's inputs, in its order."""
        return [
            part.input_ids,
            part.position_ids,
            part.token_type_ids,
            part.unpad,
            *part.slots,
            *part.group_lengths,
            *(part.group_skips if self._takes_skips else ()),
        ]

    def run(self, prepared: Prepared, infer: Infer, infer_tower: InferTower | None = None) -> BatchOutput:
        """Run every part and put the rows that were asked for into the batch's order."""
        names = self._program.outputs
        wanted = [i for i, name in enumerate(names) if SERVED_AS[name] in prepared.outputs]
        builder = OutputBuilder(prepared.num_sequences, prepared.outputs, self._program.special_ids)
        for stack in prepared.stacks:
            assert infer_tower is not None, "a program without towers makes no stacks"
            builder.add_dense(stack.places, infer_tower(stack))
        for part in prepared.parts:
            rows = infer(part, wanted)
            builder.add(part, {names[i]: array for i, array in zip(wanted, rows, strict=True)})
        return builder.finish()
