"""What is not a dense vector: logits, SPLADE, bge-m3, late interaction; against the reference libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilbert.core import Batch, BatchOutput, ModelSpec, OutputType, Sequence, Task
from hilbert.hub import resolve
from hilbert.runtimes import Runtime, RuntimeSettings, load_runtime
from hilbert.testing.models import tiny_model

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
CLASSIFIERS = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "modernbert", "deberta-v2"]
CLASSIFIERS += ["qwen2", "qwen3"]
PADDED = {"deberta-v2"}
EVERYTHING = frozenset(OutputType)


def texts(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["a", *(" ".join(random.choice(WORDS, n)) for n in (1, 2, 5, 9, 14, 20, 27, 300))]


def as_sequences(features: list[dict[str, Any]]) -> tuple[Sequence, ...]:
    return tuple(
        Sequence(
            0,
            i,
            np.asarray(f["input_ids"], np.int32).reshape(-1),
            np.asarray(f["token_type_ids"], np.int32).reshape(-1) if "token_type_ids" in f else None,
        )
        for i, f in enumerate(features)
    )


def run(
    spec: ModelSpec, sequences: tuple[Sequence, ...], engine: str, cache: Path
) -> tuple[Runtime[Any], BatchOutput]:
    settings = RuntimeSettings(engine=engine, dtype="float32", device="cpu", cache_dir=str(cache))
    runtime = load_runtime(spec, settings)
    return runtime, runtime.run(runtime.prepare(Batch(sequences, runtime.info.outputs)))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_rerankers_equal_cross_encoder(family: str, engine: str, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model(family, tmp_path / "model", head="classifier", num_labels=1)
    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    pairs = list(zip(texts(1), texts(2), strict=True))
    expected = model.predict(pairs, batch_size=1, show_progress_bar=False)
    tokenizer = model.tokenizer
    limit = model.max_seq_length
    features = [dict(tokenizer(*p, truncation="longest_first", max_length=limit)) for p in pairs]
    spec = resolve(str(folder))
    assert spec.task is Task.RERANK
    assert spec.max_model_len == limit
    runtime, output = run(spec, as_sequences(features), engine, tmp_path / "cache")
    assert runtime.info.program == ("padded" if family in PADDED else "packed"), runtime.info.reason
    assert runtime.info.outputs == {OutputType.LOGITS}
    assert output.logits is not None
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(output.logits[:, 0], expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifier_with_names(pooling: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = {0: "joy", 1: "anger", 2: "neutral"}
    folder = tiny_model(
        "modernbert",
        tmp_path / "model",
        head="classifier",
        id2label=names,
        classifier_pooling=pooling,
        problem_type="multi_label_classification",
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    features = [dict(tokenizer(t, truncation=True, max_length=128)) for t in texts(3)]
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([f["input_ids"]])).logits[0].numpy() for f in features]
    spec = resolve(str(folder))
    assert (spec.task, spec.labels) == (Task.CLASSIFY, ("joy", "anger", "neutral"))
    assert spec.problem_type == "multi_label_classification"
    _, output = run(spec, as_sequences(features), "torch", tmp_path)
    np.testing.assert_allclose(output.logits, np.array(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "xlm-roberta"])
def test_splade_equals_sparse_encoder(family: str, engine: str, tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = tiny_model(family, tmp_path / "model", head="splade")
    model = SparseEncoder(str(folder), device="cpu")
    expected = model.encode(texts(4), batch_size=1, convert_to_sparse_tensor=False, show_progress_bar=False)
    features = [{k: v[0] for k, v in model.tokenize([t]).items() if hasattr(v, "shape")} for t in texts(4)]
    spec = resolve(str(folder))
    assert spec.task is Task.SPARSE_EMBED
    runtime, output = run(spec, as_sequences(features), engine, tmp_path / "cache")
    assert runtime.info.program == "packed"
    assert output.sparse is not None
    for ours, theirs in zip(output.sparse, np.asarray(expected), strict=True):
        dense = np.zeros(spec.vocab_size, np.float32)
        dense[ours.token_ids] = ours.weights
        np.testing.assert_allclose(dense, theirs, atol=1e-5 * max(1.0, theirs.max()), rtol=0)
        assert (np.diff(ours.token_ids) > 0).all()
        assert set(ours.token_ids) == set(np.flatnonzero(theirs))


def test_vocabulary_wide_logits_stay_bounded(tmp_path: Path) -> None:
    """A vocabulary of 60,000: all logits of the batch at once would take 480 MB; the slices do not."""
    import torch

    from hilbert.programs import heads
    from hilbert.programs.build import build

    folder = tiny_model("bert", tmp_path / "model", head="splade", vocab_size=60_000)
    built = build(resolve(str(folder)), torch.float32, 4)
    widths: list[int] = []
    for module in built.graph.program.heads.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, i, o: widths.append(o.shape[-1]))
    sequences = tuple(Sequence(0, i, np.full(100, 7, np.int32)) for i in range(20))
    from hilbert.runtimes.packing import pack

    part = pack(sequences, 4)
    arrays = [part.input_ids, part.position_ids, part.token_type_ids, part.unpad]
    arrays += [*part.slots, *part.group_lengths]
    with torch.inference_mode():
        (rows,) = built.graph(*(torch.from_numpy(a) for a in arrays))
    assert rows.shape[1] == 60_000
    assert len(widths) > 14
    assert max(widths) <= heads.VOCABULARY_SLICE


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bge_m3_gives_three_outputs_in_one_pass(engine: str, tmp_path: Path) -> None:
    """Source: FlagEmbedding's BGEM3: sparse relu(w·h), maximum per token; ColBERT linear without CLS."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder = tiny_model("xlm-roberta", tmp_path / "model", head="m3", pooling="cls")
    model = SentenceTransformer(str(folder), device="cpu")
    features = [{k: v[0] for k, v in model.tokenize([t]).items() if hasattr(v, "shape")} for t in texts(5)]
    dense = model.encode(texts(5), batch_size=1, show_progress_bar=False)
    hidden = [
        model.encode(t, output_value="token_embeddings", show_progress_bar=False).numpy() for t in texts(5)
    ]
    sparse_linear = torch.load(folder / "sparse_linear.pt", weights_only=True)
    vector_linear = torch.load(folder / "colbert_linear.pt", weights_only=True)
    spec = resolve(str(folder))
    sequences = as_sequences(features)
    runtime, output = run(spec, sequences, engine, tmp_path / "cache")
    assert runtime.info.outputs == {OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR}
    assert output.dense is not None and output.sparse is not None and output.multivector is not None
    unit = output.dense / np.linalg.norm(output.dense, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, dense, atol=1e-5)
    specials = {0, 1, 2, 3}
    for sequence, states, sparse, vectors in zip(
        sequences, hidden, output.sparse, output.multivector, strict=True
    ):
        weights = np.maximum(states @ sparse_linear["weight"].numpy().T + sparse_linear["bias"].numpy(), 0)
        expected: dict[int, float] = {}
        for token, weight in zip(sequence.input_ids.tolist(), weights[:, 0].tolist(), strict=True):
            if token not in specials and weight > 0:
                expected[token] = max(expected.get(token, 0.0), weight)
        assert sparse.token_ids.tolist() == sorted(expected)
        np.testing.assert_allclose(sparse.weights, [expected[t] for t in sorted(expected)], atol=1e-4)
        projected = states @ vector_linear["weight"].numpy().T + vector_linear["bias"].numpy()
        np.testing.assert_allclose(vectors, projected, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_documents_equal_multi_vector_encoder(family: str, engine: str, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    folder = tiny_model(
        family, tmp_path / "model", head="colbert", prompts={"document": "a ", "query": "is "}
    )
    model = MultiVectorEncoder(str(folder), device="cpu")
    inputs = ["a short one, with marks!", *texts(6)]
    expected = model.encode_document(inputs, batch_size=1, show_progress_bar=False)
    spec = resolve(str(folder))
    assert spec.task is Task.MULTI_EMBED
    assert spec.multivector is not None and spec.normalize
    features = [model.tokenizer("a " + t, truncation=True, max_length=model.max_seq_length) for t in inputs]
    sequences = as_sequences([dict(f) for f in features])
    runtime, output = run(spec, sequences, engine, tmp_path / "cache")
    assert runtime.info.token_dimensions == 24
    assert output.multivector is not None
    for sequence, vectors, theirs in zip(sequences, output.multivector, expected, strict=True):
        kept = ~np.isin(sequence.input_ids, spec.multivector.skip_ids)
        unit = vectors[kept] / np.linalg.norm(vectors[kept], axis=1, keepdims=True)
        np.testing.assert_allclose(unit, np.asarray(theirs), atol=1e-5)


def test_a_dense_model_returns_its_token_vectors(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_model("bert", tmp_path / "model")
    model = SentenceTransformer(str(folder), device="cpu")
    features = [{k: v[0] for k, v in model.tokenize([t]).items() if hasattr(v, "shape")} for t in texts(7)]
    _, output = run(resolve(str(folder)), as_sequences(features), "torch", tmp_path)
    assert output.multivector is not None
    for text, ours in zip(texts(7), output.multivector, strict=True):
        theirs = model.encode(text, output_value="token_embeddings", show_progress_bar=False).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize(
    ("family", "engine"), [("bert", "torch"), ("bert", "openvino"), ("modernbert", "torch")]
)
def test_queries_equal_multi_vector_encoder(family: str, engine: str, attend: bool, tmp_path: Path) -> None:
    """Queries are filled up to 24 tokens; the query sees the filling only where the model says so."""
    from sentence_transformers import MultiVectorEncoder

    # A window that reaches over the whole query, as real ones do: with a smaller one some filling would
    # see nothing at all, and what that means is an accident of the implementation.
    window = {"local_attention": 64} if family == "modernbert" else {}
    folder = tiny_model(family, tmp_path / "model", head="colbert", attend=attend, **window)
    model = MultiVectorEncoder(str(folder), device="cpu")
    inputs = ["a short one", *texts(8)]
    expected = model.encode_query(inputs, batch_size=1, show_progress_bar=False)
    spec = resolve(str(folder))
    assert spec.multivector is not None and spec.multivector.expansion_id is not None
    features = []
    for text in inputs:
        ids = model.tokenizer(text, truncation=True, max_length=24)["input_ids"]
        features.append({"input_ids": ids + [spec.multivector.expansion_id] * (24 - len(ids))})
    _, output = run(spec, as_sequences(features), engine, tmp_path / "cache")
    assert output.multivector is not None
    for vectors, theirs in zip(output.multivector, expected, strict=True):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, np.asarray(theirs), atol=1e-5)
