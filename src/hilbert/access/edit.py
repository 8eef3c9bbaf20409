"""Changes to a keys file: whole or not at all, one at a time, and nothing else in it touched.

A reader sees the file before or after, never between: it is written beside and renamed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hilbert.access.keyfile import Key, digest_of, parse_line

_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
# Whoever can read tokens can call.
_NEW_FILE_MODE = 0o600


class CannotEdit(Exception):
    """The file, or what should be written into it, is no good; the message is for the operator."""


def new_token() -> str:
    """128 random bits: nobody guesses them, so a plain hash of them hides them."""
    return "tok_" + secrets.token_hex(16)


def add(path: Path, label: str, settings: str = "", *, is_hashed: bool = False) -> str:
    """Add a key, and make the file where there is none.

    Args:
        settings: what stands between token and ``#``.
        is_hashed: write the token's digest in its place.
    Returns:
        The token, which stands nowhere else where it is hashed.
    Raises:
        CannotEdit: the file cannot be written, or the line would not be read back as it is meant.
    """
    token = new_token()
    shown = f"sha256:{digest_of(token.encode()).hex()}" if is_hashed else token
    line = " ".join(filter(None, (shown, settings, "#", label)))
    try:
        key = parse_line(line)
    except ValueError as error:
        raise CannotEdit(str(error)) from None
    if key is None or key.label != label:
        raise CannotEdit(f"the label {label!r} must be printable text on one line, without blanks around it")
    with _locked(path):
        before = _read(path, or_empty=True)
        end = "\r\n" if "\r\n" in before else "\n"
        glue = end if before and not before.endswith(("\n", "\r")) else ""
        _write(path, f"{before}{glue}{line}{end}")
    return token


def keys_of(path: Path) -> list[Key]:
    """The keys of a file, in its order.

    Raises:
        CannotEdit: it cannot be read.
    """
    return [key for _, key in _rows(_read(path)) if key is not None]


def revoke(path: Path, name: str) -> list[Key]:
    """Remove the keys with this label, or the key whose digest begins with this.

    Raises:
        CannotEdit: there is none, or the file cannot be written.
    """
    with _locked(path):
        rows = list(_rows(_read(path)))
        gone = [key for _, key in rows if key is not None and _is_meant(key, name)]
        if not gone:
            known = ", ".join(key.label for _, key in rows if key is not None)
            raise CannotEdit(f"no key in {path} has the label {name!r}; there are: {known or 'none'}")
        _write(path, "".join(line for line, key in rows if key is None or key not in gone))
    return gone


def _is_meant(key: Key, name: str) -> bool:
    by_digest = re.fullmatch(r"[0-9a-f]{8,64}", name) and key.digest.hex().startswith(name)
    return key.label == name or bool(by_digest)


def _rows(text: str) -> Iterator[tuple[str, Key | None]]:
    for line in _LINES.findall(text):
        key = None
        with contextlib.suppress(ValueError):  # a line that nobody can use stays as it is
            key = parse_line(line.lstrip("\ufeff"))
        yield line, key


def _read(path: Path, *, or_empty: bool = False) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        if or_empty:
            return ""
        raise CannotEdit(f"{path} does not exist; `hilbert keys add LABEL` makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotEdit(f"{path} cannot be read: {error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One editor at a time; the lock is on the folder, as the file itself is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotEdit(f"{path.parent} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, text: str) -> None:
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        before = os.stat(target)
    except FileNotFoundError:
        before = None
    beside = ""
    try:
        file, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with open(file, "w", encoding="utf-8", newline="") as out:
            os.fchmod(out.fileno(), before.st_mode & 0o7777 if before else _NEW_FILE_MODE)
            if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(out.fileno(), before.st_uid, before.st_gid)
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if error.errno == errno.EBUSY:
            raise CannotEdit(
                f"{target} is mounted by itself; mount its folder, so that it can change"
            ) from None
        raise CannotEdit(f"{target} cannot be written: {error.strerror}") from None
