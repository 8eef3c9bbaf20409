"""Rerank, classify and every kind of vector, against plain formulas on the fake runtime's rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert import hub
from hilbert.core import (
    ClassifyRequest,
    EmbedRequest,
    ModelSpec,
    OutputType,
    RerankRequest,
    Scale,
    Task,
    with_task,
)
from hilbert.engine import Device, Engine, LocalEngine
from hilbert.errors import InputTooLong, InvalidInput, NonFiniteOutput, UnsupportedTask
from hilbert.models import ServedModel, served
from hilbert.processors import TextProcessor
from hilbert.scheduler import Admission, Scheduler
from hilbert.testing.models import tiny_model
from hilbert.testing.runtime import FakeRuntime, fake_logits, fake_sparse, fake_token_vectors, fake_vector

QUERY = "where is a free room?"
DOCUMENTS = ("room one", "!?", "the hotel, it is never full.", "room one", "Zimmer frei")
EVERYTHING = frozenset(OutputType)
VECTORS = EVERYTHING - {OutputType.LOGITS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    classifier: dict[str, Any] = {"head": "classifier"}
    return {
        "reranker": tiny_model("bert", root / "reranker", **classifier, num_labels=1),
        "classifier": tiny_model("bert", root / "classifier", **classifier, num_labels=3),
        "dense": tiny_model(
            "bert", root / "dense", prompts={"query": "query: ", "document": "guest "}, normalize=False
        ),
        "m3": tiny_model("xlm-roberta", root / "m3", head="m3"),
        "colbert": tiny_model("bert", root / "colbert", head="colbert"),
        "splade": tiny_model("bert", root / "splade", head="splade"),
    }


OUTPUTS = {
    "reranker": frozenset({OutputType.LOGITS}),
    "classifier": frozenset({OutputType.LOGITS}),
    "dense": frozenset({OutputType.DENSE, OutputType.MULTIVECTOR}),
    "m3": VECTORS,
    "colbert": frozenset({OutputType.MULTIVECTOR}),
    "splade": frozenset({OutputType.SPARSE}),
}


@contextmanager
def serving(
    spec: ModelSpec, outputs: frozenset[OutputType], **more: Any
) -> Iterator[tuple[ServedModel, FakeRuntime]]:
    num_labels = len(spec.labels) or 1
    runtime = FakeRuntime(8, outputs=outputs, num_labels=num_labels, token_dimensions=4, record=True, **more)
    engine = Engine(runtime, Scheduler(4096), Device())
    engine.start()
    try:
        processor = TextProcessor(spec)
        yield ServedModel("m", spec, processor, LocalEngine(engine), Admission(100_000, 9)), runtime
    finally:
        engine.stop()


@pytest.fixture
def model(request: Any, folders: dict[str, Path]) -> Iterator[ServedModel]:
    with serving(hub.resolve(str(folders[request.param])), OUTPUTS[request.param]) as (model, _):
        yield model


def rerank(
    model: ServedModel, query: str = QUERY, documents: tuple[str, ...] = DOCUMENTS, **more: Any
) -> Any:
    return asyncio.run(model.rerank(RerankRequest(query, documents, **more)))


def encode(model: ServedModel, *texts: str, outputs: frozenset[OutputType], **more: Any) -> Any:
    return asyncio.run(model.encode(EmbedRequest(texts, outputs=outputs, **more)))


def ids_of(model: ServedModel, text: str, **more: Any) -> Any:
    return model.processor.encode(EmbedRequest((text,), **more), 0)[0].input_ids


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def check_order(found: Any, scores: np.ndarray) -> None:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert found.indices.tolist() == order
    assert found.scores.dtype == np.float32
    assert np.abs(found.scores - scores[order]).max() < 1e-6


@pytest.mark.parametrize("name", ["m3", "colbert"])
def test_too_many_token_vectors_are_refused_before_they_are_computed(name, folders, monkeypatch):
    with serving(hub.resolve(str(folders[name])), OUTPUTS[name]) as (model, runtime):
        num_tokens = sum(len(ids_of(model, text)) for text in DOCUMENTS)
        outputs = frozenset({OutputType.MULTIVECTOR})
        monkeypatch.setattr(served, "MAX_TOKEN_NUMBERS", 4 * num_tokens - 1)
        words = f"{num_tokens} tokens, .* {4 * num_tokens} numbers; .* {num_tokens - 1} tokens. Send fewer"
        with pytest.raises(InputTooLong, match=words):
            encode(model, *DOCUMENTS, outputs=outputs)
        if name == "colbert":
            with pytest.raises(InputTooLong, match="Send fewer or shorter inputs"):
                rerank(model)
        assert not runtime.batches
        if name == "m3":
            encode(model, *DOCUMENTS, outputs=frozenset({OutputType.DENSE}))
        monkeypatch.setattr(served, "MAX_TOKEN_NUMBERS", 4 * num_tokens)
        assert encode(model, *DOCUMENTS, outputs=outputs).num_tokens == num_tokens


# -- rerank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["reranker"], indirect=True)
def test_a_cross_encoder_scores_pairs(model):
    from hilbert.processors import pair_processor

    pairs = pair_processor(model.processor).encode(QUERY, DOCUMENTS, True, 0).sequences
    logits = np.array([fake_logits(s.input_ids, 1)[0] for s in pairs])
    found = rerank(model)
    check_order(found, (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32))
    assert found.num_tokens == sum(s.num_tokens for s in pairs) and not found.warning
    check_order(rerank(model, scale=Scale.RAW), logits)
    check_order(rerank(model, scale=Scale.MODEL), found.scores[np.argsort(found.indices)])
    best = rerank(model, top_n=2)
    assert best.indices.tolist() == found.indices[:2].tolist() and len(best.scores) == 2
    assert len(rerank(model, top_n=99).scores) == len(DOCUMENTS)


def test_the_models_activation_is_the_python_default(folders):
    spec = hub.resolve(str(folders["reranker"]))
    named = {"torch.nn.modules.linear.Identity": Scale.RAW, "torch.nn.Sigmoid": Scale.SIGMOID}
    for activation, scale in named.items():
        changed = msgspec.structs.replace(spec, activation=activation)
        with serving(changed, OUTPUTS["reranker"]) as (model, _):
            assert np.array_equal(rerank(model, scale=Scale.MODEL).scores, rerank(model, scale=scale).scores)
    odd = msgspec.structs.replace(spec, activation="torch.nn.Hardswish")
    with serving(odd, OUTPUTS["reranker"]) as (model, _), pytest.raises(UnsupportedTask, match="Hardswish"):
        rerank(model, scale=Scale.MODEL)


def test_extreme_logits_do_not_overflow():
    from hilbert.models.rerank import sigmoid

    found = sigmoid(np.array([-1000, -90, 0, 90, 1000], dtype=np.float32))
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert found[[0, 2, 4]].tolist() == [0, 0.5, 1] and 0 < found[1] < 1e-30


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_an_embedder_reranks_by_its_similarity(folders, similarity):
    spec = msgspec.structs.replace(hub.resolve(str(folders["dense"])), similarity=similarity)
    with serving(spec, OUTPUTS["dense"]) as (model, runtime):
        query = fake_vector(ids_of(model, "query: " + QUERY), 8).astype(np.float64)
        rows = np.stack([fake_vector(ids_of(model, "guest " + d), 8) for d in DOCUMENTS]).astype(np.float64)
        expected = {
            "cosine": unit(rows) @ unit(query),
            "dot": rows @ query,
            "euclidean": -np.linalg.norm(rows - query, axis=1),
            "manhattan": -np.abs(rows - query).sum(axis=1),
        }[similarity]
        check_order(rerank(model), expected.astype(np.float32))
        assert runtime.num_runs == 1  # query and documents together


def mean_maxsim(model: ServedModel, kept: Any) -> np.ndarray:
    query = unit(kept(ids_of(model, QUERY, input_type="query"), True))
    documents = [unit(kept(ids_of(model, d, input_type="document"), False)) for d in DOCUMENTS]
    return np.array([(query @ d.T).max(axis=1).mean() for d in documents], dtype=np.float32)


@pytest.mark.parametrize("model", ["colbert"], indirect=True)
def test_late_interaction_reranks_by_maxsim(model):
    skip = model.spec.multivector.skip_ids

    def kept(ids: Any, is_query: bool) -> Any:
        rows = fake_token_vectors(ids, 4)
        return rows if is_query else rows[~np.isin(ids, skip)]

    expected = mean_maxsim(model, kept)
    check_order(rerank(model), expected)


def test_bge_m3_reranks_by_tokens_when_it_is_served_for_them(folders):
    spec = hub.resolve(str(folders["m3"]))
    with serving(with_task(spec, Task.MULTI_EMBED), VECTORS) as (model, _):
        check_order(rerank(model), mean_maxsim(model, lambda ids, _: fake_token_vectors(ids, 4)[1:]))
    with serving(spec, VECTORS) as (model, runtime):
        rerank(model)
        assert runtime.batches[0].outputs == {OutputType.DENSE}


@pytest.mark.parametrize("model", ["splade"], indirect=True)
def test_sparse_vectors_rerank_by_their_product(model):
    def dense(text: str) -> np.ndarray:
        vector = fake_sparse(ids_of(model, text))
        row = np.zeros(model.spec.vocab_size, np.float32)
        row[vector.token_ids] = vector.weights
        return row

    check_order(rerank(model), np.stack([dense(d) for d in DOCUMENTS]) @ dense(QUERY))


@pytest.mark.parametrize("model", ["reranker", "dense", "colbert"], indirect=True)
def test_a_cut_query_is_reported_and_a_short_one_is_not(model):
    long = "one more guest " * 100
    assert "query truncated" in rerank(model, long).warning
    assert rerank(model, "a", ("b", long)).warning == ""


@pytest.mark.parametrize("model", ["reranker", "dense", "colbert", "splade"], indirect=True)
def test_the_guilty_text_is_named(model):
    for query, documents, param, index in (
        ("\ud800", ("a",), "query", None),
        ("a", ("a", "\ud800"), "documents", 1),
    ):
        with pytest.raises(
            InvalidInput, match=rf"^{param}{'' if index is None else rf'.{index}.'} is not"
        ) as told:
            rerank(model, query, documents)
        assert (told.value.param, told.value.index) == (param, index)
    with pytest.raises(InputTooLong, match=r"^documents\[1\]"):
        rerank(model, "a", ("b", "one more guest " * 100), truncate=False)


@pytest.mark.parametrize(("name", "place"), [("reranker", r"documents\[1\]"), ("dense", r"documents\[1\]")])
def test_a_failure_of_the_model_names_the_document(folders, name, place):
    spec = hub.resolve(str(folders[name]))
    processor = TextProcessor(spec)
    marker = int(processor.encode(EmbedRequest(("Q",)), 0)[0].input_ids[1])
    with serving(spec, OUTPUTS[name], nan_on_token=marker) as (model, _):
        with pytest.raises(NonFiniteOutput, match=place) as failed:
            rerank(model, "a", ("b", "Q", "c"))
        assert (failed.value.param, failed.value.index) == ("documents", 1)
        if name == "dense":
            with pytest.raises(NonFiniteOutput, match=r"^query: "):
                rerank(model, "Q", ("b",))


@pytest.mark.parametrize("model", ["classifier"], indirect=True)
def test_several_labels_do_not_rerank(model):
    with pytest.raises(UnsupportedTask, match=r"`rerank`: it scores 3 labels.*It can: classify"):
        rerank(model)
    assert model.metrics.requests["client_error"] == 1 and model.admission.num_requests == 0


# -- classify ---------------------------------------------------------------------------------------


def classify(model: ServedModel, *texts: str, **more: Any) -> Any:
    return asyncio.run(model.classify(ClassifyRequest(texts, **more)))


@pytest.mark.parametrize(
    "problem_type", ["", "single_label_classification", "multi_label_classification", "regression"]
)
def test_scores_of_all_labels_sorted(folders, problem_type):
    spec = hub.resolve(str(folders["classifier"]))
    spec = msgspec.structs.replace(spec, problem_type=problem_type, labels=("good", "bad", "ugly"))
    texts = ("one", "two rooms", "")
    with serving(spec, OUTPUTS["classifier"]) as (model, _):
        logits = np.stack([fake_logits(ids_of(model, t), 3) for t in texts]).astype(np.float64)
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = {"multi_label_classification": 1 / (1 + np.exp(-logits)), "regression": logits}.get(
            problem_type, softmax
        )
        for raw in (False, True):
            found = classify(model, *texts, raw_scores=raw)
            wanted = logits if raw else expected
            order = np.argsort(-wanted, axis=1, kind="stable")
            assert found.order.tolist() == order.tolist() and found.labels == ("good", "bad", "ugly")
            assert np.abs(found.scores - np.take_along_axis(wanted, order, 1)).max() < 1e-5
            assert found.scores.dtype == np.float32


@pytest.mark.parametrize("model", ["reranker"], indirect=True)
def test_one_label_is_a_sigmoid(model):
    logit = fake_logits(ids_of(model, "one"), 1)[0]
    assert np.abs(classify(model, "one").scores[0, 0] - 1 / (1 + np.exp(-logit))) < 1e-6


@pytest.mark.parametrize("model", ["dense", "colbert", "splade"], indirect=True)
def test_a_model_without_classes_says_so(model):
    with pytest.raises(UnsupportedTask, match="no classification head"):
        classify(model, "a")


# -- vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m3"])
def test_all_vectors_come_from_one_pass(folders, name):
    with serving(hub.resolve(str(folders[name])), VECTORS) as (model, runtime):
        texts = ("one more guest", "", "room")
        found = encode(model, *texts, outputs=VECTORS)
        assert runtime.num_runs == 1 and runtime.batches[0].outputs == VECTORS
        for i, text in enumerate(texts):
            ids = ids_of(model, text)
            assert np.abs(found.dense[i] - unit(fake_vector(ids, 8))).max() < 1e-6
            assert np.abs(found.multivector[i] - unit(fake_token_vectors(ids, 4)[1:])).max() < 1e-6
            wanted = fake_sparse(ids)
            assert found.sparse[i].token_ids.tolist() == wanted.token_ids.tolist()
            assert np.array_equal(found.sparse[i].weights, wanted.weights)
        assert found.num_tokens == sum(len(ids_of(model, t)) for t in texts)
        alone = encode(model, *texts, outputs=frozenset({OutputType.SPARSE}))
        assert alone.dense is None and alone.multivector is None and len(alone.sparse) == 3


@pytest.mark.parametrize("model", ["colbert"], indirect=True)
def test_token_vectors_of_both_sides(model):
    only = frozenset({OutputType.MULTIVECTOR})
    text = "the hotel, it is never full!"
    (query,) = encode(model, text, outputs=only, input_type="query").multivector
    ids = ids_of(model, text, input_type="query")
    assert len(query) == len(ids) == model.spec.multivector.query_len
    assert np.abs(query - unit(fake_token_vectors(ids, 4))).max() < 1e-6
    (document,) = encode(model, text, outputs=only).multivector
    ids = ids_of(model, text)
    keeps = ~np.isin(ids, model.spec.multivector.skip_ids)
    assert len(document) == keeps.sum() == len(ids) - 2
    assert np.abs(document - unit(fake_token_vectors(ids, 4)[keeps])).max() < 1e-6
    (short,) = encode(model, text, outputs=only, dimensions=2).multivector
    assert np.abs(short - unit(fake_token_vectors(ids, 4)[keeps][:, :2])).max() < 1e-6
    with pytest.raises(InvalidInput, match="1 to 4"):
        encode(model, text, outputs=only, dimensions=5)


@pytest.mark.parametrize(
    ("model", "wanted", "why"),
    [
        ("reranker", OutputType.DENSE, "`embed`: it returns logits and has no pooling to one vector"),
        ("classifier", OutputType.MULTIVECTOR, "it returns logits and has no vector for each token"),
        ("colbert", OutputType.DENSE, "it returns multivector and has no pooling to one vector"),
        ("splade", OutputType.DENSE, "it returns sparse and has no pooling to one vector"),
        ("dense", OutputType.SPARSE, "it returns dense and multivector and has neither a SPLADE head nor"),
    ],
    indirect=["model"],
)
def test_what_a_model_cannot_return_is_refused_by_name(model, wanted, why):
    with pytest.raises(UnsupportedTask, match=r"The model m does not support .* It can: \w+") as refused:
        encode(model, "a", outputs=frozenset({wanted}))
    assert why in refused.value.message


def test_texts_without_tokens_have_empty_vectors(tmp_path):
    spec = hub.resolve(str(tiny_model("static", tmp_path / "m")))
    with serving(spec, VECTORS) as (model, _):
        for texts in (("", "room", ""), ("", "")):
            found = encode(model, *texts, outputs=VECTORS)
            assert found.dense.shape == (len(texts), 8) and not found.dense[0].any()
            assert found.multivector[0].shape == (0, 4) and len(found.sparse[0].token_ids) == 0
        assert rerank(model, "", ("", "room")).scores.shape == (2,)


def test_the_models_own_truncate_dim_is_the_default(folders):
    spec = msgspec.structs.replace(hub.resolve(str(folders["dense"])), truncate_dim=5)
    with serving(spec, OUTPUTS["dense"]) as (model, _):
        only = frozenset({OutputType.DENSE})
        assert encode(model, "a", outputs=only).dense.shape == (1, 5)
        assert encode(model, "a", outputs=only, dimensions=7).dense.shape == (1, 7)


# -- tasks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "others"),
    [
        ("reranker", Task.RERANK, {Task.CLASSIFY}),
        ("classifier", Task.CLASSIFY, set()),
        ("dense", Task.EMBED, {Task.RERANK, Task.MULTI_EMBED}),
        ("m3", Task.EMBED, {Task.RERANK, Task.MULTI_EMBED, Task.SPARSE_EMBED}),
        ("colbert", Task.MULTI_EMBED, {Task.RERANK}),
        ("splade", Task.SPARSE_EMBED, {Task.RERANK}),
    ],
)
def test_a_task_is_overridden_only_by_what_the_model_can_do(folders, name, task, others):
    spec = hub.resolve(str(folders[name]))
    assert spec.task is task and with_task(spec, task) is spec
    for other in Task:
        if other in others:
            assert with_task(spec, other).task is other
        elif other is not task:
            with pytest.raises(UnsupportedTask, match=rf"--task {other}; it can for: {task}"):
                with_task(spec, other)
