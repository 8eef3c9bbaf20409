"""``python -m hilbert.worker``: the worker process. Started by `worker.spawn`, never by hand.

It imports as little as it can: no asyncio, no web framework, no torch unless a model needs it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_USAGE = "hilbert.worker is started by hilbert itself"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends.

    Elsewhere than on Linux the end of the socket does it, a little later.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)


def main(arguments: list[str]) -> None:
    """Serve until the front hangs up.

    Args:
        arguments: ``--fd N --journal N --parent PID [--runtime-factory MODULE:NAME] [--preload MODULE]…``
    """
    pairs = list(zip(arguments[::2], arguments[1::2], strict=False))
    options = dict(pairs)
    if not {"--fd", "--journal", "--parent"} <= options.keys():
        sys.exit(_USAGE)
    _die_with(int(options["--parent"]))
    # The front decides when a worker ends: a Ctrl-C or a SIGTERM for the whole group must not cut off
    # requests that the front still wants to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    from hilbert.worker.process import run

    preload = [value for name, value in pairs if name == "--preload"]
    run(int(options["--fd"]), int(options["--journal"]), options.get("--runtime-factory"), preload)


if __name__ == "__main__":
    main(sys.argv[1:])
