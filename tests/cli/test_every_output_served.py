"""Every kind of model behind one real server, asked over HTTP, beside the library that it comes from.

What is compared elsewhere runtime by runtime is seen here from outside: the routes, the dialects' shapes and
the numbers. All models are tiny and random; they are traced in this process and served from the cache.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from cli_house import NO_TLS, Server
from PIL import Image

from hilbert import Model
from hilbert.testing.models import tiny_model
from hilbert.testing.towers import tiny_dual, tiny_retriever
from hilbert.testing.tracing import traced_here

pytestmark = pytest.mark.slow

QUERY = "where is a free room?"
TEXTS = ["A hotel with many rooms.", "a", "two  spaces, and marks!", "one more guest moves on, " * 40]
CROSS_ENCODERS = ("bert", "xlm-roberta", "modernbert", "deberta-v2", "electra", "qwen2", "qwen3")
LANGUAGE_MODELS = ("qwen2", "qwen3", "gemma")
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "no-type": None}
LABELS = {0: "joy", 1: "anger", 2: "neutral"}
PROMPTS = {"document": "a ", "query": "is "}


def classifier(folder: Path, problem: str | None) -> Path:
    more = {} if problem is None else {"problem_type": problem}
    return tiny_model("bert", folder, head="classifier", id2label=LABELS, **more)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "dense": lambda folder: tiny_model("bert", folder),
    "splade": lambda folder: tiny_model("distilbert", folder, head="splade"),
    "routed": lambda folder: tiny_model("bert", folder, head="routed", prompts=PROMPTS),
    "m3": lambda folder: tiny_model("xlm-roberta", folder, head="m3"),
    "colbert": lambda folder: tiny_model("bert", folder, head="colbert", prompts=PROMPTS),
    **{f"ce-{f}": lambda d, f=f: tiny_model(f, d, head="classifier", num_labels=1) for f in CROSS_ENCODERS},
    **{f"llm-{f}": lambda folder, f=f: tiny_model(f, folder, head="logit_score") for f in LANGUAGE_MODELS},
    **{f"classes-{n}": lambda folder, p=p: classifier(folder, p) for n, p in PROBLEMS.items()},
    "clip": lambda folder: tiny_dual("clip", folder),
    "siglip": lambda folder: tiny_dual("siglip", folder),
    "st-clip": lambda folder: tiny_dual("clip", folder, layout="clip-module"),
    "chinese-clip": lambda folder: tiny_dual("chinese_clip", folder),
    "colqwen2": lambda folder: tiny_retriever("colqwen2", folder),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], cache: str) -> Iterator[Server]:
    flags = ["--dtype", "float32", "--cache-dir", cache, "--port", "0"]
    with traced_here():
        for name, folder in folders.items():
            Model(str(folder), dtype="float32", device="cpu", cache_dir=cache).close()
            flags += ["-m", str(folder), "--served-model-name", name]
    server = Server(("serve", *flags), {}, wait=True)
    yield server
    server.stop()


def ask(server: Server, route: str, status: int = 200, **body: Any) -> Any:
    reply = httpx2.post(server.url + route, json=body, timeout=60, verify=NO_TLS)
    assert reply.status_code == status, reply.text
    return reply.json()


def loaded(kind: str, folder: Path, **more: Any) -> Any:
    import sentence_transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(sentence_transformers, kind)(str(folder), device="cpu", **more)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, float(np.abs(theirs).max()))


def unit(rows: Any) -> np.ndarray:
    return np.asarray(rows) / np.linalg.norm(rows, axis=-1, keepdims=True)


def same_weights(items: list[dict[str, Any]], theirs: Any) -> None:
    for item, row in zip(items, theirs.to_dense().numpy(), strict=True):
        ids = np.flatnonzero(row)
        assert item["object"] == "sparse_embedding" and list(map(int, item["embedding"])) == ids.tolist()
        close(list(item["embedding"].values()), row[ids])


def test_splade(server: Server, folders: dict[str, Path]) -> None:
    theirs = loaded("SparseEncoder", folders["splade"])
    for route in ("/embeddings_sparse", "/v1/embeddings_sparse"):
        body = ask(server, route, model="splade", input=TEXTS)
        same_weights(body["data"], theirs.encode(TEXTS, batch_size=1))
    hits = ask(server, "/v1/rerank", model="splade", query=QUERY, documents=TEXTS)["results"]
    scores = theirs.similarity(theirs.encode([QUERY]), theirs.encode(TEXTS, batch_size=1)).to_dense().numpy()
    close([hit["relevance_score"] for hit in hits], np.sort(scores[0])[::-1])


def test_queries_without_inference(server: Server, folders: dict[str, Path]) -> None:
    theirs = loaded("SparseEncoder", folders["routed"])
    for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        batches = server.metric("hilbert_batch_sequences_count")
        body = ask(server, "/v1/embeddings_sparse", model="routed", input=TEXTS, input_type=side)
        same_weights(body["data"], encode(TEXTS, batch_size=1))
        assert (server.metric("hilbert_batch_sequences_count") > batches) == (side == "document")


def test_bge_m3_in_one_pass(server: Server, folders: dict[str, Path]) -> None:
    """Source: FlagEmbedding's BGEM3 (relu(w·h), the maximum per token; token vectors without CLS)."""
    import torch

    theirs = loaded("SentenceTransformer", folders["m3"])
    batches = server.metric("hilbert_batch_sequences_count")
    outputs = ["dense", "sparse", "multivector"]
    items = ask(
        server, "/v1/encode/m3", items=[{"text": t} for t in TEXTS], params={"output_types": outputs}
    )["items"]
    assert server.metric("hilbert_batch_sequences_count") == batches + 1
    sparse, vectors = (
        torch.load(folders["m3"] / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")
    )
    for text, item in zip(TEXTS, items, strict=True):
        hidden = theirs.encode(text, output_value="token_embeddings").numpy()
        ids = theirs.tokenize([text])["input_ids"][0].tolist()
        weights = np.maximum(hidden @ sparse["weight"].numpy().T + sparse["bias"].numpy(), 0)[:, 0]
        expected: dict[int, float] = {}
        for token, weight in zip(ids, weights.tolist(), strict=True):
            if token > 3 and weight > 0:
                expected[token] = max(weight, expected.get(token, 0.0))
        assert item["sparse"]["indices"] == sorted(expected)
        close(item["sparse"]["values"], [expected[i] for i in sorted(expected)])
        close(item["dense"]["values"], theirs.encode(text))
        rows = hidden @ vectors["weight"].numpy().T + vectors["bias"].numpy()
        close(item["multivector"]["values"], unit(rows[1:]))
    body = ask(server, "/v1/embeddings", model="m3", input=TEXTS)["data"]
    close([row["embedding"] for row in body], theirs.encode(TEXTS, batch_size=1))
    for route in ("/embeddings/colbert", "/v1/embeddings/colbert"):
        whole = ask(server, route, model="m3", input=TEXTS)["data"]
        coded = ask(server, route, model="m3", input=TEXTS, encoding_format="base64")["data"]
        for one, other, item in zip(whole, coded, items, strict=True):
            assert one["shape"] == other["shape"] == list(np.shape(one["embedding"]))
            close(one["embedding"], item["multivector"]["values"])
            raw = np.frombuffer(base64.b64decode(other["embedding"]), "<f4").reshape(other["shape"])
            close(raw, one["embedding"])


def test_late_interaction(server: Server, folders: dict[str, Path]) -> None:
    theirs = loaded("MultiVectorEncoder", folders["colbert"])
    for route in ("/v1/embeddings", "/embeddings", "/v1/embeddings/colbert"):
        for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
            data = ask(server, route, model="colbert", input=TEXTS, input_type=side)["data"]
            for item, rows in zip(data, encode(TEXTS, batch_size=1), strict=True):
                assert item["shape"] == list(rows.shape)
                close(item["embedding"], rows)
    hits = ask(server, "/rerank", model="colbert", query=QUERY, documents=TEXTS)["results"]
    (query,) = theirs.encode_query([QUERY])
    documents = theirs.encode_document(TEXTS, batch_size=1)
    scores = [np.max(np.asarray(query) @ np.asarray(d).T, axis=1).mean() for d in documents]
    assert [hit["index"] for hit in hits] == np.argsort(-np.array(scores)).tolist()
    close([hit["relevance_score"] for hit in hits], np.sort(scores)[::-1])


@pytest.mark.parametrize("name", [n for n in BUILDERS if n.startswith(("ce-", "llm-"))])
def test_rerankers(server: Server, folders: dict[str, Path], name: str) -> None:
    import torch

    theirs = loaded("CrossEncoder", folders[name], activation_fn=torch.nn.Identity())
    logits = theirs.predict([(QUERY, text) for text in TEXTS], batch_size=1)
    body: dict[str, Any] = {"model": name, "query": QUERY, "documents": TEXTS}
    for raw, wanted in ((True, logits), (False, 1 / (1 + np.exp(-logits)))):
        order = np.argsort(-wanted, kind="stable")
        for route, documents in (("/rerank", TEXTS), ("/v1/rerank", [{"text": t} for t in TEXTS])):
            asked = body | {"documents": documents, "raw_scores": raw, "return_documents": True}
            hits = ask(server, route, **asked)["results"]
            assert [hit["index"] for hit in hits] == order.tolist()
            close([hit["relevance_score"] for hit in hits], wanted[order])
            shown = [hit["document"] for hit in hits]
            assert shown == [documents[i] for i in order]
            assert ask(server, route, **asked, top_n=2)["results"] == hits[:2]


@pytest.mark.parametrize("name", PROBLEMS)
def test_classifiers(server: Server, folders: dict[str, Path], name: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = folders[f"classes-{name}"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        tokens = [tokenizer(t, truncation=True, max_length=128, return_tensors="pt") for t in TEXTS]
        logits = torch.cat([model(**one).logits for one in tokens])
    scores = logits.sigmoid() if name == "multi" else logits.softmax(-1)
    for route in ("/classify", "/v1/classify"):
        for raw, wanted in ((False, scores.numpy()), (True, logits.numpy())):
            body = ask(server, route, model=f"classes-{name}", input=TEXTS, raw_scores=raw)
            for labels, row in zip(body["data"], wanted, strict=True):
                assert [x["label"] for x in labels] == [LABELS[i] for i in np.argsort(-row)]
                close([x["score"] for x in labels], np.sort(row)[::-1])


def picture(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


PICTURES = [picture(56, 84), picture(40, 33)]


@pytest.mark.parametrize("name", ["clip", "siglip", "st-clip", "chinese-clip"])
def test_images_and_texts_in_one_space(server: Server, folders: dict[str, Path], name: str) -> None:
    theirs = loaded("SentenceTransformer", folders[name])
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in PICTURES]
    images = unit(theirs.encode(opened, batch_size=1))
    # SigLIP sees its padding, which SentenceTransformer leaves out of a lone text.
    texts = [] if name == "siglip" else TEXTS[:2]
    expected = [*unit(theirs.encode(texts, batch_size=1)), *images] if texts else images
    given = [*texts, *map(data_uri, PICTURES)]
    for route in ("/v1/embeddings", "/embeddings"):
        data = ask(server, route, model=name, input=given)["data"]
        close([item["embedding"] for item in data], expected, 1e-4)
        bare = [base64.b64encode(data).decode() for data in PICTURES]
        data = ask(server, route, model=name, input=bare, modality="image")["data"]
        close([item["embedding"] for item in data], images, 1e-4)
    objects = [{"type": "image_url", "image_url": {"url": data_uri(data)}} for data in PICTURES]
    data = ask(server, "/v1/embeddings", model=name, input=objects)["data"]
    close([item["embedding"] for item in data], images, 1e-4)


def test_pages_and_questions(server: Server, folders: dict[str, Path]) -> None:
    theirs = loaded("MultiVectorEncoder", folders["colqwen2"])
    pages = theirs.encode_document([Image.open(io.BytesIO(data)) for data in PICTURES], batch_size=1)
    (question,) = theirs.encode_query([QUERY])
    given = [QUERY, *map(data_uri, PICTURES)]
    for item, rows in zip(
        ask(server, "/v1/embeddings", model="colqwen2", input=given)["data"], [question, *pages], strict=True
    ):
        assert item["shape"] == list(rows.shape)
        close(item["embedding"], rows, 1e-4)
    refused = ask(server, "/v1/rerank", 400, model="colqwen2", query=QUERY, documents=["a text"])
    assert "its documents are images" in refused["message"]


def test_small_numbers_come_after_dimensions(server: Server, folders: dict[str, Path]) -> None:
    full = loaded("SentenceTransformer", folders["dense"]).encode(TEXTS, batch_size=1)
    short = unit(full[:, :32]).astype(np.float32)
    levels = 127 * short / np.abs(short).max(axis=1, keepdims=True)
    bits = np.packbits(short > 0, axis=1)
    expected = {
        "float32": (short, 1e-5),
        "float16": (short.astype(np.float16).astype(np.float32), 1e-3),
        "int8": (np.round(levels), 1.001),
        "uint8": (np.round(levels) + 128, 1.001),
        "ubinary": (bits, 0),
        "binary": (bits.astype(np.int16) - 128, 0),
    }
    for dtype, (rows, tolerance) in expected.items():
        asked = {"model": "dense", "input": TEXTS, "dimensions": 32, "output_dtype": dtype}
        found = [item["embedding"] for item in ask(server, "/v1/embeddings", **asked)["data"]]
        assert np.abs(np.array(found, np.float64) - rows).max() <= tolerance, dtype


def test_one_label_reranks_and_more_classify(server: Server) -> None:
    cards = {card["id"]: card for card in server.get("/v1/models").json()["data"]}
    tasks = {"ce-bert": "rerank", "classes-single": "classify", "splade": "sparse_embed", "dense": "embed"}
    assert {name: cards[name]["task"] for name in tasks} == tasks


LACKING = [
    ("/v1/embeddings_sparse", "dense", {"input": "a"}, "neither a SPLADE head nor bge-m3's sparse_linear.pt"),
    ("/v1/embeddings", "splade", {"input": "a"}, "it returns sparse and has no pooling to one vector"),
    ("/v1/embeddings/colbert", "clip", {"input": "a"}, "it returns dense and has no vector for each token"),
    ("/v1/embeddings", "ce-bert", {"input": "a"}, "it returns logits and has no pooling"),
    ("/v1/classify", "llm-qwen3", {"input": "a"}, "it scores pairs of a query and a document"),
    ("/v1/classify", "dense", {"input": "a"}, "no classification head"),
    ("/v1/rerank", "classes-multi", {"query": "a", "documents": ["b"]}, "it scores 3 labels"),
    ("/v1/embeddings_sparse", "chinese-clip", {"input": "a"}, "sentence-transformers' SentenceTransformer"),
]


@pytest.mark.parametrize(("route", "name", "body", "why"), LACKING, ids=range(len(LACKING)))
def test_what_a_model_lacks_is_told_with_what_it_has(
    server: Server, route: str, name: str, body: dict[str, Any], why: str
) -> None:
    message = ask(server, route, 400, model=name, **body)["error"]["message"]
    assert message.startswith(f"The model {name} does not support `") and why in message
    assert "It can: " in message


# Per engine, the numbers that it computes in and how far it may be from the library's.
ENGINES = {"onnx": ("float32", 1e-5), "ctranslate2": ("float32", 1e-5), "openvino": ("int8", 0.2)}


@pytest.mark.parametrize("engine", ENGINES)
def test_other_engines_and_eight_bits(
    start: Callable[..., Server], folders: dict[str, Path], cache: str, engine: str
) -> None:
    dtype, tolerance = ENGINES[engine]
    names = ["dense", "m3"] if engine == "ctranslate2" else ["dense", "m3", "splade", "ce-bert"]
    flags = ["--engine", engine, "--dtype", dtype, "--cache-dir", cache]
    with traced_here():
        for name in names:
            model = Model(str(folders[name]), engine=engine, dtype=dtype, device="cpu", cache_dir=cache)
            assert (model.info.engine, model.info.dtype) == (engine, dtype)
            model.close()
            flags += ["-m", str(folders[name]), "--served-model-name", name]
    server = start(*flags)
    for name in ("dense", "m3"):
        rows = [item["embedding"] for item in ask(server, "/v1/embeddings", model=name, input=TEXTS)["data"]]
        close(rows, loaded("SentenceTransformer", folders[name]).encode(TEXTS, batch_size=1), tolerance)
    if engine == "ctranslate2":
        told = ask(server, "/v1/embeddings_sparse", 400, model="m3", input=TEXTS)["error"]["message"]
        assert "engine ctranslate2 does not return sparse; take --engine openvino or torch or onnx" in told
        return
    hits = ask(server, "/rerank", model="ce-bert", query=QUERY, documents=TEXTS)["results"]
    theirs = loaded("CrossEncoder", folders["ce-bert"]).predict([(QUERY, t) for t in TEXTS], batch_size=1)
    close([hit["relevance_score"] for hit in sorted(hits, key=lambda hit: hit["index"])], theirs, tolerance)
    if dtype == "float32":
        body = ask(server, "/v1/embeddings_sparse", model="splade", input=TEXTS)
        same_weights(body["data"], loaded("SparseEncoder", folders["splade"]).encode(TEXTS, batch_size=1))
