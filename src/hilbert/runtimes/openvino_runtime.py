"""The default CPU runtime: a graph traced once, cached on disk, run without torch.

Decides where an artifact comes from (an exported folder, the cache, a fresh trace in a child process,
a graph that the repository ships) and how a batch is fed to it. Two kinds of graph: a packed one takes
the whole batch, a padded one is run once per length group.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hilbert.config.machine import available_threads
from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence
from hilbert.core.request import IntArray
from hilbert.errors import EngineError, InvalidInput, WeightMismatch, WorkerLost
from hilbert.hub.artifacts import (
    ArtifactStore,
    cpu_isa,
    fingerprint,
    is_intact,
    publish,
    read_manifest,
    seal,
    write_manifest,
)
from hilbert.programs.choose import PROGRAM_VERSION
from hilbert.runtimes import ov
from hilbert.runtimes.base import CPU_BATCH_TOKENS, RuntimeInfo, RuntimeSettings
from hilbert.runtimes.outputs import SERVED_AS, OutputBuilder, served_outputs
from hilbert.runtimes.packing import NUM_GROUPS, PackedBatch, pack, pack_groups, without_trailing
from hilbert.runtimes.tracing import trace

# Compiled shapes that OpenVINO keeps; beyond it a shape costs 1.7 ms again, and memory stays flat.
SHAPES_KEPT = 250


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
    special_ids: tuple[int, ...] = ()
    trailing_id: int | None = None
    unseen_id: int | None = None


def load_openvino(spec: ModelSpec, settings: RuntimeSettings) -> OpenVinoRuntime:
    """Find or make the artifact of a model and compile it.

    Raises:
        UnsupportedArchitecture: neither program computes what the model computes.
        MissingDependency: there is no artifact, and torch to make one is not installed.
        ModelError: the weights are missing, wrong or unsafe.
    """
    dtype = cpu_dtype(settings.dtype)
    store = ArtifactStore(settings.cache_dir)
    folder = _exported_folder(spec, settings.dtype)
    key = artifact_fingerprint(spec, dtype)
    if folder is None:
        folder = store.open(key)
    if folder is None:
        with store.building(key) as work:
            program = trace(spec, dtype, work, settings.trust_remote_code)
            folder = store.commit(key, work, spec, program)
    return OpenVinoRuntime(folder, store.compiled(key), settings, dtype)


def artifact_fingerprint(spec: ModelSpec, dtype: str) -> str:
    """The name of an artifact: whatever changes the vectors or the file's meaning changes it."""
    return fingerprint(
        spec,
        program_version=PROGRAM_VERSION,
        dtype=dtype,
        runtime_version=f"openvino-{ov.VERSION}",
        cpu_isa=cpu_isa(),
        extra=f"groups={NUM_GROUPS}",
    )


def cpu_dtype(dtype: str) -> str:
    """The dtype that the CPU will really compute in.

    Raises:
        InvalidInput: float16, which OpenVINO silently runs as something else on a CPU.
    """
    if dtype == "auto":
        return "bfloat16" if ov.is_native_bf16() else "float32"
    if dtype == "float16":
        raise InvalidInput("dtype float16 is not computed by any CPU here; take bfloat16 or float32")
    if dtype not in ("float32", "bfloat16"):
        raise InvalidInput(f"dtype {dtype!r} is unknown; take auto, float32 or bfloat16")
    return dtype


# Beside the graph, what `hub` and the processors read of a model.
_DESCRIPTIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
)


