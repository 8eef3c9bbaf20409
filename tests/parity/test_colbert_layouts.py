"""ColBERT as PyLate and as Stanford's own library save it, against MultiVectorEncoder."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilbert import Model
from hilbert.core import Task
from hilbert.testing.models import tiny_model

TEXTS = ["a", "Where is a free room?", "the hotel, (so they say) is never full: " * 5, "one more guest " * 60]
MARKED = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
UNUSED = {"query_prefix": "[unused0] ", "document_prefix": "[unused1] "}
SHORT = {"query_length": 24, "document_length": 40}
SETTINGS: dict[str, dict[str, Any]] = {
    "markers with their space": MARKED | SHORT | {"attend_to_expansion_tokens": False},
    "markers of the vocabulary": UNUSED
    | SHORT
    | {"attend_to_expansion_tokens": True, "skiplist_words": ["so"]},
    "markers that are text": MARKED | {"do_query_expansion": False, "query_length": 12},
    "lengths alone": SHORT,
    "expansion turned off": MARKED | {"query_expansion": None},
    "a prompt behind the marker": MARKED | {"prompts": {"query": "[Q] find "}, "skiplist_words": []},
    "nothing": {},
}


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_tokens(folder: Path, *, added: tuple[str, ...] = (), vocabulary: tuple[str, ...] = ()) -> None:
    """Put tokens into tokenizer.json: as PyLate adds them, or in the vocabulary alone, as BERT has them."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for token in (*vocabulary, *added):
        tokenizer["model"]["vocab"][token] = len(tokenizer["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    ids = tokenizer["model"]["vocab"]
    tokenizer["added_tokens"] += [{"id": ids[token], "content": token, **flags} for token in added]
    file.write_text(json.dumps(tokenizer))


def pylate(folder: Path, name: str) -> Path:
    tiny_model("bert", folder, head="colbert", vocab_size=500)
    if name == "markers with their space":
        with_tokens(folder, added=("[Q] ", "[D] "))
    elif name == "markers of the vocabulary":
        with_tokens(folder, vocabulary=("[unused0]", "[unused1]"))
    for module in ("2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(folder / module)
    names = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    entries = [{"idx": i, "name": str(i), "path": p, "type": names[i]} for i, p in enumerate(("", "1_Dense"))]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": false}')
    dense = json.loads((folder / "1_Dense" / "config.json").read_text())
    kept = {k: v for k, v in dense.items() if not k.startswith("module_")}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(kept))
    settings = {"model_type": "ColBERT", "similarity_fn_name": "MaxSim", **SETTINGS[name]}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def stanford(folder: Path, metadata: dict[str, Any] | None, kind: str = "safetensors") -> Path:
    """BERT under a name of its own, the projection beside it, and the settings in ``artifact.metadata``."""
    import torch
    from safetensors.torch import load_file, save_file

    tiny_model("bert", folder, layout="plain", vocab_size=500)
    with_tokens(folder, vocabulary=("[unused0]", "[unused1]"))
    change(folder / "config.json", architectures=["HF_ColBERT"])
    file = folder / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["linear.weight"] = 0.2 * torch.randn((24, 64), generator=torch.Generator().manual_seed(9))
    save_file(tensors, file, {"format": "pt"})
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        file.unlink()
    if metadata is not None:
        (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder


def check(folder: Path, engine: str) -> None:
    from sentence_transformers import MultiVectorEncoder

    theirs = MultiVectorEncoder(str(folder), device="cpu")
    cache = str(folder.parent / "cache")
    with Model(str(folder), engine=engine, dtype="float32", device="cpu", cache_dir=cache) as model:
        assert model.spec.task is Task.MULTI_EMBED and model.info.program == "packed"
        assert model.info.token_dimensions == 24
        for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
            found = model.embed_multivector(TEXTS, input_type=side)
            for text, ours, expected in zip(TEXTS, found, encode(TEXTS, batch_size=1), strict=True):
                assert ours.shape == tuple(expected.shape), (side, text)
                np.testing.assert_allclose(ours, np.asarray(expected), atol=1e-5, err_msg=f"{side} {text}")


@pytest.mark.parametrize("name", SETTINGS)
def test_pylates_layout(name: str, tmp_path: Path) -> None:
    check(pylate(tmp_path / "model", name), "torch")


TOLD = {
    "query_maxlen": 24,
    "doc_maxlen": 50,
    "mask_punctuation": False,
    "attend_to_mask_tokens": True,
    "dim": 24,
}


@pytest.mark.parametrize(
    ("metadata", "kind", "engine"),
    [(None, "safetensors", "openvino"), (TOLD, "safetensors", "torch"), (TOLD, "bin", "torch")],
    ids=["silent", "told", "pickled"],
)
def test_stanfords_layout(metadata: dict[str, Any] | None, kind: str, engine: str, tmp_path: Path) -> None:
    check(stanford(tmp_path / "model", metadata, kind), engine)


def test_marks_of_punctuation_are_left_out_of_documents_alone(tmp_path: Path) -> None:
    folder = pylate(tmp_path / "model", "nothing")
    with Model(str(folder), engine="torch", dtype="float32", device="cpu", cache_dir=str(tmp_path)) as model:
        (document,) = model.embed_multivector(["a" + string.punctuation], input_type="document")
        (query,) = model.embed_multivector(["a" + string.punctuation], input_type="query")
        assert len(document) == 3 and len(query) == 3 + len(string.punctuation)
