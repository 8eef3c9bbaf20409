"""The default CPU runtime: a graph traced once, cached on disk, run without torch.

Decides where an artifact comes from (an exported folder, the cache, a fresh trace) and how OpenVINO runs
it in the dtype that was asked for.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hilbert.config.machine import available_threads
from hilbert.core import Batch, BatchOutput, ModelSpec, Sequence
from hilbert.errors import InvalidInput, WeightMismatch
from hilbert.hub.artifacts import ArtifactStore, is_intact, publish, read_manifest, seal, write_manifest
from hilbert.runtimes import ov, tracing
from hilbert.runtimes.base import RuntimeSettings
from hilbert.runtimes.packing import PackedBatch
from hilbert.runtimes.towers import Stack
from hilbert.runtimes.traced import Prepared, TracedBatches, find_or_trace, key_of, read_program

# Compiled shapes that OpenVINO keeps; beyond it a shape costs 1.7 ms again, and memory stays flat.
SHAPES_KEPT = 250

# Activations that share a scale where OpenVINO quantises them on the fly. Worst cosine of MiniLM 0.9969; 128
# loses more (0.9962) and gains nothing (bench/LOG.md).
QUANTIZED_GROUP = 64


def load_openvino(spec: ModelSpec, settings: RuntimeSettings) -> OpenVinoRuntime:
    """Find or make the artifact of a model and compile it.

    Raises:
        UnsupportedArchitecture: neither program computes what the model computes.
        MissingDependency: there is no artifact, and torch to make one is not installed.
        ModelError: the weights are missing, wrong or unsafe.
    """
    dtype = cpu_dtype(settings.dtype)
    folder = _exported_folder(spec, settings.dtype)
    if folder is None:
        folder, key, is_from_cache = find_or_trace(spec, settings, dtype, "openvino", ov.VERSION)
    else:
        is_from_cache = None
        dtype = "int8" if read_program(folder).dtype == "int8" else dtype
        key = key_of(spec, dtype, "openvino", ov.VERSION)
    compiled = ArtifactStore(settings.cache_dir).compiled(key)
    runtime = OpenVinoRuntime(folder, compiled, settings, dtype)
    runtime.info = replace(runtime.info, is_from_cache=is_from_cache)
    return runtime


def cpu_dtype(dtype: str) -> str:
    """The dtype that the CPU will really compute in.

    Raises:
        InvalidInput: fp8, and float16, which OpenVINO silently runs as something else on a CPU.
    """
    if dtype == "auto":
        return "bfloat16" if ov.is_native_bf16() else "float32"
    if dtype in ("float16", "fp8"):
        raise InvalidInput(
            f"dtype {dtype} is not computed by any CPU here; take int8, bfloat16 or float32, or --device cuda"
        )
    if dtype not in ("float32", "bfloat16", "int8"):
        raise InvalidInput(f"dtype {dtype!r} is unknown; take auto, float32, bfloat16 or int8")
    return dtype


# Beside the graph, what `hub` and the processors read of a model.
_DESCRIPTIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
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
        program = tracing.trace(spec, dtype, work, settings.trust_remote_code)
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


class OpenVinoRuntime:
    """A compiled graph on the CPU."""

    num_slots = 2

    def __init__(self, folder: Path, cache: Path | None, settings: RuntimeSettings, dtype: str) -> None:
        program = read_program(folder)
        self._batches = TracedBatches(program)
        is_cached = cache is not None and any(cache.glob("*.blob"))
        config = _config(cache, settings, dtype)
        self._compiled = ov.compile_graph(folder / "model.xml", config)
        self._towers = {
            tower.modality: ov.compile_graph(folder / tower.file, config).create_infer_request()
            for tower in program.towers
        }
        if cache is not None and not is_cached:
            seal(cache)
        self._request = self._compiled.create_infer_request()
        self.info = program.info("openvino", "cpu", dtype)
        probe = Batch((Sequence(0, 0, np.zeros(1, np.int32)),))
        ov.first_inference(self._request, self._batches.feed(self.prepare(probe).parts[0]))
        for tower in program.towers:
            ov.first_inference(self._towers[tower.modality], [np.zeros((1, *tower.shape), np.float32)])

    def prepare(self, batch: Batch) -> Prepared:
        """See `Runtime.prepare`."""
        return self._batches.prepare(batch)

    def num_padding_tokens(self, prepared: Prepared) -> int:
        """See `Runtime.num_padding_tokens`."""
        return self._batches.num_padding_tokens(prepared)

    def run(self, prepared: Prepared) -> BatchOutput:
        """See `Runtime.run`."""
        return self._batches.run(prepared, self._infer, self._infer_tower)

    def _infer_tower(self, stack: Stack) -> np.ndarray:
        request = self._towers[stack.modality]
        ov.infer(request, [stack.features], f"{len(stack.places)} inputs of the {stack.modality} tower")
        rows: np.ndarray = request.get_output_tensor(0).data
        return rows

    def _infer(self, part: PackedBatch, wanted: list[int]) -> list[np.ndarray]:
        what = f"{len(part.order)} sequences, {int(part.lengths.sum())} tokens,"
        ov.infer(self._request, self._batches.feed(part), what)
        return [self._request.get_output_tensor(i).data for i in wanted]

    def close(self) -> None:
        """Release the graph and its memory."""
        del self._request
        del self._compiled
        self._towers.clear()


def _config(cache: Path | None, settings: RuntimeSettings, dtype: str) -> dict[str, Any]:
    """How the CPU plugin compiles and runs the graph."""
    available = available_threads()
    threads = settings.threads or available
    # Beside 8-bit weights everything else runs in bf16 where the CPU has it (programs/export.py).
    half = dtype == "bfloat16" or (dtype == "int8" and ov.is_native_bf16())
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0 if half or dtype != "int8" else QUANTIZED_GROUP,
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
