"""What else sentence-transformers 6 writes: language models that rerank, routers, sparse codes, templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hilbert import Model
from hilbert.core import Batch, ClassifierModule, LogitScoreModule, OutputType, Sequence, Task
from hilbert.engine import LocalEngine
from hilbert.errors import ModelUnavailable, UnsupportedArchitecture, UnsupportedTask
from hilbert.hub import resolve
from hilbert.processors import TextProcessor, pair_processor
from hilbert.runtimes import RuntimeSettings, load_runtime
from hilbert.testing.models import tiny_model

QUERY = "where is a free room?"
LONG = "one more guest moves on, " * 40
DOCUMENTS = ("A hotel with many rooms.", "", " two spaces  here ", "yes", LONG)
ENGINES = ("torch", "openvino")
INSTRUCTION = "a house for the summer"


def settings(engine: str, root: Path, dtype: str = "float32") -> RuntimeSettings:
    return RuntimeSettings(engine=engine, dtype=dtype, device="cpu", cache_dir=str(root / "cache"))


def model_of(folder: Path, engine: str, **more: Any) -> Model:
    cache = str(folder.parent / "cache")
    return Model(str(folder), engine=engine, dtype="float32", device="cpu", cache_dir=cache, **more)


def close(ours: Any, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, float(np.abs(theirs).max())), rtol=0)


def in_order(hits: Any) -> list[float]:
    return [hit.score for hit in sorted(hits, key=lambda hit: hit.index)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma"])
def test_language_models_rerank_as_cross_encoder(family: str, engine: str, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model(family, tmp_path / "model", head="logit_score")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    with model_of(folder, engine) as model:
        assert model.spec.task is Task.RERANK and isinstance(model.spec.modules[0], LogitScoreModule)
        assert model.info.program == "packed" and model.info.num_labels == 1
        close(
            in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True)), reference.predict(pairs, batch_size=1)
        )
        told = reference.predict(pairs, batch_size=1, prompt=INSTRUCTION)
        close(in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True, prompt=INSTRUCTION)), told)
        with pytest.raises(UnsupportedTask, match="pairs of a query and a document"):
            model.classify(["alone"])
    reference.activation_fn = torch.nn.Sigmoid()
    with model_of(folder, engine) as model:
        close(in_order(model.rerank(QUERY, DOCUMENTS)), reference.predict(pairs, batch_size=1))


def test_one_answer_is_its_logit(tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model("qwen3", tmp_path / "model", head="logit_score")
    (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 77, "false_token_id": null}')
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    with model_of(folder, "torch") as model:
        assert model.spec.modules == (LogitScoreModule(77),)
        expected = reference.predict([(QUERY, document) for document in DOCUMENTS], batch_size=1)
        close(in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True)), expected)


def test_time_and_memory_do_not_depend_on_the_vocabulary(tmp_path: Path) -> None:
    """Of 60,000 rows of the decoder the program keeps two."""
    import torch

    from hilbert.programs.build import build

    folder = tiny_model("qwen3", tmp_path / "model", head="logit_score", vocab_size=60_000)
    head = build(resolve(str(folder)), torch.float32, 4).graph.program.heads
    assert sum(p.numel() for p in head.parameters()) == 2 * 64


@pytest.mark.parametrize("template", [True, False])
def test_a_bare_language_model_answers_yes_or_no(template: bool, tmp_path: Path) -> None:
    """Without modules.json: a reranker where the template says so, or when it is asked to be one."""
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model("gemma", tmp_path / "model", head="logit_score", layout="plain")
    if not template:
        (folder / "chat_template.jinja").unlink()
    spec = resolve(str(folder))
    assert spec.task is (Task.RERANK if template else Task.EMBED)
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    with model_of(folder, "torch", task="rerank") as model:
        expected = reference.predict([(QUERY, document) for document in DOCUMENTS], batch_size=1)
        close(in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True)), expected)


def test_a_template_without_place_for_a_pair_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("qwen3", tmp_path / "model", head="logit_score")
    chat = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(chat)
    with pytest.raises(ModelUnavailable, match="no place for messages of the roles 'query' and 'document'"):
        pair_processor(TextProcessor(resolve(str(folder))))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnavailable, match=r"add chat_template\.jinja"):
        resolve(str(folder))


@pytest.mark.parametrize("engine", ENGINES)
def test_cross_encoders_that_pool(engine: str, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    folder = tiny_model("modernbert", tmp_path / "model", head="score")
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    with model_of(folder, engine) as model:
        assert model.spec.modules[-1] == ClassifierModule(1, is_own=False)
        assert model.info.outputs == {OutputType.LOGITS} and model.info.program == "packed"
        expected = reference.predict([(QUERY, document) for document in DOCUMENTS], batch_size=1)
        close(in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True)), expected)


def dense_rows(vectors: Any, size: int) -> np.ndarray:
    rows = np.zeros((len(vectors), size), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[vector.token_ids] = vector.weights
    return rows


@pytest.mark.parametrize("engine", ENGINES)
def test_sparse_codes(engine: str, tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = tiny_model("bert", tmp_path / "model", head="csr")
    texts = [d for d in DOCUMENTS if d]
    expected = SparseEncoder(str(folder), device="cpu").encode(texts, batch_size=1).to_dense().numpy()
    with model_of(folder, engine) as model:
        assert model.spec.task is Task.SPARSE_EMBED and model.spec.sparse_dimensions == 256
        ours = dense_rows(model.embed_sparse(texts), 256)
    assert (np.count_nonzero(ours, axis=1) <= 12).all()
    close(ours, expected)


def test_splade_as_sentence_transformers_5_saved_it(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = tiny_model("distilbert", tmp_path / "model", head="splade")
    package = "sentence_transformers.sparse_encoder.models"
    names = {"": "MLMTransformer", "1_SpladePooling": "SpladePooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{name}"}
        for i, (path, name) in enumerate(names.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": false}')
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": 500}
    (folder / "1_SpladePooling" / "config.json").write_text(json.dumps(pooling))
    theirs = SparseEncoder(str(folder), device="cpu")
    with model_of(folder, "torch") as model:
        assert model.info.program == "packed" and model.spec.max_model_len == 100
        ours = dense_rows(model.embed_sparse([QUERY, LONG]), model.spec.vocab_size)
    close(ours, theirs.encode([QUERY, LONG], batch_size=1).to_dense().numpy())


def test_a_bare_masked_language_model_is_splade_when_asked_to(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = tiny_model("bert", tmp_path / "model", head="splade", layout="plain")
    theirs = SparseEncoder(str(folder), device="cpu")
    with model_of(folder, "torch", task="sparse_embed") as model:
        assert model.info.program == "packed" and model.spec.task is Task.SPARSE_EMBED
        ours = dense_rows(model.embed_sparse([QUERY, LONG]), model.spec.vocab_size)
        close(ours, theirs.encode([QUERY, LONG], batch_size=1).to_dense().numpy())
        with pytest.raises(UnsupportedTask, match="it returns sparse and has no pooling"):
            model.embed([QUERY])
    with model_of(folder, "torch") as model:
        assert model.spec.task is Task.EMBED
        with pytest.raises(UnsupportedTask, match="with --task sparse_embed its masked-language head"):
            model.embed_sparse([QUERY])


def test_only_the_largest_weights_where_the_repository_says_so(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = tiny_model("bert", tmp_path / "model", head="splade")
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_active_dims": 7}))
    expected = SparseEncoder(str(folder), device="cpu").encode([QUERY, LONG], batch_size=1)
    with model_of(folder, "torch") as model:
        ours = dense_rows(model.embed_sparse([QUERY, LONG]), model.spec.vocab_size)
    assert np.count_nonzero(ours, axis=1).tolist() == [7, 7]
    close(ours, expected.to_dense().numpy())


@pytest.mark.parametrize("engine", ENGINES)
def test_queries_without_inference(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SparseEncoder

    prompts = {"query": "the ", "document": "a "}
    folder = tiny_model("bert", tmp_path / "model", head="routed", prompts=prompts)
    reference = SparseEncoder(str(folder), device="cpu")
    texts = [d for d in DOCUMENTS if d]
    queries = reference.encode_query([QUERY, LONG], batch_size=1).to_dense().numpy()
    documents = reference.encode_document(texts, batch_size=1).to_dense().numpy()
    with model_of(folder, engine) as model:
        size = model.spec.vocab_size
        assert model.info.program == "packed" and model.spec.static_queries is not None
        close(dense_rows(model.embed_sparse(texts, input_type="document"), size), documents)
        close(dense_rows(model.embed_sparse(texts, prompt="a "), size), documents)
        close(in_order(model.rerank(QUERY, texts)), documents @ queries[0])
        monkeypatch.setattr(LocalEngine, "run", None)  # from here on nothing is inferred
        result = model.encode([QUERY, LONG], {"sparse"}, input_type="query")
        close(dense_rows(result.sparse, size), queries)
        assert result.num_tokens == sum(
            reference[0].sub_modules["query"][0].preprocess([f"the {t}"])["input_ids"].numel()
            for t in (QUERY, LONG)
        )


@pytest.mark.parametrize("attend", [True, False])
def test_queries_are_filled_to_a_least_length(attend: bool, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    folder = tiny_model("bert", tmp_path / "model", head="colbert")
    expansion = {"strategy": "min", "attend": attend, "length": 24}
    change(folder / "sentence_bert_config.json", query_expansion=expansion)
    reference = MultiVectorEncoder(str(folder), device="cpu")
    queries = ["one", QUERY, LONG]
    expected = reference.encode_query(queries, batch_size=1)
    with model_of(folder, "torch") as model:
        assert model.info.program == "packed"
        for ours, theirs in zip(model.embed_multivector(queries, input_type="query"), expected, strict=True):
            close(ours, theirs)
    assert [len(rows) for rows in expected] == [24, 24, 128]


def test_embeddings_through_a_chat_template(tmp_path: Path) -> None:
    """A bare language model with a template: sentence-transformers makes every text the user's message."""
    from sentence_transformers import SentenceTransformer

    folder = tiny_model("qwen3", tmp_path / "model", layout="plain")
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    reference = SentenceTransformer(str(folder), device="cpu")
    texts = [d for d in DOCUMENTS if d]
    with model_of(folder, "torch") as model:
        close(model.embed(texts), reference.encode(texts, batch_size=1))
        close(model.embed(texts, prompt="find it"), reference.encode(texts, batch_size=1, prompt="find it"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def leave_to_sentence_transformers(folder: Path) -> Path:
    """An argument for the tokenizer that changes nothing here, and that Hilbert knows nothing of."""
    change(folder / "sentence_bert_config.json", processor_kwargs={"clean_up_tokenization_spaces": False})
    return folder


@pytest.mark.parametrize(("family", "head"), [("bert", "score"), ("qwen3", "logit_score")])
def test_the_last_resort_reranks(family: str, head: str, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    folder = leave_to_sentence_transformers(tiny_model(family, tmp_path / "model", head=head))
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = reference.predict([(QUERY, document) for document in DOCUMENTS], batch_size=1)
    with model_of(folder, "openvino") as model:
        assert model.info.program == "sentence-transformers" and model.spec.task is Task.RERANK
        close(in_order(model.rerank(QUERY, DOCUMENTS, raw_scores=True)), expected)


def test_the_last_resort_makes_sparse_vectors(tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = leave_to_sentence_transformers(tiny_model("bert", tmp_path / "model", head="splade"))
    texts = [d for d in DOCUMENTS if d]
    expected = SparseEncoder(str(folder), device="cpu").encode(texts, batch_size=1).to_dense().numpy()
    with model_of(folder, "openvino") as model:
        assert model.info.program == "sentence-transformers" and model.spec.task is Task.SPARSE_EMBED
        close(dense_rows(model.embed_sparse(texts), model.spec.vocab_size), expected)


def test_the_last_resort_makes_token_vectors(tmp_path: Path) -> None:
    """A projection with an activation is none of ours; prompts, filling and skip list still are."""
    from sentence_transformers import MultiVectorEncoder

    prompts = {"document": "a ", "query": "is "}
    folder = tiny_model("bert", tmp_path / "model", head="colbert", attend=False, prompts=prompts)
    change(folder / "1_Dense" / "config.json", activation_function="torch.nn.modules.activation.Tanh")
    change(
        folder / "2_MultiVectorMask" / "config.json",
        skiplist_words=["a", "?"],
        skiplist_tasks=["query", "document"],
    )
    reference = MultiVectorEncoder(str(folder), device="cpu")
    texts = ["a short one, with marks?", *(d for d in DOCUMENTS if d)]
    with model_of(folder, "openvino") as model:
        assert model.info.program == "sentence-transformers" and model.spec.task is Task.MULTI_EMBED
        for side, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
            ours = model.embed_multivector(texts, input_type=side)
            for mine, theirs in zip(ours, encode(texts, batch_size=1), strict=True):
                close(mine, theirs)


def test_the_last_resort_refuses_what_it_cannot_tell_apart(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model", head="routed")
    spec = resolve(str(folder))
    odd = msgspec.structs.replace(spec, kind="other", reason="a test")
    with pytest.raises(UnsupportedArchitecture, match="queries and documents through different modules"):
        load_runtime(odd, settings("openvino", tmp_path))
    picky = tiny_model("bert", tmp_path / "picky", head="colbert")
    change(picky / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[7, 8])
    with pytest.raises(UnsupportedArchitecture, match="keeps the token vectors of some ids only"):
        load_runtime(resolve(str(picky)), settings("openvino", tmp_path))
    old = tiny_model("bert", tmp_path / "old", head="colbert")
    vocabulary = json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]
    (old / "tokenizer.json").unlink()
    (old / "vocab.txt").write_text("\n".join(vocabulary))
    with pytest.raises(UnsupportedArchitecture, match=r"queries from documents is not known: its tokenizer"):
        load_runtime(resolve(str(old)), settings("openvino", tmp_path))


def test_scores_are_computed_in_float32_in_a_bf16_graph(tmp_path: Path) -> None:
    """Two rows of weights that are the same in bf16: their logits differ by what float32 alone can tell."""
    from safetensors.numpy import load_file, save_file

    # 19 labels are more than are scored together.
    folder = tiny_model("bert", tmp_path / "model", head="classifier", num_labels=19)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    random = np.random.default_rng(0)
    tensors["classifier.weight"][:2] = 1 + np.float32(2**-9) * random.integers(0, 2, (2, 64))
    save_file(tensors, file, {"format": "pt"})
    spec = resolve(str(folder))
    ids = [random.integers(5, 200, n).astype(np.int32) for n in (3, 9, 20, 33)]
    batch = Batch(tuple(Sequence(0, i, x) for i, x in enumerate(ids)), frozenset({OutputType.LOGITS}))
    differences = {}
    for dtype in ("float32", "bfloat16"):
        runtime = load_runtime(spec, settings("openvino", tmp_path, dtype))
        logits = runtime.run(runtime.prepare(batch)).logits
        assert logits is not None and (runtime.info.dtype, runtime.info.program) == (dtype, "packed")
        differences[dtype] = logits[:, 0] - logits[:, 1]
    exact = differences["float32"]
    assert np.abs(exact).min() > 1e-4
    assert np.abs(differences["bfloat16"] - exact).max() < 0.15 * np.abs(exact).max()


def test_what_nobody_can_load_is_refused_in_few_words(tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model")
    change(folder / "config.json", model_type="colqwen2", architectures=["Unheard"])
    with pytest.raises(UnsupportedArchitecture, match="transformers cannot load it: Unrecognized") as caught:
        Model(str(folder), device="cpu")
    assert "nor can sentence-transformers" in caught.value.message and len(caught.value.message) < 1000
