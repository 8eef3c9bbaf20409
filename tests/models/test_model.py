"""The Python way in, on the real runtimes with tiny models."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hilbert
from hilbert import Model
from hilbert.errors import InputTooLong, InvalidInput, UnsupportedTask, WeightMismatch
from hilbert.models import local, served
from hilbert.processors import text
from hilbert.testing.models import tiny_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


TEXTS = ["the packed row", "", "a short query is attended", "alone", "the " * 300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("static", tmp_path_factory.mktemp("models") / "static", prompts={"query": "a query: "})


@pytest.fixture(scope="module")
def model(folder):
    with hilbert.Model(str(folder)) as model:
        yield model


@pytest.fixture(scope="module")
def expected(folder):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(folder), device="cpu")
    return lambda texts, **more: reference.encode(texts, convert_to_numpy=True, **more)


def test_vectors_as_sentence_transformers(model, expected):
    vectors = model.embed(TEXTS)
    assert vectors.shape == (5, model.dimensions) and vectors.dtype == np.float32
    assert np.abs(vectors - expected(TEXTS)).max() < 1e-6
    by_name = model.embed(TEXTS, prompt_name="query")
    assert np.abs(by_name - expected(TEXTS, prompt_name="query")).max() < 1e-6
    assert np.array_equal(model.embed(TEXTS, input_type="query"), by_name)
    assert np.array_equal(model.embed(TEXTS, prompt="a query: "), by_name)


def test_one_text_none_and_token_ids(model):
    alone = model.embed("alone")
    assert alone.shape == (1, model.dimensions) and np.allclose(alone, model.embed(TEXTS)[3:4], atol=1e-6)
    assert model.embed([]).shape == (0, model.dimensions)
    assert model.embed([], dimensions=3).shape == (0, 3)
    ids = [5, 6, 7]
    for form in (ids, tuple(ids), np.array(ids)):
        assert np.array_equal(model.embed([form]), model.embed([ids]))


def test_dimensions_and_normalisation(model):
    raw = model.embed(TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(raw[0]) - 1) > 1e-3
    short = model.embed(TEXTS[:1], dimensions=5)
    assert np.abs(short - raw[:1, :5] / np.linalg.norm(raw[:1, :5])).max() < 1e-6


def test_a_long_list_keeps_its_order(model):
    words = ["the", "packed", "row", "query", "alone"]
    texts = [f"{words[i % 5]} {words[i // 5 % 5]} {words[i // 25 % 5]}" for i in range(10_000)]
    vectors = model.embed(texts)
    unique = {text: row for text, row in zip(texts[:125], model.embed(texts[:125]), strict=True)}
    assert max(np.abs(row - unique[text]).max() for text, row in zip(texts, vectors, strict=True)) < 2e-6


def test_texts_that_are_too_long_for_one_request(model, monkeypatch):
    expected = model.embed(TEXTS)
    monkeypatch.setattr(text, "MAX_REQUEST_CHARS", 2000)
    monkeypatch.setattr(local, "_PIECE_CHARS", 1500)
    assert np.array_equal(model.embed([*TEXTS, *TEXTS]), np.concatenate([expected, expected]))
    monkeypatch.setattr(local, "_PIECE_CHARS", 1)
    assert np.array_equal(model.embed(TEXTS), expected)


def test_a_model_that_cannot_be_made_leaves_no_threads(folder, monkeypatch):
    def broken(*arguments: object) -> None:
        assert any(thread.name.startswith(str(folder)) for thread in set(threading.enumerate()) - before)
        raise WeightMismatch("a table of sparse queries that is none")

    before = set(threading.enumerate())
    monkeypatch.setattr(local, "ServedModel", broken)
    with pytest.raises(WeightMismatch, match="that is none"):
        Model(str(folder))
    assert set(threading.enumerate()) <= before


def test_an_error_in_a_long_list_names_its_place(model):
    with pytest.raises(InvalidInput, match=r"input\[9000\].*D800") as refused:
        model.embed(["fine"] * 9000 + ["\ud800"] + ["fine"] * 3000)
    assert refused.value.index == 9000


@pytest.mark.parametrize("bad", [3.5, None, b"bytes", [1.5, "x"], {"a": 1}])
def test_what_is_no_text_is_refused(model, bad):
    with pytest.raises(InvalidInput, match=r"input\[1\]"):
        model.embed(["fine", bad])


def test_refusals_carry_their_type(tmp_path):
    with hilbert.Model(str(tiny_model("static", tmp_path / "m"))) as model:
        with pytest.raises(InvalidInput, match="1 to"):
            model.embed("a", dimensions=10_000)
        with pytest.raises(InvalidInput, match="1 to"):
            model.embed([], dimensions=0)
        with pytest.raises(InvalidInput, match="none"):
            model.embed("a", prompt_name="nope")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "x"}, "engine 'x' is unknown; take auto, openvino, torch, onnx, ctranslate2"),
        ({"dtype": "x"}, "dtype 'x' is unknown; take auto, float32, bfloat16, float16, int8, fp8"),
        ({"device": "cud"}, "device 'cud' is unknown; give auto, cpu, cuda, cuda:1"),
    ],
)
def test_how_to_run_it_must_be_known_even_where_it_changes_nothing(folder, given, words):
    with pytest.raises(InvalidInput, match=words):
        hilbert.Model(str(folder), **given)


def test_from_an_event_loop_and_from_threads_at_once(model):
    wanted = model.embed(TEXTS)

    async def scenario() -> list[np.ndarray]:
        inside = model.embed(TEXTS)  # a notebook's cell runs inside a loop
        assert np.allclose(inside, wanted, atol=1e-6)
        return await asyncio.gather(*[model.aembed(TEXTS) for _ in range(8)])

    assert all(np.allclose(v, wanted, atol=1e-6) for v in asyncio.run(scenario()))
    with ThreadPoolExecutor(8) as pool:
        assert all(np.allclose(v, wanted, atol=1e-6) for v in pool.map(model.embed, [TEXTS] * 16))


def test_a_closed_model_says_so(folder):
    model = hilbert.Model(str(folder))
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.embed("a")


def test_a_script_that_forgets_to_close_ends_cleanly(folder):
    script = f"import hilbert; m = hilbert.Model({str(folder)!r}); print(m.embed(['a']).shape[0])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=60)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, b"1", b"")


def test_the_bare_package_imports_no_server():
    script = (
        "import sys, hilbert; hilbert.__version__; "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('openvino', 'tokenizers', 'uvicorn', 'starlette', 'orjson', 'torch', 'huggingface_hub')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert run.stdout.strip() == b"[]"


@pytest.mark.slow
def test_the_real_model_through_openvino():
    with hilbert.Model(dtype="float32") as model:
        vectors = model.embed(["Hilbert's hotel", "one more guest", ""])
        assert vectors.shape == (3, 384) and model.info.engine in ("openvino", "torch")
        with pytest.raises(InputTooLong, match="256"):
            model.embed("word " * 400, truncate=False)


# -- other tasks, on real tiny models ---------------------------------------------------------------

DOCUMENTS = ["room one", "the hotel is never full", "!?", "room one", "Zimmer frei, " * 60]


def spy(served: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The requests that a method is called with from now on."""
    seen: list[object] = []
    real = getattr(served, name)
    monkeypatch.setattr(served, name, lambda request: seen.append(request) or real(request))
    return seen


