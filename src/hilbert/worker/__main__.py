"""``python -m hilbert.worker``: the worker process. Started by `worker.spawn`, never by hand.

It imports as little as it can: no asyncio, no web framework, no torch unless a model needs it.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

from hilbert.lifetime import die_with

_USAGE = "hilbert.worker is started by hilbert itself"


def main(arguments: list[str]) -> None:
    """Serve until the front hangs up.

    Where the kernel has no parent-death signal, the end of the socket ends the worker a little later.

    Args:
        arguments: ``--fd N --journal N --parent PID [--runtime-factory MODULE:NAME] [--preload MODULE]…``
    """
    pairs = list(zip(arguments[::2], arguments[1::2], strict=False))
    options = dict(pairs)
    if not {"--fd", "--journal", "--parent"} <= options.keys():
        sys.exit(_USAGE)
    die_with(int(options["--parent"]))
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
