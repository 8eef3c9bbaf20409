"""Starts worker processes. Imports nothing but what the interpreter has loaded anyway.

`prestart()` may be called as the very first thing of a program: the worker's interpreter then starts
while the front still reads its flags. The supervisor adopts the process later.

A worker
- is the child of the *thread* that starts it, as far as Linux's parent-death signal is concerned: start
  it on a thread that lives as long as the worker should (the main thread, or the event loop's);
- leads a process group of its own: Ctrl-C in a terminal reaches the front alone, and killing the group
  also ends the helpers that a worker may run (tracing happens in a child of it);
- has no standard input, and its standard output is the front's standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import hilbert
from hilbert.worker.journal import Journal, create_journal_file

# Beside those that compute: the two that hand batches over.
_MORE_THREADS = 2


class WorkerProcess:
    """A worker process that was started, and the front's end of its socket.

    Attributes:
        sock: connected; belongs to whoever adopts the process.
        journal: what the worker is computing.
        pid: its process id, which is also its process group.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, journal: Journal) -> None:
        self._process = process
        self.sock = sock
        self.journal = journal
        self.pid = process.pid

    def kill(self) -> None:
        """SIGKILL the process and its helpers; harmless when it is dead already."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Block until it has exited.

        Returns:
            The exit status, negative for a signal.

        Raises:
            TimeoutError: it still runs.
        """
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"worker {self.pid} still runs after {timeout_seconds} s") from error

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit` with the exit status, on a thread of its own, once the process has exited."""

        def wait() -> None:
            status = self._process.wait()
            # Helpers of a worker that crashed must not outlive it; its group lives while they do.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            on_exit(status)

        threading.Thread(target=wait, name=f"hilbert-wait-{self.pid}", daemon=True).start()

    def close(self) -> None:
        """Kill it, wait for it, and release what the front holds of it."""
        self.kill()
        self._process.wait()
        self.sock.close()
        self.journal.close()


def prestart(runtime_factory: str | None = None, preload: tuple[str, ...] = ()) -> WorkerProcess:
    """Start a worker process.

    Args:
        runtime_factory: ``"module:function"`` that makes the runtimes instead of
            `runtimes.load_runtime`; for tests and for measuring. It is an argument of the process and
            cannot be reached over the socket.
        preload: modules that the worker imports while it waits for its first order.
    """
    front, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    journal_fd = create_journal_file()
    try:
        command = [sys.executable, "-P", "-m", "hilbert.worker"]
        command += ["--fd", str(worker.fileno()), "--journal", str(journal_fd), "--parent", str(os.getpid())]
        if runtime_factory:
            command += ["--runtime-factory", runtime_factory]
        for module in preload:
            command += ["--preload", module]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=_standard_error(),
            pass_fds=(worker.fileno(), journal_fd),
            process_group=0,
            env=_environment(),
        )
        journal = Journal(journal_fd)
    except BaseException:
        front.close()
        raise
    finally:
        worker.close()
        os.close(journal_fd)
    return WorkerProcess(process, front, journal)


def _environment() -> dict[str, str]:
    # What the user has set wins. Each thread that allocates would get an arena of its own, which keeps what
    # it once held; with fewer than one for each busy thread they wait for each other, a sixth of the time of
    # a lone request (bench/LOG.md). Nothing in a worker multiplies matrices in numpy, and the threads that
    # numpy's OpenBLAS starts when it is imported cost 50 ms of every start.
    defaults = {
        "MALLOC_ARENA_MAX": str((os.cpu_count() or 1) + _MORE_THREADS),
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment = {**defaults, **os.environ}
    # The worker must import the same hilbert as the front, also when the front found it through the
    # current folder, which `-P` hides. Installed packages are found anyway and must not come first.
    root = os.path.dirname(os.path.dirname(os.path.abspath(hilbert.__file__)))
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment["PYTHONPATH"] = os.pathsep.join([*paths, root])
    return environment


def _standard_error() -> int:
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2