def export_folder(
    spec: ModelSpec, settings: RuntimeSettings, folder: Path, tokenizer: Path
) -> dict[str, Any]:
    """Write a self-contained folder that is served without torch.

    Args:
        folder: must not exist, or be empty.
        tokenizer: the model's tokenizer.json, which goes with it.

    Returns:
        What the manifest says of the program.

    Raises:
        InvalidInput: the folder holds something already.
        ModelError: the model cannot be traced.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; name a folder that does not exist yet")
    dtype = cpu_dtype(settings.dtype)
    store = ArtifactStore(settings.cache_dir)
    with store.building("export") as work:
        program = trace(spec, dtype, work, settings.trust_remote_code)
        for name in _DESCRIPTIONS:
            for place in (Path(spec.path) / spec.transformer_folder, Path(spec.path)):
                if (place / name).is_file():
                    shutil.copyfile(place / name, work / name)
                    break
        shutil.copyfile(tokenizer, work / "tokenizer.json")
        write_manifest(work, spec, program)
        publish(work)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work, folder, dirs_exist_ok=True)
    return program


def _exported_folder(spec: ModelSpec, dtype: str) -> Path | None:
    """The model's own folder when it is one made by `hilbert export` in a dtype that serves here."""
    folder = Path(spec.path)
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if not is_intact(folder, manifest):
        raise WeightMismatch(f"{folder}: a file differs from its SHA-256 in hilbert.json; copy it again")
    made_in = manifest["program"]["dtype"]
    if dtype in ("auto", made_in) or (made_in, dtype) == ("float32", "bfloat16"):
        return folder
    raise InvalidInput(
        f"{folder} was exported in {made_in} and cannot be served in {dtype}; "
        f"export it again with --dtype {dtype}, or serve it with --dtype {made_in}"
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is asked for, and the runs of the graph that answer it."""

    outputs: frozenset[OutputType]
    parts: list[PackedBatch]


class OpenVinoRuntime:
    """A compiled graph on the CPU."""

    num_slots = 2

    def __init__(self, folder: Path, cache: Path | None, settings: RuntimeSettings, dtype: str) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise WeightMismatch(f"{folder} holds no readable hilbert.json")
        self._program = msgspec.convert(manifest["program"], Program, strict=False)
        self._padded = self._program.program == "padded"
        is_cached = cache is not None and any(cache.glob("*.blob"))
        self._compiled = ov.compile_graph(folder / "model.xml", _config(cache, settings, dtype))
        if cache is not None and not is_cached:
            seal(cache)
        self._request = self._compiled.create_infer_request()
        self._takes_skips = any(name.startswith("skips") for name in self._program.inputs)
        self.info = RuntimeInfo(
            engine="openvino",
            device="cpu",
            dtype=dtype,
            program=self._program.program,
            reason=self._program.reason,
            dimensions=self._program.dimensions,
            outputs=served_outputs(self._program.outputs),
            max_batch_tokens=CPU_BATCH_TOKENS,
            num_labels=self._program.num_labels,
            token_dimensions=self._program.token_dimensions,
        )
        probe = Batch((Sequence(0, 0, np.zeros(1, np.int32)),))
        ov.first_inference(self._request, self._feed(self.prepare(probe).parts[0]))

    def prepare(self, batch: Batch) -> _Prepared:
        """One packed batch, or one per length group for a padded graph."""
        sequences = without_trailing(batch.sequences, self._program.trailing_id)
        if self._padded:
            return _Prepared(batch.outputs, pack_groups(sequences, self._program.unseen_id))
        part = pack(sequences, self._program.num_groups, self._program.unseen_id)
        return _Prepared(batch.outputs, [part])

    def run(self, prepared: _Prepared) -> BatchOutput:
        """See `Runtime.run`.

        Raises:
            WorkerLost: memory ran out inside OpenVINO. What it computes after that cannot be trusted: most
                such processes crashed, and some returned wrong vectors without a word (bench/LOG.md). A
                fresh worker runs the requests again, one at a time.
        """
        parts = prepared.parts
        builder = OutputBuilder(sum(len(p.order) for p in parts), prepared.outputs, self._program.special_ids)
        for part in parts:
            try:
                self._request.infer(self._feed(part), share_inputs=True)
            except MemoryError as error:
                raise WorkerLost(_no_memory(part)) from error
            except RuntimeError as error:
                if "alloc" in str(error).lower():
                    raise WorkerLost(_no_memory(part)) from error
                raise EngineError(f"openvino: {str(error).strip().splitlines()[-1]}") from error
            builder.add(
                part,
                {
                    name: self._request.get_output_tensor(i).data
                    for i, name in enumerate(self._program.outputs)
                    if SERVED_AS[name] in prepared.outputs
                },
            )
        return builder.finish()

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._request
        del self._compiled

    def _feed(self, part: PackedBatch) -> list[IntArray]:
        return [
            part.input_ids,
            part.position_ids,
            part.token_type_ids,
            part.unpad,
            *part.slots,
            *part.group_lengths,
            *(part.group_skips if self._takes_skips else ()),
        ]


def _config(cache: Path | None, settings: RuntimeSettings, dtype: str) -> dict[str, Any]:
    """How the CPU plugin compiles and runs the graph."""
    available = available_threads()
    threads = settings.threads or available
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads gain 12 to 18 % where this process has the CPUs to itself; two processes that were
        # given one thread each would pin it to the same core (bench/LOG.md).
        "ENABLE_CPU_PINNING": threads >= available,
        "CPU_RUNTIME_CACHE_CAPACITY": SHAPES_KEPT,
    }
    if cache is not None:
        config |= {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SIZE"}
    return config


def _no_memory(part: PackedBatch) -> str:
    return (
        f"a batch of {len(part.order)} sequences, {int(part.lengths.sum())} tokens, does not fit into memory"
    )
