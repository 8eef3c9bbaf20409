"""Reading the small files of a repository: JSON within limits, safetensors headers, paths that stay inside.

Decides what counts as a broken file; does not know what the values mean. Nothing here follows a path
that leaves the repository.
"""

from __future__ import annotations

import struct
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from hilbert.errors import ModelError, ModelUnavailable

# tokenizer_config.json of large vocabularies reaches 2 MB; a configuration beyond 32 MB is not one.
MAX_JSON_BYTES = 32 * 1024 * 1024
# The limit of the safetensors format itself.
MAX_HEADER_BYTES = 100_000_000


def read_json(path: Path) -> Any:
    """The file's value, or None where there is no such file.

    Raises:
        ModelUnavailable: the file is too big, unreadable or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelUnavailable(
                f"{path} has {path.stat().st_size} bytes; a configuration may have {MAX_JSON_BYTES}. "
                "Is this a model repository?"
            )
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelUnavailable(
            f"{path} is not valid JSON ({error}); download the model again or correct the file."
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for files that hold an object; empty where there is no file."""
    value = read_json(path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def safe_folder(value: Any, source: Path) -> str:
    """A folder name of modules.json in canonical form, ``""`` for the root.

    Raises:
        ModelError: the path is absolute or leaves the repository.
    """
    if not isinstance(value, str):
        raise ModelError(f"{source}: path must be a string, got {type(value).__name__}.")
    parts = PurePosixPath(value.replace("\\", "/")).parts
    is_absolute = value.startswith(("/", "\\", "~")) or PureWindowsPath(value).drive != ""
    if is_absolute or ".." in parts or "\0" in value:
        raise ModelError(f"{source}: path {value!r} leaves the repository; refused.")
    return "/".join(parts)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor, from the header of a safetensors file alone.

    Raises:
        ModelUnavailable: the header is broken, or the file is shorter than the header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"its header claims {length} bytes")
            header = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if size < 8 + length + end:
            raise ValueError(f"it has {size} bytes of {8 + length + end}")
        return {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        struct.error,
        msgspec.MsgspecError,
    ) as error:
        raise ModelUnavailable(
            f"{path} is not a whole safetensors file ({error}); download the model again."
        ) from error
