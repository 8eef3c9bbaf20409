"""A BERT-large-shaped model on a CUDA device: Hilbert's packed program against sentence-transformers.

    python bench/gpu.py                     # under four minutes; writes bench/results/gpu-<device>.json
    python bench/gpu.py --quick --device cpu --shape tiny     # does the script work at all?

Random weights, bf16, two workloads: every text 512 tokens, and `mixed` (lognormal, mean 98, 5 to 256).
No network, no server. Reported per engine: sentences/s, tokens/s, and the share of the bf16 matmul
ceiling that was measured in the same run.

- `sentence-transformers encode`: SDPA, bf16, sorted batches, as a user calls it; the best of its batch sizes.
- `sentence-transformers forward`: its modules alone on batches that were sorted, tokenized and moved to
  the device beforehand: the model's own speed, without the CPU work around it.
- `hilbert runtime`: batches by token budget **in arrival order**, laid out by one thread while another is on
  the device, from token ids to float32 rows on the host. A sweep over the token budget finds the default.
- `hilbert engine`: the same through scheduler and engine: one request per text, all queued at once.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "src"))
sys.path.insert(0, str(BENCH))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ceiling import cpu_gemm_gflops, gpu_gemm_tflops  # noqa: E402
from flops import EncoderShape  # noqa: E402

SHAPES = {
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4},
}
VOCABULARY = 30522
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_model(folder: Path, shape: dict[str, int]) -> None:
    """A sentence-transformers folder with random weights; every word ``w<id>`` is one token.

    The weights are wider than BERT's own 0.02, so that different texts have different vectors.
    """
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(SPECIAL)}
    vocabulary |= {f"w{i}": i for i in range(len(SPECIAL), VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(
        zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=shape["num_hidden_layers"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_attention_heads=shape["num_heads"],
        initializer_range=0.05,
    )
    plain = folder / "plain"
    BertModel(config).eval().save_pretrained(plain)
    fast.save_pretrained(plain)
    body = Transformer(str(plain), max_seq_length=512)
    SentenceTransformer(modules=[body, Pooling(shape["hidden_size"], "mean")]).save(str(folder / "model"))


def texts_of(lengths: list[int], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(len(SPECIAL), VOCABULARY, n - 2)) for n in lengths]


def lengths_of(workload: str, count: int) -> list[int]:
    """Lengths in tokens, special tokens included."""
    if workload == "512":
        return [512] * count
    from workloads import lognormal_lengths

    return lognormal_lengths(count, 98, 0.8, 5, 256, 2)


class Clock:
    """Runs a function until `seconds` have passed (at least twice) and keeps the median duration."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device = device
        self.seconds = seconds

    def __call__(self, work: Callable[[], Any]) -> float:
        durations: list[float] = []
        begin = time.perf_counter()
        while len(durations) < 2 or time.perf_counter() - begin < self.seconds:
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            durations.append(time.perf_counter() - start)
        return statistics.median(durations)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class Rates:
    """The rows of one workload: what an engine's seconds mean in sentences, tokens and FLOP."""

    def __init__(self, workload: str, lengths: list[int], flop: float, ceiling_tflops: float) -> None:
        self.workload = workload
        self.lengths = lengths
        self.flop = flop
        self.ceiling_tflops = ceiling_tflops
        self.rows: dict[str, dict[str, float]] = {}

    def add(self, name: str, seconds: float, **more: float) -> None:
        tflops = self.flop / seconds / 1e12
        self.rows[name] = {
            "seconds": round(seconds, 4),
            "sentences_per_second": round(len(self.lengths) / seconds, 1),
            "tokens_per_second": round(sum(self.lengths) / seconds),
            "tflops": round(tflops, 3),
            "ceiling_share": round(tflops / self.ceiling_tflops, 4),
            **more,
        }
        print(f"{self.workload:>6} {name}: {self.rows[name]}", flush=True)


