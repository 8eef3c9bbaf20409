"""Engines without HTTP, each in a process of its own: sentences and tokens per second, tokenizing included.

    python bench/offline.py sentence-transformers --texts texts.json --model FOLDER
    python bench/offline.py onnxruntime --texts texts.json --model FOLDER     # in tools-venv

Prints one line of JSON per workload. Every engine runs as its users run it at its best: sorted by length in
batches of 32, on all threads. `--vectors` also writes the vectors of the first texts, for the cosine check.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Embed = Callable[[list[str]], npt.NDArray[np.float32]]
NUM_CHECKED = 64


def sentence_transformers_engine(model: Path, dtype: str) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    kwargs = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    engine = SentenceTransformer(str(model), device="cpu", model_kwargs=kwargs)

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = engine.encode(texts, batch_size=32, normalize_embeddings=True, convert_to_tensor=True)
        return vectors.float().numpy()

    return embed


def onnxruntime_engine(model: Path, num_threads: int) -> Embed:
    import onnxruntime
    from tokenizers import Tokenizer

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        str(model / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rows = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), 32):
            picked = order[start : start + 32]
            encoded = tokenizer.encode_batch([texts[i] for i in picked])
            ids = np.array([e.ids for e in encoded], np.int64)
            mask = np.array([e.attention_mask for e in encoded], np.int64)
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(["last_hidden_state"], feed)[0]
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            rows[picked] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return rows

    return embed


def measure(embed: Embed, texts: list[str], lengths: list[int]) -> dict[str, float]:
    embed(texts[:64])
    start = time.perf_counter()
    embed(texts)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 3),
        "sentences_per_second": round(len(texts) / seconds, 1),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["sentence-transformers", "onnxruntime"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--vectors", type=Path)
    a = parser.parse_args()
    if a.engine == "onnxruntime":
        embed = onnxruntime_engine(a.model, a.threads)
    else:
        import torch

        torch.set_num_threads(a.threads)
        embed = sentence_transformers_engine(a.model, a.dtype)
    workloads: dict[str, Any] = json.loads(a.texts.read_text())
    found = {name: measure(embed, w["texts"], w["num_tokens"]) for name, w in workloads.items()}
    if a.vectors:
        np.save(a.vectors, embed(workloads["mixed"]["texts"][:NUM_CHECKED]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