@pytest.mark.parametrize("raw_scores", [False, True])
def test_rerank_is_sentence_transformers_rank(tmp_path, cache, raw_scores, monkeypatch):
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model("bert", tmp_path / "m", head="classifier", num_labels=1)
    reference = CrossEncoder(str(folder), device="cpu")
    activation = torch.nn.Identity() if raw_scores else None
    expected = reference.predict([("one room?", d) for d in DOCUMENTS], activation_fn=activation)
    with Model(str(folder), dtype="float32", cache_dir=cache) as model:
        found = model.rerank("one room?", DOCUMENTS, raw_scores=raw_scores)
        assert [r.document for r in found] == [DOCUMENTS[r.index] for r in found]
        scores = [r.score for r in found]
        assert scores == sorted(scores, reverse=True)
        assert np.abs(np.array(scores) - expected[[r.index for r in found]]).max() < 1e-5
        assert model.rerank("one room?", iter(DOCUMENTS), top_n=2, raw_scores=raw_scores) == found[:2]
        assert model.rerank("a", []) == []
        with monkeypatch.context() as patch:
            patch.setattr(local, "_PIECE", 2)
            pieces = spy(model._served, "rerank", patch)
            in_pieces = model.rerank("one room?", DOCUMENTS, raw_scores=raw_scores)
            assert [r.index for r in in_pieces] == [r.index for r in found] and len(pieces) == 3
            assert np.allclose([r.score for r in in_pieces], scores, atol=2e-6)
            best = model.rerank("one room?", DOCUMENTS, top_n=3, raw_scores=raw_scores)
            assert [r.index for r in best] == [r.index for r in found[:3]]
            with pytest.raises(InvalidInput, match=r"documents\[5\].*D800") as refused:
                model.rerank("one room?", [*DOCUMENTS, "\ud800"])
            assert refused.value.index == 5
            with pytest.raises(InvalidInput, match=r"query.*D800"):
                model.rerank("\ud800", DOCUMENTS)
        assert asyncio.run(model.arerank("one room?", DOCUMENTS, raw_scores=raw_scores)) == found
        with pytest.raises(UnsupportedTask, match=r"`embed`.*It can: rerank, classify"):
            model.embed("a")
        for bad in ({"top_n": 0}, {"documents": "text"}, {"documents": ["a", 7]}):
            arguments = {"query": "a", "documents": ["a"]} | bad
            with pytest.raises(InvalidInput):
                model.rerank(**arguments)


