"""How much memory a model takes: estimated from its files, measured once it was loaded, and remembered.

One small JSON file beside the cached graphs. It is advice: when it is lost or wrong, the next load measures
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from hilbert.core import ModelSpec
from hilbert.hub.artifacts import cpu_isa
from hilbert.hub.digests import cache_root

# What a small model takes beside its weights once it has answered texts of many lengths: compiled shapes and
# scratch memory (MiniLM, 45 MB of weights: 110 MB; bench/LOG.md).
_WORKING_BYTES = 64_000_000


def estimated_bytes(spec: ModelSpec, dtype: str) -> int:
    """What a model that was never loaded will take.

    Args:
        spec: the model.
        dtype: as it was asked for; ``auto`` is 16 bits where the CPU has them.
    """
    return _WORKING_BYTES + int(_weight_bytes(spec) * _bytes_kept(spec, dtype))


def _weight_bytes(spec: ModelSpec) -> int:
    root = Path(spec.path)
    files = [root / spec.transformer_folder / name for name in spec.weights]
    if not files:  # an exported folder: the graph is the model
        files = [path for path in root.glob("*.bin") if path.is_file()]
    return sum(file.stat().st_size for file in files if file.is_file())


def _bytes_kept(spec: ModelSpec, dtype: str) -> float:
    """Bytes in memory per byte of the files."""
    stored = str(spec.config.get("dtype") or spec.config.get("torch_dtype") or "float32")
    is_short_on_disk = stored.endswith("16")
    is_short = dtype.endswith("16") or (dtype == "auto" and "bf16" in cpu_isa())
    if is_short == is_short_on_disk:
        return 1.0
    return 0.5 if is_short else 2.0


class SizeBook:
    """Measured sizes, kept across starts.

    Args:
        cache_dir: folder of the artifact cache; ``""`` takes the default.
    """

    def __init__(self, cache_dir: str = "") -> None:
        self._file = cache_root(cache_dir or None) / "sizes.json"
        self._sizes: dict[str, int] | None = None

    def find(self, spec: ModelSpec, how: str) -> int | None:
        """The size of a model that was loaded before in this way."""
        return self._read().get(_key(spec, how))

    def note(self, spec: ModelSpec, how: str, size_bytes: int) -> None:
        """Remember a measured size; a disk that cannot be written is no reason to fail."""
        sizes, key = self._read(), _key(spec, how)
        # The largest of late: a model grows while it is used, and each load measures only its beginning.
        sizes[key] = max(size_bytes, int(0.9 * sizes.get(key, 0)))
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".sizes-", dir=self._file.parent)
            with os.fdopen(handle, "w") as stream:
                json.dump(sizes, stream)
            os.replace(name, self._file)

    def _read(self) -> dict[str, int]:
        if self._sizes is None:
            try:
                found = json.loads(self._file.read_bytes())
                self._sizes = {str(key): int(size) for key, size in found.items()}
            except (OSError, ValueError, AttributeError, TypeError):
                self._sizes = {}
        return self._sizes


def _key(spec: ModelSpec, how: str) -> str:
    return hashlib.sha256(f"{spec.digest}\n{spec.path}\n{how}".encode()).hexdigest()[:32]
