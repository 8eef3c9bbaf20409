"""Every family against sentence-transformers, float32, in company: eager, and traced for each library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilbert.core import Batch, ModelSpec, Sequence, finish_vectors
from hilbert.hub import resolve
from hilbert.runtimes import Runtime, RuntimeSettings
from hilbert.testing.models import FAMILIES, tiny_model

PACKED = {"bert", "roberta", "xlm-roberta", "distilbert", "electra", "nomic_bert", "modernbert"}
PACKED |= {"qwen2", "qwen3", "mistral", "gemma", "gemma3_text"}
TRANSFORMERS = sorted(f for f in FAMILIES if f not in ("static", "model2vec"))
WORDS = [
    "the",
    "packed",
    "row",
    "of",
    "a",
    "short",
    "query",
    "is",
    "attended",
    "within",
    "its",
    "own",
    "borders",
    "alone",
]


def texts(max_len: int) -> list[str]:
    """From one character to past the maximum, more than one window between."""
    random = np.random.default_rng(5)
    counts = [1, 2, 3, 5, 8, 12, 16, 17, 25, 33, 40, 60, 4 * max_len]
    return ["", "a", *(" ".join(random.choice(WORDS, n)) for n in counts)]


def tokenize(model: object, texts: list[str]) -> tuple[Sequence, ...]:
    features = [model.tokenize([t]) for t in texts]  # type: ignore[attr-defined]
    return tuple(
        Sequence(
            request_id=0,
            index=i,
            input_ids=f["input_ids"][0].numpy().astype(np.int32),
            token_type_ids=f["token_type_ids"][0].numpy().astype(np.int32) if "token_type_ids" in f else None,
        )
        for i, f in enumerate(features)
    )


@pytest.fixture(scope="module", params=TRANSFORMERS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ModelSpec, tuple[Sequence, ...], np.ndarray]:
    """A tiny model, its sequences, and what sentence-transformers makes of them one by one."""
    from sentence_transformers import SentenceTransformer

    family = request.param
    folder = tiny_model(family, tmp_path_factory.mktemp(family))
    model = SentenceTransformer(str(folder), device="cpu")
    spec = resolve(str(folder))
    inputs = texts(spec.max_model_len or 128)
    reference = model.encode(inputs, batch_size=1, show_progress_bar=False)
    return family, spec, tokenize(model, inputs), np.asarray(reference)


def run(runtime: Runtime, spec: ModelSpec, sequences: tuple[Sequence, ...]) -> np.ndarray:
    dense = runtime.run(runtime.prepare(Batch(sequences))).dense
    assert dense is not None
    return finish_vectors(dense, None, spec.normalize)


@pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
def test_equals_sentence_transformers(
    case: tuple[str, ModelSpec, tuple[Sequence, ...], np.ndarray], engine: str, tmp_path: Path
) -> None:
    family, spec, sequences, reference = case
    settings = RuntimeSettings(engine=engine, dtype="float32", device="cpu", cache_dir=str(tmp_path))
    from hilbert.runtimes import load_runtime

    runtime = load_runtime(spec, settings)
    assert runtime.info.program == ("packed" if family in PACKED else "padded"), runtime.info.reason
    scale = max(1.0, float(np.abs(reference).max()))
    together = run(runtime, spec, sequences)
    np.testing.assert_allclose(together, reference, atol=1e-5 * scale, rtol=0)
    runtime.close()


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"])
def test_every_pooling_mode(mode: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from hilbert.runtimes import load_runtime

    folder = tiny_model("bert", tmp_path / "model", pooling=mode, normalize=False)
    model = SentenceTransformer(str(folder), device="cpu")
    inputs = texts(64)
    reference = np.asarray(model.encode(inputs, batch_size=1, show_progress_bar=False))
    spec = resolve(str(folder))
    settings = RuntimeSettings(engine="torch", dtype="float32", device="cpu")
    runtime = load_runtime(spec, settings)
    scale = max(1.0, float(np.abs(reference).max()))
    ours = run(runtime, spec, tokenize(model, inputs))
    np.testing.assert_allclose(ours, reference, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("family", sorted(PACKED))
def test_linear_layers_see_no_padding(family: str, tmp_path: Path) -> None:
    """Count the rows that every linear layer of the transformer sees."""
    import torch

    from hilbert.programs.build import build

    spec = resolve(str(tiny_model(family, tmp_path / "model")))
    built = build(spec, torch.float32, 4)
    seen: set[int] = set()
    for module in built.graph.program.body.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, i, o: seen.add(i[0].numel() // i[0].shape[-1]))
    from hilbert.runtimes.packing import pack

    lengths = [1, 2, 7, 19, 33, 60, 64, 5]
    part = pack(tuple(Sequence(0, i, np.full(n, 5, np.int32)) for i, n in enumerate(lengths)), 4)
    arrays = [part.input_ids, part.position_ids, part.token_type_ids, part.unpad]
    arrays += [*part.slots, *part.group_lengths]
    with torch.inference_mode():
        built.graph(*(torch.from_numpy(a) for a in arrays))
    assert seen == {-(-sum(lengths) // 32) * 32}, "rounded to 32 tokens, and not one more"
    assert part.num_padding_tokens(is_padded=False) == seen.pop() - sum(lengths)
    assert part.num_padding_tokens(is_padded=True) == sum(slots.size for slots in part.slots) - sum(lengths)
