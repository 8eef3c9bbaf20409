"""Every output beside dense vectors, side by side: rerank, SPLADE, ColBERT, images, int8.

    python bench/outputs.py                    # about fifteen minutes; results in bench/results/
    python bench/outputs.py --only rerank,int8
    python bench/outputs.py --quick            # one round of little; writes nothing

The models have MiniLM's shape (6 layers of 384, MiniLM's own tokenizer) and random weights: speed does not
depend on them. CLIP has the shape of ViT-B/32. Each system runs in a process of its own, on all threads, one
after another in each round; medians over rounds. sentence-transformers runs at its best: sorted by length in
batches of 32, SDPA, in float32 (its default) and in bf16. Hilbert runs with its defaults. Rerank is measured
over HTTP too, against Infinity.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import machine
import peers
from peers import BENCH, MODEL, TMP, offline_env
from process import post
from servers import Server, hilbert_server, infinity_servers, infinity_versions, running
from workloads import Corpus, mixed, short

FOLDER = TMP / "outputs"
SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
}
KINDS = ("rerank", "splade", "colbert", "clip", "int8")
NUM_TEXTS = {"splade": 200, "colbert": 400, "int8": 1000}
NUM_IMAGES = 96
IMAGE_SIZE = (640, 480)
MUST = {
    "rerank: against sentence-transformers float32": 3.0,
    "splade: against sentence-transformers float32": 2.5,
    "colbert: against sentence-transformers float32": 2.5,
    "int8: against hilbert bfloat16": 1.0,
    "int8: against hilbert float32": 1.4,
}


def make_model(kind: str) -> Path:
    """A random model of MiniLM's shape, written once."""
    from hilbert.testing import models

    folder = FOLDER / kind
    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "clip":
        make_clip(folder)
    else:
        head = {"rerank": "classifier"}.get(kind, kind)
        labels = {"num_labels": 1} if kind == "rerank" else {}
        models.tiny_model("bert", folder, head=head, model_max_length=256, **SHAPE, **labels)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(MODEL / name, folder / name)
        if kind == "rerank":
            # Infinity's versions know neither the new tokenizer class nor the name of the dtype.
            config = json.loads((folder / "config.json").read_text())
            config |= {"torch_dtype": "float32", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            (folder / "config.json").write_text(json.dumps(config))
    (folder / "done").touch()
    return folder


def make_clip(folder: Path) -> None:
    """CLIP ViT-B/32 with random weights and its own processing of images."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from hilbert.testing.towers import tiny_dual

    tiny_dual("clip", folder)  # its tokenizer
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    torch.manual_seed(0)
    config = CLIPConfig(text_config={"vocab_size": vocabulary}, vision_config={"patch_size": 32})
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def texts_of(count: int) -> list[str]:
    return mixed(Corpus(MODEL / "tokenizer.json"), count).texts


def images() -> list[bytes]:
    """JPEG files of noise over a gradient, seeded."""
    import io

    from PIL import Image

    random = np.random.default_rng(0)
    found = []
    for _ in range(NUM_IMAGES):
        coarse = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(IMAGE_SIZE).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def query_and_documents() -> tuple[str, list[str]]:
    corpus = Corpus(MODEL / "tokenizer.json")
    return short(corpus, 1).texts[0], mixed(corpus, 100).texts


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure_hilbert(kind: str, dtype: str, repeats: int) -> float:
    """Seconds of one unit of work through `hilbert.Model`."""
    from hilbert import Model

    folder = None if kind == "int8" else str(FOLDER / kind)
    with Model(folder, dtype=dtype, cache_dir=str(TMP / "hilbert-cache")) as model:
        if kind == "rerank":
            query, documents = query_and_documents()
            return timed(lambda: model.rerank(query, documents), repeats)
        if kind == "clip":
            pictures = images()
            return timed(lambda: model.embed_image(pictures), repeats)
        texts = texts_of(NUM_TEXTS[kind])
        if kind == "int8":
            return timed(lambda: model.embed(texts), repeats)
        output = {"splade": "sparse", "colbert": "multivector"}[kind]
        return timed(lambda: model.encode(texts, outputs=[output]), repeats)


def measure_reference(kind: str, dtype: str, repeats: int) -> float:
    """Seconds of the same work through sentence-transformers."""
    import torch
    import transformers
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(machine.num_threads())
    kwargs = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    common: dict[str, Any] = {"device": "cpu", "model_kwargs": kwargs}
    folder = str(MODEL if kind == "int8" else FOLDER / kind)
    if kind == "rerank":
        query, documents = query_and_documents()
        pairs = [(query, d) for d in documents]
        reranker = CrossEncoder(folder, **common)
        return timed(lambda: reranker.predict(pairs, batch_size=32), repeats)
    if kind == "clip":
        import io

        from PIL import Image

        model = SentenceTransformer(folder, **common)
        pictures = images()
        return timed(
            lambda: model.encode([Image.open(io.BytesIO(p)).convert("RGB") for p in pictures]), repeats
        )
    texts = texts_of(NUM_TEXTS[kind])
    cls = {"splade": SparseEncoder, "colbert": MultiVectorEncoder, "int8": SentenceTransformer}[kind]
    encoder = cls(folder, **common)
    encode = getattr(encoder, "encode_document", encoder.encode)
    return timed(lambda: encode(texts, batch_size=32), repeats)


def in_child(system: str, kind: str, dtype: str, repeats: int) -> float | None:
    """Measure in a process of its own; None where it cannot be done, with the reason on the screen."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", system, kind, dtype, str(repeats)],
        capture_output=True,
        text=True,
        env=offline_env(),
    )
    if done.returncode:
        print(f"  {system} {kind} {dtype}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    seconds = float(done.stdout.strip().splitlines()[-1])
    print(f"  {kind:8s} {system} {dtype}: {seconds:.3f} s", flush=True)
    return seconds


def rerank_server(server: Server, repeats: int) -> float:
    """Seconds of one POST /rerank with 100 documents."""
    query, documents = query_and_documents()
    body = json.dumps({"model": "bench", "query": query, "documents": documents}).encode()

    def call(port: int) -> None:
        status, answer = post(port, "/rerank", body)
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}: {answer[:300]!r}")

    with running(server) as live:
        return timed(lambda: call(live.port), repeats)


