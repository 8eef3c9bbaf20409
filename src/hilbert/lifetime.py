"""A process that must not outlive the one that started it says so here. Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends.

    Elsewhere than on Linux nothing happens: there the end of a pipe or socket has to do.

    Args:
        parent: process id of the one that started it; when that is gone already, this process ends.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)
