"""Which requests a worker is computing right now, in memory that outlives it.

When a worker dies, the front has to know whom to suspect: the requests in the batches that ran at that
moment, and not the thousand that merely waited. The worker writes their ids here before it computes and
strikes them out afterwards; that costs about a microsecond per batch and no system call. The front reads
it after the worker's death, when nobody writes any more, or earlier to see whether batches still end.

Layout: `NUM_LANES` lanes of `_LANE_BYTES`; a lane is ``int64 progress | int64 count | int64 ids[count]``.
`count` is -1 while the ids change and when there are more of them than fit.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence

# Two threads a model; a lane that nobody has used takes no memory.
NUM_LANES = 256
# Whoever finds no lane writes here; from then on nobody can tell what is running.
NO_LANE = NUM_LANES
_LANE_BYTES = 8192
_MAX_IDS = _LANE_BYTES // 8 - 2
_PAIR = struct.Struct("<qq")
_SIZE = (NUM_LANES + 1) * _LANE_BYTES


def create_journal_file() -> int:
    """A file without a name, of the right size, as a file descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("hilbert-journal", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _SIZE)
    return fd


class Journal:
    """One mapping of the file; the front and the worker hold one each.

    Args:
        fd: from `create_journal_file`; it stays open.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)

    def enter(self, lane: int, request_ids: Sequence[int]) -> None:
        """Say that these requests are now computed. `lane` belongs to the calling thread."""
        start = lane * _LANE_BYTES
        progress, _ = _PAIR.unpack_from(self._map, start)
        _PAIR.pack_into(self._map, start, progress, -1)
        count = len(request_ids)
        if count <= _MAX_IDS and lane != NO_LANE:
            struct.pack_into(f"<{count}q", self._map, start + _PAIR.size, *request_ids)
            _PAIR.pack_into(self._map, start, progress, count)

    def leave(self, lane: int, is_batch_done: bool = True) -> None:
        """Say that they are not computed any more; a batch that is done counts as progress."""
        start = lane * _LANE_BYTES
        progress, _ = _PAIR.unpack_from(self._map, start)
        _PAIR.pack_into(self._map, start, progress + is_batch_done, 0 if lane != NO_LANE else -1)

    def running(self) -> frozenset[int] | None:
        """The requests that are computed; None when that cannot be told."""
        ids: set[int] = set()
        for lane in range(NUM_LANES + 1):
            start = lane * _LANE_BYTES
            _, count = _PAIR.unpack_from(self._map, start)
            if not 0 <= count <= _MAX_IDS:
                return None
            if count:
                ids.update(struct.unpack_from(f"<{count}q", self._map, start + _PAIR.size))
        return frozenset(ids)

    def progress(self) -> int:
        """A number that grows with every batch that ends."""
        return sum(_PAIR.unpack_from(self._map, lane * _LANE_BYTES)[0] for lane in range(NUM_LANES + 1))

    def close(self) -> None:
        """Unmap it. No call may follow."""
        self._map.close()
