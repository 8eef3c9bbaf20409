"""A tiny model of every kind of docs/engines.md, and graphs as repositories ship them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hilbert.testing.models import tiny_model
from hilbert.testing.towers import tiny_dual


def odd_model(folder: Path) -> Path:
    """A chain that no program of ours knows: a CNN between the transformer and the pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    body = SentenceTransformer(str(tiny_model("bert", folder / "body")), device="cpu")[0]
    torch.manual_seed(0)
    cnn = CNN(in_word_embedding_dimension=64, out_channels=16, kernel_sizes=[1, 3])
    SentenceTransformer(modules=[body, cnn, Pooling(32, "mean")], device="cpu").save(str(folder / "odd"))
    return folder / "odd"


KINDS: dict[str, Callable[[Path], Path]] = {
    "embedder": lambda folder: tiny_model("bert", folder, dense=(), pooling="mean"),
    "cross-encoder": lambda folder: tiny_model("bert", folder, head="classifier", num_labels=3),
    "sparse": lambda folder: tiny_model("bert", folder, head="splade"),
    "bge-m3": lambda folder: tiny_model("xlm-roberta", folder, head="m3"),
    "late interaction": lambda folder: tiny_model("bert", folder, head="colbert"),
    "dual": lambda folder: tiny_dual("clip", folder, text={"max_position_embeddings": 128}),
    "static": lambda folder: tiny_model("static", folder),
    "other": odd_model,
}


def ship_onnx(folder: Path) -> Path:
    """Put a padded graph beside the weights, as optimum's users find it in repositories."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    is_classifier = "SequenceClassification" in AutoConfig.from_pretrained(folder).architectures[0]
    builder: Any = AutoModelForSequenceClassification if is_classifier else AutoModel
    model = builder.from_pretrained(folder, attn_implementation="eager").eval()
    name = "logits" if is_classifier else "last_hidden_state"

    class Plain(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return getattr(model(input_ids=input_ids, attention_mask=attention_mask), name)

    plain = Plain()
    plain.model = model
    ids = torch.ones(2, 5, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    (folder / "onnx").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain,
            (ids, torch.ones_like(ids)),
            str(folder / "onnx" / "model.onnx"),
            input_names=names,
            output_names=[name],
            dynamic_axes={n: {0: "batch", 1: "length"} for n in (*names, *([] if is_classifier else [name]))},
            dynamo=False,
        )
    return folder


def padded_family(folder: Path) -> Path:
    """An embedder whose attention no interface reaches."""
    return tiny_model("mpnet", folder / "padded")
