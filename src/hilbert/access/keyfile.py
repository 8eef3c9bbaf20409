"""The keys file, as bytes and as keys.

One key a line: ``<token> # <label>`` or ``sha256:<hex> # <label>``. Before the ``#`` may stand what this
key alone may do: ``models=bge,e5``, ``admin``, and limits as ``rate=80 burst=50 tokens=9000 concurrent=16``.
Blank lines, and lines that begin with ``#``, say nothing. A line that cannot be read lets nobody in and
leaves the other lines alone; bytes that are no text let nobody in at all. Does no I/O, and keeps no token:
only SHA-256 digests, which say nothing about a random token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest

from hilbert.config.limits import NO_LIMITS, Limits, parse_limits

try:  # Python's own, where it can be had: OpenSSL's costs a request two microseconds more (bench/LOG.md)
    from _sha2 import sha256 as _sha256_of_few  # type: ignore[import-not-found]  # since Python 3.12
except ImportError:
    try:
        from _sha256 import sha256 as _sha256_of_few  # type: ignore[import-not-found]
    except ImportError:
        _sha256_of_few = sha256

# Of more bytes OpenSSL's is the faster one, in the end five times: of a large file, or of a header of 64 KiB.
_FEW_BYTES = 512
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NOBODY = bytes(32)


class BadKeyFile(Exception):
    """The file says nothing about anybody; the message says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """One caller.

    Attributes:
        label: what logs and metrics call the key; printable, on one line.
        digest: SHA-256 of the token.
        models: the only models that it may use; None for all.
        is_admin: whether it may load and unload models.
        limits: its own limits, before those of all keys.
    """

    label: str
    digest: bytes = field(repr=False)
    models: frozenset[str] | None = None
    is_admin: bool = False
    limits: Limits = NO_LIMITS


# Who calls a server that asks for no key.
ANONYMOUS = Key("", _NOBODY)


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The keys of a file.

    Attributes:
        keys: by digest.
        complaints: what is wrong with which line, without its content.
    """

    keys: Mapping[bytes, Key]
    complaints: tuple[str, ...] = ()

    def find(self, token: bytes) -> Key | None:
        """The key of this token; digests are compared in constant time once its place is found."""
        digest = digest_of(token)
        key = self.keys.get(digest, ANONYMOUS)
        return key if compare_digest(key.digest, digest) and key is not ANONYMOUS else None


def digest_of(token: bytes) -> bytes:
    """What is kept of a token."""
    digest: bytes = (_sha256_of_few if len(token) <= _FEW_BYTES else sha256)(token).digest()
    return digest


def parse_keys(content: bytes) -> KeyTable:
    """Read a keys file.

    Raises:
        BadKeyFile: it is not UTF-8 text, or holds no key.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadKeyFile(f"it is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise BadKeyFile("it holds a zero byte, so it is no text")
    keys: dict[bytes, Key] = {}
    complaints = []
    for number, line in enumerate(lines_of(text), 1):
        try:
            key = parse_line(line)
        except ValueError as error:
            complaints.append(f"line {number}: {error}")
            continue
        if key is None:
            continue
        if key.digest in keys:
            complaints.append(f"line {number}: the token stands on an earlier line, too; this line counts")
        keys[key.digest] = key
    if not keys:
        raise BadKeyFile("; ".join(["it holds no key", *complaints[:3]]))
    return KeyTable(keys, tuple(complaints))


def lines_of(text: str) -> list[str]:
    """The lines, whichever system wrote them (`splitlines` would also cut labels at exotic blanks)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def parse_line(line: str) -> Key | None:
    """The key of one line, or None where it has none.

    Raises:
        ValueError: it cannot be read; the message shows nothing of it that may be a token.
    """
    before, _, label = line.partition("#")
    words = before.split()
    if not words:
        return None
    hashed = _HASHED.fullmatch(words[0])
    if hashed is None and words[0].startswith("sha256:"):
        raise ValueError("sha256: takes 64 hexadecimal digits")
    digest = bytes.fromhex(hashed[1]) if hashed else digest_of(words[0].encode())
    models, is_admin, limits = _settings(words[1:])
    return Key(_printable(label) or f"key-{digest.hex()[:8]}", digest, models, is_admin, limits)


def _settings(words: list[str]) -> tuple[frozenset[str] | None, bool, Limits]:
    models: frozenset[str] | None = None
    is_admin = False
    rest = []
    for place, word in enumerate(words, 2):
        name, equals, value = word.partition("=")
        if name == "models" and equals:
            models = frozenset(filter(None, value.split(",")))
            if not models:
                raise ValueError("models= takes names divided by commas")
        elif word == "admin":
            is_admin = True
        elif name in ("rate", "burst", "tokens", "concurrent") and equals:
            rest.append(word)
        else:  # it may be a token, pasted into the wrong place
            raise ValueError(
                f"word {place} is no setting; write models=…, admin, rate=, burst=, tokens= or concurrent=, "
                "and put # before the label"
            )
    return models, is_admin, parse_limits(" ".join(rest))


def _printable(label: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in label.strip())[:200]
