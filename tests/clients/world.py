"""What the clients meet: two servers in processes of their own, and what they should answer.

Both serve the same seven models. `open` asks for no key. `guarded` asks for one and lets one request at a
time in for each model, so that a second one meets 429.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from gliner import GLiNER
from PIL import Image

import hilbert
from hilbert.testing.extractors import tiny_extractor
from hilbert.testing.models import tiny_model
from hilbert.testing.towers import tiny_dual

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_house import Server

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
KEY = "tok_the_right_one"
TEXTS = [
    "Hilbert's hotel is full, and takes one more guest.",
    "Who moves to which room?",
    "Every guest moves from room n to room n + 1.",
    "ünïcode: 北京 🏨",
]
QUERY = "Where is Aarhus?"
DOCUMENTS = ["Paris is in France.", "Aarhus lies in Jutland.", "A city in Denmark: Aarhus.", "Bananas."]
LABELS = {0: "anger", 1: "joy", 2: "sadness"}
KINDS = ["person", "place"]


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The servers; the file says where they are and what they should answer."""
    folder.mkdir(parents=True, exist_ok=True)
    cache, models = str(folder / "cache"), _models(folder / "models")
    images = _images(folder)
    np.savez(folder / "expected.npz", **_expected(models, images, cache))
    config, keys = folder / "hilbert.yaml", folder / "keys.txt"
    keys.write_text(f"{KEY} # tests\n")
    config.write_text(yaml.safe_dump({"models": _entries(models), "cache_dir": cache}))
    with ExitStack() as stack:
        common = ("serve", "--config", str(config), "--port", "0", "--runpod-api")
        is_open = _server(stack, common)
        guarded = _server(stack, (*common, "--keys-file", str(keys), "--max-concurrent-requests", "1"))
        told = {
            "open": is_open.url,
            "guarded": guarded.url,
            "key": KEY,
            "texts": TEXTS,
            "query": QUERY,
            "documents": DOCUMENTS,
            "labels": list(LABELS.values()),
            "kinds": KINDS,
            "images": [str(path) for path in images],
            "folders": {name: str(path) for name, path in models.items()},
            "cache": cache,
        }
        file = folder / "world.json"
        file.write_text(json.dumps(told))
        yield file


def _server(stack: ExitStack, argv: tuple[str, ...]) -> Server:
    server = Server(argv, {}, wait=True)
    stack.callback(server.stop)
    return server


def _models(folder: Path) -> dict[str, Path]:
    """Name → folder of the models that are made here."""
    return {
        "reranker": tiny_model("bert", folder / "reranker", head="classifier", num_labels=1),
        "classifier": tiny_model(
            "bert",
            folder / "classifier",
            head="classifier",
            num_labels=3,
            id2label=LABELS,
            label2id={label: index for index, label in LABELS.items()},
        ),
        "splade": tiny_model("bert", folder / "splade", head="splade"),
        "m3": tiny_model("xlm-roberta", folder / "m3", head="m3"),
        "clip": tiny_dual("clip", folder / "clip"),
        "gliner": tiny_extractor(folder / "gliner"),
    }


def _entries(models: dict[str, Path]) -> list[dict[str, str]]:
    return [
        {"id": BUNDLED, "name": "minilm", "prefix": "/minilm"},
        *({"id": str(path), "name": name, "prefix": f"/{name}"} for name, path in models.items()),
    ]


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / "one.png", folder / "two.png"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return paths


def _expected(models: dict[str, Path], images: list[Path], cache: str) -> dict[str, Any]:
    """What the Python API answers, by name."""
    found: dict[str, Any] = {}
    with hilbert.Model(BUNDLED, cache_dir=cache) as model:
        found["dense"] = model.embed(TEXTS)
        found["dense_64"] = model.embed(TEXTS, dimensions=64)
        found["query"] = model.embed(QUERY)[0]
        found["documents"] = model.embed(DOCUMENTS)
        (found["chunks"],) = model.embed_chunks([TEXTS])
    with hilbert.Model(str(models["reranker"]), cache_dir=cache) as model:
        for name, raw in (("scores", False), ("logits", True)):
            ranked = model.rerank(QUERY, DOCUMENTS, raw_scores=raw)
            found["ranking"] = np.array([hit.index for hit in ranked])
            found[name] = np.array([hit.score for hit in ranked])
    with hilbert.Model(str(models["classifier"]), cache_dir=cache) as model:
        classes = model.classify(TEXTS)
        found["labels"] = np.array([[label.label for label in row] for row in classes])
        found["label_scores"] = np.array([[label.score for label in row] for row in classes])
    with hilbert.Model(str(models["splade"]), cache_dir=cache) as model:
        vocabulary = model.spec.sparse_dimensions
        found["sparse"] = _table(model.embed_sparse(TEXTS), vocabulary)
    with hilbert.Model(str(models["m3"]), cache_dir=cache) as model:
        every = model.encode(TEXTS, {"dense", "sparse", "multivector"})
        found["m3_dense"] = every.dense
        found["m3_sparse"] = _table(every.sparse, model.spec.sparse_dimensions)
        for index, rows in enumerate(every.multivector or ()):
            found[f"m3_tokens_{index}"] = rows
    with hilbert.Model(str(models["clip"]), cache_dir=cache) as model:
        found["clip_images"] = model.embed_image(images, normalize=True)
        found["clip_jpegs"] = model.embed_image([_as_jpeg(path) for path in images], normalize=True)
        found["clip_texts"] = model.embed(TEXTS, normalize=True)
    return found | _entities(models["gliner"])


def _entities(folder: Path) -> dict[str, Any]:
    """What gliner itself finds."""
    model = GLiNER.from_pretrained(str(folder), local_files_only=True)
    entities = [(i, e) for i, text in enumerate(TEXTS) for e in model.predict_entities(text, KINDS)]
    return {
        "entity_places": np.array([(index, e["start"], e["end"]) for index, e in entities]),
        "entity_labels": np.array([e["label"] for _, e in entities]),
        "entity_scores": np.array([e["score"] for _, e in entities]),
    }


def _as_jpeg(path: Path) -> bytes:
    file = io.BytesIO()
    Image.open(path).save(file, format="JPEG")
    return file.getvalue()


def _table(vectors: Any, size: int) -> np.ndarray:
    """Sparse vectors as rows of a table ``[N, vocabulary]``."""
    table = np.zeros((len(vectors), size), np.float32)
    for row, vector in zip(table, vectors, strict=True):
        row[vector.token_ids] = vector.weights
    return table
