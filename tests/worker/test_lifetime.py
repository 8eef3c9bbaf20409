"""Worker processes begin and end when they should, whatever happens to the front."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from worker_house import FACTORY, children, is_alive, spec, until

from hilbert.core import Request, Sequence
from hilbert.runtimes.base import RuntimeSettings
from hilbert.testing.runtime import fake_vector, tokens
from hilbert.worker.settings import SupervisorSettings
from hilbert.worker.spawn import prestart
from hilbert.worker.supervisor import Supervisor

FRONT = """
    import asyncio, os, sys
    from hilbert.worker.settings import SupervisorSettings
    from hilbert.worker.supervisor import Supervisor
    from hilbert.runtimes.base import RuntimeSettings
    from worker_house import House, spec
    from worker_runtimes import *

    async def main():
        supervisor = Supervisor(SupervisorSettings(runtime_factory="worker_runtimes:make"))
        await supervisor.start()
        house = House(supervisor, [], [])
        house.model = await house.load()
        print(supervisor.pid, flush=True)
        {then}

    asyncio.run(main())
"""


def run_front(then: str) -> tuple[subprocess.Popen[str], int]:
    """A front in a process of its own; returns it with the pid of its worker."""
    code = textwrap.dedent(FRONT).format(then=then)
    front = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert front.stdout is not None
    return front, int(front.stdout.readline())


def wait_gone(pid: int, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} outlived its parent"
        time.sleep(0.005)


class TestNoWorkerOutlivesItsFront:
    @pytest.mark.parametrize(
        "then",
        [
            "await asyncio.sleep(60)",
            "await house.embed([1, HANG])",
            "await house.embed([1, KEEP_GIL])",  # the worker cannot even notice that its socket closes
        ],
        ids=["idle", "hung", "GIL"],
    )
    def test_front_is_killed(self, then):
        front, worker = run_front(then)
        with front:
            assert is_alive(worker)
            time.sleep(0.3)
            front.kill()
        wait_gone(worker)

    def test_a_stopped_worker_too(self):
        front, worker = run_front("await asyncio.sleep(60)")
        with front:
            os.kill(worker, signal.SIGSTOP)
            front.kill()
        wait_gone(worker)

    def test_front_forgets_to_close(self):
        front, worker = run_front("pass")
        with front:
            assert front.wait(20) == 0
        wait_gone(worker)

    def test_front_dies_of_an_exception(self):
        front, worker = run_front("os._exit(1)")
        with front:
            assert front.wait(20) == 1
        wait_gone(worker)

    def test_the_socket_alone_is_enough(self):
        """Where the kernel has no parent-death signal."""
        process = prestart(FACTORY)
        process.sock.recv(1)  # the beginning of its hello
        process.sock.close()
        assert process.wait(10) == 0
        process.close()


class TestSignals:
    @pytest.mark.anyio
    async def test_ctrl_c_and_sigterm_are_the_fronts_business(self, house):
        pid = house.pid
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        await house.embed([1])
        assert house.pid == pid and not house.restarts

    @pytest.mark.anyio
    async def test_a_process_group_of_its_own(self, house):
        assert os.getpgid(house.pid) == house.pid != os.getpgid(0)


class TestPrestart:
    @pytest.mark.anyio
    async def test_it_is_adopted(self):
        process = prestart(FACTORY)
        supervisor = Supervisor(SupervisorSettings(runtime_factory=FACTORY), first=process)
        await supervisor.start()
        model = await supervisor.load("m", spec(), RuntimeSettings())
        assert supervisor.pid == process.pid
        output = await model.run(Request(1, (Sequence(1, 0, tokens(5)),)))
        assert (output.dense[0] == fake_vector(tokens(5))).all()
        await supervisor.drain()

    @pytest.mark.anyio
    async def test_long_before_it_is_needed(self):
        """The hello lies in the socket by then."""
        process = prestart(FACTORY)
        await asyncio.sleep(1.0)
        supervisor = Supervisor(SupervisorSettings(runtime_factory=FACTORY), first=process)
        await supervisor.start()
        await asyncio.wait_for(supervisor.load("m", spec(), RuntimeSettings()), 10)
        assert supervisor.num_restarts == 0
        await supervisor.drain()

    @pytest.mark.anyio
    async def test_one_that_died_meanwhile_is_replaced(self):
        process = prestart(FACTORY)
        os.kill(process.pid, signal.SIGKILL)
        supervisor = Supervisor(SupervisorSettings(runtime_factory=FACTORY), first=process)
        await supervisor.start()
        await asyncio.wait_for(supervisor.load("m", spec(), RuntimeSettings()), 10)
        assert supervisor.num_restarts == 1
        await supervisor.drain()

    @pytest.mark.anyio
    async def test_one_that_is_never_used(self):
        process = prestart(FACTORY)
        supervisor = Supervisor(first=process)
        await supervisor.close()
        assert not is_alive(process.pid)

    def test_a_preload_that_cannot_be_imported_is_no_reason_to_die(self):
        process = prestart(FACTORY, ("no_such_module",))
        with pytest.raises(TimeoutError):
            process.wait(1.0)
        process.close()

    def test_the_current_folder_is_not_imported_from(self, tmp_path, monkeypatch):
        (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
        monkeypatch.chdir(tmp_path)
        process = prestart(FACTORY)
        process.sock.settimeout(10)
        assert process.sock.recv(1)
        process.close()


class TestHelpers:
    @pytest.mark.anyio
    async def test_children_of_a_worker_end_with_it(self, open_house, tmp_path):
        house = await open_house(config={"start_child": str(tmp_path / "pid")})
        child = int((tmp_path / "pid").read_text())
        assert is_alive(child)
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: not is_alive(child), "the worker's child is gone", 5.0)

    @pytest.mark.anyio
    async def test_at_drain_too(self, open_house, tmp_path):
        house = await open_house(config={"start_child": str(tmp_path / "pid")})
        child = int((tmp_path / "pid").read_text())
        await house.supervisor.drain()
        await until(lambda: not is_alive(child), "the worker's child is gone", 5.0)


class TestLight:
    """Every import costs start time and memory in each worker."""

    def loaded(self, code: str) -> set[str]:
        code += "\nimport sys; print(*sys.modules)"
        return set(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        )

    def test_worker(self):
        modules = self.loaded("import hilbert.worker.process, hilbert.worker.__main__")
        assert "hilbert.worker.frames" in modules
        heavy = {
            "asyncio",
            "starlette",
            "typer",
            "prometheus_client",
            "torch",
            "transformers",
            "huggingface_hub",
            "uvicorn",
            "ssl",
            "openvino",
            "hilbert.api",
            "hilbert.cli",
        }
        assert modules & heavy == set()

    def test_prestart(self):
        modules = self.loaded("import hilbert.worker.spawn")
        assert "hilbert.worker.spawn" in modules
        assert modules & {"numpy", "asyncio", "msgspec", "typer", "hilbert.core"} == set()

    def test_help_of_a_process_that_is_not_for_humans(self):
        done = subprocess.run([sys.executable, "-m", "hilbert.worker"], capture_output=True, text=True)
        assert done.returncode != 0 and "started by hilbert itself" in done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("chosen", ["", "7"])
async def test_a_worker_has_room_for_each_of_its_threads_to_allocate(open_house, monkeypatch, chosen):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if chosen:
        monkeypatch.setenv("MALLOC_ARENA_MAX", chosen)
    house = await open_house()
    given = dict(
        pair.split("=", 1)
        for pair in Path(f"/proc/{house.pid}/environ").read_text().split("\0")
        if "=" in pair
    )
    assert given["MALLOC_ARENA_MAX"] == (chosen or str(os.cpu_count() + 2))
    assert given["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.anyio
async def test_threads_and_files_are_given_back(open_house):
    """Five workers later the front holds nothing more than before."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    house = await open_house()
    await house.embed([1])
    before = held()
    for _ in range(5):
        lost = len(house.restarts)
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda n=lost: len(house.restarts) > n, "the loss is noticed")
        await house.embed([1])
    await until(lambda: held() <= before, f"back to {before} from {held()}", 5.0)
    assert len(children(os.getpid())) == 1
    assert Path(f"/proc/{house.pid}").exists()
