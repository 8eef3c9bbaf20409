"""``hilbert verify``: are the vectors that are served here the model's own? Measured, not promised.

The reference is sentence-transformers in float32, one text at a time, in a process of its own.
"""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

import hilbert
from hilbert.config import ModelSettings, ServerSettings
from hilbert.core.request import FloatArray
from hilbert.errors import MissingDependency, ModelError
from hilbert.hub.artifacts import MANIFEST
from hilbert.models.local import Model
from hilbert.programs.reference import ReferenceOrder
from hilbert.runtimes.base import RuntimeInfo

# Lengths from nothing to far beyond any window, several scripts, and what breaks tokenizers.
TEXTS = (
    "",
    " \t\n",
    "a",
    "Hilbert's hotel has room for one more guest.",
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "希尔伯特旅馆有无穷多个房间。",
    "كم غرفة في فندق هيلبرت؟",
    "Ünïcödé, naïve café, Straße, Ελληνικά, русский",
    "🙂🏨 ∞ + 1 = ∞",
    "def room(n: int) -> int:\n    return n + 1\n",
    "nul \x00 inside",
    "UPPER lower MiXeD 0123456789 !?.,;:()[]{}<>/\\|@#$%^&*_+-=~`'\"",
    *(" ".join(f"guest {i} moves to room {i + 1}." for i in range(n)) for n in (2, 5, 11, 23, 47, 95, 400)),
)

# What the float32 program must reach, relative to the largest number where that exceeds 1; and any dtype.
MAX_FLOAT32_DIFFERENCE = 1e-5
MIN_COSINE = 0.9999
# Eight bits move a vector further; texts of a few tokens the most.
MIN_COSINES = {"int8": 0.99, "fp8": 0.99}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The outcome of one comparison."""

    model_id: str
    info: RuntimeInfo
    num_texts: int
    dimensions: int
    worst_cosine: float
    worst_text: int
    max_difference: float
    scale: float

    @property
    def is_good(self) -> bool:
        """Whether the bars for this dtype are met."""
        if not self.worst_cosine >= _min_cosine(self.info.dtype):
            return False
        return self.info.dtype != "float32" or self.max_difference <= MAX_FLOAT32_DIFFERENCE * self.scale

    def text(self) -> str:
        """For a person."""
        info = self.info
        bar = f"cosine ≥ {_min_cosine(info.dtype)}"
        if info.dtype == "float32":
            bar += f", difference ≤ {MAX_FLOAT32_DIFFERENCE * self.scale:.1e}"
        rows = [
            ("model", self.model_id),
            ("served by", f"{info.engine} on {info.device} in {info.dtype}, {info.program}: {info.reason}"),
            ("reference", "sentence-transformers in float32, one text at a time"),
            ("texts", str(self.num_texts)),
            ("dimensions", str(self.dimensions)),
            ("worst cosine", f"{self.worst_cosine:.7f} ({TEXTS[self.worst_text][:40]!r})"),
            ("largest abs. difference", f"{self.max_difference:.2e}"),
            ("bar", bar),
            ("versions", _versions()),
            ("result", "good" if self.is_good else "NOT GOOD"),
        ]
        return "\n".join(f"{name:<25}{value}" for name, value in rows)


def certify(settings: ServerSettings) -> Certificate:
    """Embed `TEXTS` both ways and compare.

    Raises:
        MissingDependency: sentence-transformers is not installed.
        ModelError: one of the two cannot run the model.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingDependency(
            "The reference is sentence-transformers, which is not installed: pip install 'hilbert[torch]'"
        )
    chosen = settings.models[0]
    with _load(chosen, settings) as model:
        info, spec = model.info, model.spec
        if (Path(spec.path) / MANIFEST).is_file():
            raise ModelError(
                f"{chosen.model_id} was made by `hilbert export` and has no weights for "
                "sentence-transformers; verify the model that it was made from"
            )
        served = model.embed(TEXTS)
    reference = _reference(spec.path, chosen.trust_remote_code)
    if served.shape != reference.shape:
        raise ModelError(
            f"{spec.model_id} is served with {served.shape[1]} dimensions; sentence-transformers returns "
            f"{reference.shape[1]}"
        )
    cosines = _cosines(served, reference)
    return Certificate(
        model_id=spec.model_id,
        info=info,
        num_texts=len(TEXTS),
        dimensions=served.shape[1],
        worst_cosine=float(cosines.min()),
        worst_text=int(cosines.argmin()),
        max_difference=float(np.abs(served - reference).max()),
        scale=max(1.0, float(np.abs(reference).max())),
    )


def _load(chosen: ModelSettings, settings: ServerSettings) -> Model:
    return Model(
        chosen.model_id,
        engine=chosen.engine,
        dtype=chosen.dtype,
        device=chosen.device,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        revision=chosen.revision or None,
        token=settings.token or None,
        trust_remote_code=chosen.trust_remote_code,
    )


def _reference(path: str, trust_remote_code: bool) -> FloatArray:
    order = ReferenceOrder(path, list(TEXTS), trust_remote_code=trust_remote_code)
    child = subprocess.run(
        [sys.executable, "-m", "hilbert.programs.reference"],
        input=msgspec.json.encode(order),
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(f"sentence-transformers cannot run {path}: {lines[-1] if lines else 'no reason'}")
    rows: FloatArray = np.load(io.BytesIO(child.stdout), allow_pickle=False)
    return rows


def _min_cosine(dtype: str) -> float:
    return MIN_COSINES.get(dtype, MIN_COSINE)


def _cosines(left: FloatArray, right: FloatArray) -> FloatArray:
    """Row by row; two zero rows agree."""
    products = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    norms = np.linalg.norm(left.astype(np.float64), axis=1) * np.linalg.norm(right.astype(np.float64), axis=1)
    are_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines: FloatArray = np.where(are_zero, 1.0, products / np.where(norms > 0, norms, 1.0))
    return cosines


def _versions() -> str:
    found = [f"hilbert {hilbert.__version__}"]
    for package in ("openvino", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
