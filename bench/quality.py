"""What smaller numbers cost on search: each `output_dtype`, and each dtype of the computation.

    python bench/quality.py              # a few minutes; writes bench/results/<date>-<cpu>-quality.json
    python bench/quality.py --quick

The collection is Python's standard library: a query is the first paragraph of a docstring, its one right
answer the rest of the same docstring, among those of all others. nDCG@10 and recall@10 over all queries.
Nothing is tuned on it, and nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt

import hilbert
import machine
from hilbert.core.quantize import OutputDtype, quantize
from peers import BENCH, TMP

Rows = npt.NDArray[np.float32]
COMPUTED = (("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"), ("ctranslate2", "int8"))
RESCORED = 100


def pairs(limit: int) -> tuple[list[str], list[str]]:
    """Queries and documents: first paragraphs, and what follows them; each text once."""
    found: dict[str, str] = {}
    documents: set[str] = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                query, document = " ".join(first.split()), " ".join(rest.split())
                if (
                    len(query) >= 20
                    and len(document) >= 60
                    and query not in found
                    and document not in documents
                ):
                    found[query] = document
                    documents.add(document)
    order = np.random.default_rng(4).permutation(len(found))[:limit]
    queries = list(found)
    return [queries[i] for i in order], [found[queries[i]] for i in order]


def measure(scores: Rows) -> dict[str, float]:
    """Row i of the scores belongs to query i, whose right answer is document i."""
    right = scores[np.arange(len(scores)), np.arange(len(scores))]
    # Ties count against: a right answer that shares its score with another stands behind it.
    rank = (scores >= right[:, None]).sum(axis=1)
    gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
    return {"ndcg_at_10": round(float(gain.mean()), 4), "recall_at_10": round(float((rank <= 10).mean()), 4)}


def unit(rows: npt.NDArray[np.generic]) -> Rows:
    floats = rows.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-12)


def scores(queries: Rows, documents: Rows, dtype: OutputDtype) -> Rows:
    """Cosines of the numbers, or bits in common, as a vector database would compute them."""
    left, right = quantize(queries, dtype), quantize(documents, dtype)
    if not dtype.is_packed:
        shift = 128.0 if dtype is OutputDtype.UINT8 else 0.0
        return unit(left.astype(np.float32) - shift) @ unit(right.astype(np.float32) - shift).T
    flip = np.uint8(128 if dtype is OutputDtype.BINARY else 0)  # binary is the same bytes less 128
    bits = [np.unpackbits(rows.view(np.uint8) ^ flip, axis=1).astype(np.float32) for rows in (left, right)]
    signs = [2 * b - 1 for b in bits]
    return signs[0] @ signs[1].T


def rescored(queries: Rows, documents: Rows) -> Rows:
    """The `RESCORED` best by bits, put in order by the float query against the bits of the documents."""
    coarse = scores(queries, documents, OutputDtype.UBINARY)
    bits = np.unpackbits(quantize(documents, OutputDtype.UBINARY), axis=1).astype(np.float32)
    fine = queries @ (2 * bits - 1).T
    border = np.partition(coarse, -RESCORED, axis=1)[:, -RESCORED, None]
    return np.where(coarse >= border, fine, -np.inf).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work: a hundred documents")
    a = parser.parse_args()
    queries, documents = pairs(100 if a.quick else 2000)
    print(f"{len(queries)} queries and as many documents", flush=True)
    vectors: dict[tuple[str, str], tuple[Rows, Rows]] = {}
    found: dict[str, dict[str, float]] = {}
    for engine, dtype in COMPUTED:
        with hilbert.Model(engine=engine, dtype=dtype, cache_dir=str(TMP / "hilbert-cache")) as model:
            vectors[engine, dtype] = model.embed(queries), model.embed(documents)
        mine, exact = vectors[engine, dtype], vectors["openvino", "float32"]
        cosine = min(float((x * y).sum(axis=1).min()) for x, y in zip(mine, exact, strict=True))
        found[f"computed in {dtype} by {engine}"] = measure(mine[0] @ mine[1].T) | {
            "worst_cosine": round(cosine, 5)
        }
    exact = vectors["openvino", "float32"]
    size = exact[0].shape[1]
    for output in OutputDtype:
        width = quantize(exact[0][:1], output).nbytes
        found[f"returned as {output}"] = measure(scores(*exact, output)) | {"bytes": width}
    found[f"returned as ubinary, {RESCORED} rescored by the float query"] = measure(rescored(*exact)) | {
        "bytes": size // 8
    }
    for name, row in found.items():
        print(f"{name:<55}{row}")
    result = {
        "what": "search quality on docstrings of the standard library, all-MiniLM-L6-v2",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "documents": len(documents),
        "found": found,
    }
    out = (TMP if a.quick else BENCH / "results") / f"{machine.slug()}-quality.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