def rerank_servers() -> list[Server]:
    """Hilbert and Infinity's torch engine with the cross-encoder; its probe is a rerank too."""
    from dataclasses import replace

    folder = str(FOLDER / "rerank")
    probe = json.dumps({"query": "a", "documents": ["b"], "model": "bench"}).encode()
    found = [replace(hilbert_server("--model-id", folder), path="/rerank", probe=probe)]
    for server in infinity_servers():
        if server.name == "infinity-torch":
            arguments = tuple(folder if a == "{model}" else a for a in server.arguments)
            found.append(replace(server, arguments=arguments, path="/rerank", probe=probe))
    return found


def one_round(kinds: list[str], repeats: int) -> dict[str, float]:
    """Every system once; seconds by name."""
    found: dict[str, float | None] = {}
    for kind in kinds:
        dtypes = ("auto", "float32") if kind != "int8" else ("int8", "bfloat16", "float32")
        for dtype in dtypes:
            found[f"{kind} hilbert {dtype}"] = in_child("hilbert", kind, dtype, repeats)
        for dtype in ("float32", "bfloat16"):
            found[f"{kind} sentence-transformers {dtype}"] = in_child("reference", kind, dtype, repeats)
        if kind == "rerank":
            for server in rerank_servers():
                seconds = rerank_server(server, repeats)
                found[f"rerank HTTP {server.name}"] = seconds
                print(f"  rerank   {server.label} over HTTP: {seconds:.3f} s", flush=True)
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """How many times faster Hilbert is: against sentence-transformers' default and its best, and Infinity."""
    found = {}
    for kind in KINDS:
        mine = f"{kind} hilbert {'int8' if kind == 'int8' else 'auto'}"
        ours = medians.get(mine)
        if ours is None:
            continue
        for name, seconds in medians.items():
            if name.startswith(kind) and name != mine and "HTTP" not in name:
                found[f"{kind}: against {name.removeprefix(kind + ' ')}"] = round(seconds / ours, 2)
    if "rerank HTTP hilbert" in medians and "rerank HTTP infinity-torch" in medians:
        ratio = medians["rerank HTTP infinity-torch"] / medians["rerank HTTP hilbert"]
        found["rerank over HTTP: against Infinity torch"] = round(ratio, 2)
    return found


def table(result: dict[str, Any]) -> str:
    described = result["machine"]
    lines = [
        f"# {result['what']}",
        "",
        f"{result['date']}, {described['cpu']}, {described['threads']} threads, commit `{result['commit']}`. "
        f"Medians of {result['rounds']} rounds; seconds for the whole work.",
        "",
        "| work | system | seconds |",
        "|---|---|---|",
    ]
    lines += [
        f"| {n.split(' ', 1)[0]} | {n.split(' ', 1)[1]} | {s:.3f} |" for n, s in result["seconds"].items()
    ]
    lines += ["", "| | times as fast | must |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {MUST.get(name, '-')} |" for name, value in result["ratios"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        system, kind, dtype, repeats = a.measure
        measure = measure_hilbert if system == "hilbert" else measure_reference
        print(measure(kind, dtype, int(repeats)))
        return
    kinds = a.only.split(",")
    rounds, repeats = (1, 1) if a.quick else (a.rounds, 3)
    peers.make_all()
    for kind in kinds:
        if kind != "int8":
            make_model(kind)
    samples: dict[str, list[float]] = {}
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", flush=True)
        for name, seconds in one_round(kinds, repeats).items():
            samples.setdefault(name, []).append(seconds)
    medians = {name: round(statistics.median(s), 4) for name, s in samples.items()}
    result = {
        "what": "Every output, side by side",
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": {"hilbert": machine.versions(), "infinity": infinity_versions()},
        "rounds": rounds,
        "work": {
            "rerank": "100 documents of `mixed`, one short query",
            **{kind: f"{count} texts of `mixed`" for kind, count in NUM_TEXTS.items()},
            "clip": f"{NUM_IMAGES} JPEG pictures of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}",
        },
        "seconds": medians,
        "ratios": ratios(medians),
        "samples": samples,
    }
    print(table(result))
    if not a.quick:
        stem = BENCH / "results" / f"{machine.slug()}-outputs"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1))
        stem.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