def test_classify_is_the_pipeline_of_transformers(tmp_path, cache, monkeypatch):
    from transformers import pipeline

    folder = tiny_model("bert", tmp_path / "m", head="classifier", num_labels=3)
    texts = ["room one", "the hotel is never full", "Zimmer frei, " * 60]
    reference = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    with Model(str(folder), dtype="float32", cache_dir=cache) as model:
        for raw, function in ((False, "softmax"), (True, "none")):
            expected = reference(texts, function_to_apply=function, truncation=True)
            for mine, its in zip(model.classify(texts, raw_scores=raw), expected, strict=True):
                assert [label.label for label in mine] == [row["label"] for row in its]
                assert np.allclose([label.score for label in mine], [row["score"] for row in its], atol=1e-5)
        assert model.classify("one")[0] == asyncio.run(model.aclassify(["one"]))[0]
        whole = model.classify(texts)
        monkeypatch.setattr(local, "_PIECE", 2)
        pieces = spy(model._served, "classify", monkeypatch)
        for mine, its in zip(model.classify(texts), whole, strict=True):
            assert np.allclose([label.score for label in mine], [label.score for label in its], atol=2e-6)
        assert len(pieces) == 2
        with pytest.raises(UnsupportedTask, match="3 labels"):
            model.rerank("a", ["b"])


def test_all_kinds_of_vector_of_one_model(tmp_path, cache, monkeypatch):
    with Model(str(tiny_model("xlm-roberta", tmp_path / "m", head="m3")), cache_dir=cache) as model:
        texts = ["one more guest", "the hotel"]
        found = model.encode(texts, {"dense", "sparse", "multivector"})
        assert np.abs(found.dense - model.embed(texts)).max() < 1e-4
        for one, other in zip(found.sparse, model.embed_sparse(texts), strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
        for one, other in zip(found.multivector, model.embed_multivector(texts), strict=True):
            assert one.shape == other.shape and np.abs(one - other).max() < 1e-4
        monkeypatch.setattr(served, "MAX_TOKEN_NUMBERS", 64 * 100)
        with pytest.raises(InputTooLong, match="may be 6,400"):
            model.embed_multivector(texts * 20)
        monkeypatch.setattr(local, "_PIECE_NUMBERS", 64 * 100 // 16)
        many = model.embed_multivector(texts * 20)
        assert len(many) == 40 and np.abs(many[38] - found.multivector[0]).max() < 1e-4
        assert asyncio.run(model.aembed_sparse(texts))[0].weights.dtype == np.float32
        assert len(asyncio.run(model.aembed_multivector("a"))) == 1
        nothing = model.encode([], {"dense", "sparse"})
        assert nothing.dense.shape == (0, 64) and nothing.sparse == () and nothing.multivector is None
        for outputs in ({"dence"}, set(), {"logits"}):
            with pytest.raises(InvalidInput, match="dense, sparse, multivector"):
                model.encode(texts, outputs)
        for ignored in ({"normalize": True}, {"dimensions": 3}, {"dimensions": 0}):
            with pytest.raises(InvalidInput, match="no meaning for sparse vectors"):
                model.embed_sparse(texts, **ignored)


def test_a_long_list_is_reranked_by_more_token_vectors_than_one_request_may_have(
    tmp_path, cache, monkeypatch
):
    with Model(str(tiny_model("bert", tmp_path / "m", head="colbert")), cache_dir=cache) as model:
        whole = model.rerank("one room?", DOCUMENTS * 4)
        most = model._served.facts.token_dimensions * 300
        monkeypatch.setattr(served, "MAX_TOKEN_NUMBERS", most)
        with pytest.raises(InputTooLong):
            model.rerank("one room?", DOCUMENTS * 4)
        monkeypatch.setattr(local, "_PIECE_NUMBERS", most // 4)
        found = model.rerank("one room?", DOCUMENTS * 4)
        assert [r.index for r in found] == [r.index for r in whole]


def test_a_long_list_is_reranked_though_a_template_repeats_the_query(tmp_path, cache, monkeypatch):
    query, rooms = "one room? " * 20, [f"room {number}" for number in range(40)]
    with Model(str(tiny_model("qwen3", tmp_path / "m", head="logit_score")), cache_dir=cache) as model:
        whole = model.rerank(query, rooms)
        monkeypatch.setattr(text, "MAX_REQUEST_CHARS", 4000)
        monkeypatch.setattr(local, "_PIECE_CHARS", 1000)
        found = model.rerank(query, rooms)
        assert [r.index for r in found] == [r.index for r in whole]


def test_a_task_that_the_model_has_not_is_refused(tmp_path, cache):
    folder = tiny_model("bert", tmp_path / "m", head="classifier", num_labels=2)
    with pytest.raises(UnsupportedTask, match="it can for: classify"):
        Model(str(folder), task="embed", cache_dir=cache)
