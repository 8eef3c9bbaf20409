"""The keys file as it is now: an edit counts for the very next request.

The system is asked for the file's identity (device, inode, size, both times), one call: for each request, or
once for all of those that had come before it was asked, as under load they come together. Where it
has changed, the file is read. Identity alone would miss a same-size edit within one tick of the file
system's clock, so a file is read at every request until its identity has stood still for longer than
any clock tick. Whatever cannot be read lets nobody in, and is said once.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from math import inf
from operator import attrgetter

from hilbert.access.keyfile import BadKeyFile, KeyTable, digest_of, parse_keys

logger = logging.getLogger(__name__)

# The coarsest clocks of file systems (FAT's) tick every two seconds.
_SETTLED_SECONDS = 3.0
_CHUNK_BYTES = 1 << 20
_NOBODY = KeyTable({})

_Identity = tuple[int, int, int, int, int]
_identity_of: Callable[[os.stat_result], _Identity] = attrgetter(
    "st_ino", "st_size", "st_ctime_ns", "st_mtime_ns", "st_dev"
)


class KeyFile:
    """One keys file.

    Args:
        path: where it is, or will be; symbolic links are followed at each look.
        clock: seconds, monotonic.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path = path
        self._clock = clock
        self._table = _NOBODY
        self._identity: _Identity | None = None
        self._since = 0.0
        self._looked_at = -inf
        self._is_settled = False
        self._seen: bytes | None = None  # the digest of what was read last: no token stays in memory
        self._complaint = ""

    def table(self, since: float = inf) -> KeyTable:
        """The keys at this moment; none where the file cannot be used.

        Args:
            since: those of any moment after this one will do, by the clock. By default, of no past one.
        """
        if since < self._looked_at:
            return self._table
        now = self._clock()
        table = self._look()
        self._looked_at = now  # not before: a look that fails, for want of memory say, holds for nobody
        return table

    def _look(self) -> KeyTable:
        try:
            found = os.stat(self._path)
        except OSError as error:
            return self._refuse(_why_not(error))
        identity = _identity_of(found)
        if self._is_settled and identity == self._identity:
            return self._table
        if not stat.S_ISREG(found.st_mode):
            return self._refuse(_what_it_is(found.st_mode))
        return self._read(identity)

    def _read(self, identity: _Identity) -> KeyTable:
        now = self._clock()
        if identity != self._identity:
            self._identity, self._since, self._is_settled = identity, now, False
        try:
            content = _content(self._path, identity)
        except OSError as error:
            return self._refuse(_why_not(error))
        self._is_settled = now - self._since > _SETTLED_SECONDS
        seen = digest_of(content)
        if seen == self._seen:
            return self._table
        try:
            table = parse_keys(content)
        except BadKeyFile as error:
            table = self._refuse(str(error))
        else:
            self._complaint = ""
            for complaint in table.complaints:
                logger.warning("keys file %s: %s", self._path, complaint)
            logger.info("keys file %s: %d keys", self._path, len(table.keys))
        self._seen, self._table = seen, table
        return table

    def _refuse(self, why: str) -> KeyTable:
        self._seen, self._table, self._is_settled = None, _NOBODY, False
        if why != self._complaint:
            self._complaint = why
            logger.error("keys file %s lets nobody in: %s", self._path, why)
        return _NOBODY


def _content(path: str, identity: _Identity) -> bytes:
    # Without blocking, should it have become a pipe since.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = os.read(file, identity[1] + 1)
        while more := os.read(file, _CHUNK_BYTES):
            content += more
        return content
    finally:
        os.close(file)


def _why_not(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist; `hilbert keys add LABEL` makes it"
    if isinstance(error, PermissionError):
        return "this user may not read it; change its mode or owner"
    return f"it cannot be read ({error.strerror})"


def _what_it_is(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "it is a folder (Docker makes one where a file to be mounted does not exist); put a file there"
    return "it is not a regular file"