def sentence_transformers_rates(
    model: Any, texts: list[str], lengths: list[int], batch_sizes: list[int], clock: Clock
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds for all texts by batch size: `encode`, and the forward passes alone."""
    encode: dict[int, float] = {}
    forward: dict[int, float] = {}
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    # `tokenize` was renamed in newer versions, with a warning on the old name.
    preprocess = getattr(model, "preprocess", None) or model.tokenize
    for size in batch_sizes:

        def all_texts(size: int = size) -> None:
            model.encode(texts, batch_size=size, convert_to_tensor=True, show_progress_bar=False)

        model.encode(texts[: 2 * size], batch_size=size, show_progress_bar=False)
        encode[size] = clock(all_texts)
        batches = []
        for start in range(0, len(order), size):
            features = preprocess([texts[i] for i in order[start : start + size]])
            batches.append(
                {k: v.to(model.device) for k, v in features.items() if isinstance(v, torch.Tensor)}
            )

        def all_batches(batches: list[dict[str, Any]] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    model(dict(batch))

        forward[size] = clock(all_batches)
    return encode, forward


def batches_of(sequences: list[Any], max_batch_tokens: int) -> list[Any]:
    """Batches in arrival order, each filled up to the budget."""
    from hilbert.core import Batch

    batches, current, tokens = [], [], 0
    for sequence in sequences:
        if current and tokens + sequence.num_tokens > max_batch_tokens:
            batches.append(Batch(tuple(current)))
            current, tokens = [], 0
        current.append(sequence)
        tokens += sequence.num_tokens
    batches.append(Batch(tuple(current)))
    return batches


def run_runtime(runtime: Any, batches: list[Any], preparer: ThreadPoolExecutor) -> list[Any]:
    """All batches through a runtime; the next one is prepared while one runs, as the engine does."""
    prepared = preparer.submit(runtime.prepare, batches[0])
    rows = []
    for following in [*batches[1:], None]:
        ready = prepared.result()
        if following is not None:
            prepared = preparer.submit(runtime.prepare, following)
        rows.append(runtime.run(ready).dense)
    return rows


def worst_cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="bert-large")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    began = time.perf_counter()
    is_cuda = a.device == "cuda"
    shape = SHAPES[a.shape]
    encoder = EncoderShape(shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"])
    clock = Clock(a.device, 0.1 if a.quick else 2.0)
    counts = {"512": 16, "mixed": 64} if a.quick else {"512": 1024, "mixed": 6000}
    batch_sizes = [32] if a.quick else [32, 128, 256]
    budgets = [2048, 4096] if a.quick else [4096, 8192, 16384, 32768, 65536, 131072]

    if is_cuda:
        gemms = {"8192x8192x8192": gpu_gemm_tflops(8192, 8192, 8192)}
        gemms["16384x1024x4096"] = gpu_gemm_tflops(16384, 1024, 4096)
    else:
        gemms = {"2048x384x1536": cpu_gemm_gflops("bfloat16") / 1e3}
    ceiling = max(gemms.values())
    device_name = torch.cuda.get_device_name() if is_cuda else "cpu"
    print(f"{device_name}: bf16 ceiling {ceiling} TFLOP/s {gemms}", flush=True)

    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    from hilbert.core import Sequence
    from hilbert.hub import resolve
    from hilbert.runtimes import RuntimeSettings, load_runtime
    from inprocess import feed, running_engine

    result: dict[str, Any] = {
        "what": f"{a.shape} shape, random weights, bf16",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": device_name,
        "versions": versions(),
        "ceiling_tflops": gemms,
        "shape": shape,
        "workloads": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder, shape)
        model_folder = folder / "model"
        kwargs = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        reference = SentenceTransformer(str(model_folder), device=a.device, model_kwargs=kwargs)
        exact = SentenceTransformer(str(model_folder), device=a.device)
        spec = resolve(str(model_folder))
        settings = RuntimeSettings(engine="torch", dtype="bfloat16", device=a.device)
        start = time.perf_counter()
        runtime = load_runtime(spec, settings)
        result["load_seconds"] = round(time.perf_counter() - start, 2)
        info = runtime.info
        result["runtime"] = {"program": info.program, "dtype": info.dtype, "reason": info.reason}
        result["default_max_batch_tokens"] = info.max_batch_tokens
        print(f"runtime: {info}", flush=True)
        tokenizer = Tokenizer.from_file(str(next(model_folder.rglob("tokenizer.json"))))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        preparer = ThreadPoolExecutor(1)

        for workload, count in counts.items():
            lengths = lengths_of(workload, count)
            texts = texts_of(lengths, seed=len(workload))
            encoded = tokenizer.encode_batch_fast(texts)
            ids = [np.array(e.ids, np.int32) for e in encoded]
            assert [len(x) for x in ids] == lengths
            sequences = [Sequence(i, 0, x) for i, x in enumerate(ids)]
            flop = encoder.flop(lengths)
            rates = Rates(workload, lengths, flop, ceiling)
            encode, forward = sentence_transformers_rates(reference, texts, lengths, batch_sizes, clock)
            best = min(encode, key=encode.__getitem__)
            rates.add("sentence-transformers encode", encode[best], batch_size=best)
            best = min(forward, key=forward.__getitem__)
            rates.add("sentence-transformers forward", forward[best], batch_size=best)

            sweep: dict[int, float] = {}
            for budget in budgets:
                batches = batches_of(sequences, budget)
                run_runtime(runtime, batches[:3], preparer)
                sweep[budget] = clock(lambda batches=batches: run_runtime(runtime, batches, preparer))
                rates.add(f"hilbert runtime, {budget} tokens", sweep[budget])
            best = min(sweep, key=sweep.__getitem__)
            rates.add("hilbert runtime, best budget", sweep[best], max_batch_tokens=best)

            with running_engine(runtime) as engine:
                seconds = clock(lambda engine=engine, ids=ids: feed(engine, ids))
                rates.add("hilbert engine, one request per text", seconds)

            few = 64 if workload == "mixed" else 16
            got = np.concatenate(run_runtime(runtime, batches_of(sequences[:few], 8192), preparer))
            plain = {"convert_to_numpy": True, "show_progress_bar": False}
            truth = exact.encode(texts[:few], **plain)
            theirs = reference.encode(texts[:few], convert_to_tensor=True, show_progress_bar=False)
            result["workloads"][workload] = {
                "texts": count,
                "tokens": sum(lengths),
                "flop": flop,
                "engines": rates.rows,
                "worst_cosine_hilbert_bf16_to_float32": worst_cosine(got, truth),
                "worst_cosine_sentence_transformers_bf16_to_float32": worst_cosine(
                    theirs.float().cpu().numpy(), truth
                ),
                "cosine_of_different_texts": worst_cosine(truth[:-1], truth[1:]),
            }
        if is_cuda:
            result["max_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        runtime.close()
    result["total_seconds"] = round(time.perf_counter() - began, 1)
    slug = "".join(c if c.isalnum() else "-" for c in device_name.lower()).strip("-")
    out = a.out or BENCH / "results" / f"gpu-{slug}{'-quick' if a.quick else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"{result['total_seconds']} s in all; wrote {out.name}")
    assert all(math.isfinite(w["flop"]) for w in result["workloads"].values())


def table(result: dict[str, Any]) -> str:
    lines = ["| workload | engine | sentences/s | tokens/s | share of the ceiling |", "|---|---|---|---|---|"]
    for workload, found in result["workloads"].items():
        for name, row in found["engines"].items():
            cells = f"{row['sentences_per_second']:,.0f} | {row['tokens_per_second']:,.0f}"
            lines.append(f"| {workload} | {name} | {cells} | {row['ceiling_share']:.0%} |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    import importlib.metadata as metadata

    names = ["torch", "transformers", "sentence-transformers", "tokenizers", "numpy"]
    return {name: metadata.version(name) for name in names} | {"python": sys.version.split()[0]}


def commit() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(BENCH), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


if __name__ == "__main__":
    main()
