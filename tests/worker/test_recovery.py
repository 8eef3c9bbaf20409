"""Workers that are killed, stopped, hang or crash: everybody is answered once, with the right vectors."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import worker_runtimes as danger
from worker_house import PATIENCE, is_alive, spec, until

from hilbert.engine import EngineLimits, Health
from hilbert.errors import EngineError, ShuttingDown, UnsupportedArchitecture, WorkerLost
from hilbert.runtimes.base import RuntimeSettings
from hilbert.worker.frames import FrameError
from hilbert.worker.ledger import Loss

pytestmark = pytest.mark.anyio

LIMIT = 2.0  # worker_timeout_seconds of the houses here
ALL = LIMIT + 5.0  # every waiting caller is answered within this


async def gather_within(seconds: float, *tasks):
    start = time.monotonic()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
    took = time.monotonic() - start
    assert took < seconds, f"the last caller was answered after {took:.1f} s"
    return results


def assert_convicted(error):
    assert type(error) is EngineError and not error.retryable and error.status == 500, repr(error)
    assert "twice" in error.message


class TestKilled:
    async def test_everybody_gets_the_right_vectors(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.02, "max_batch_tokens": 64})
        pid = house.pid
        callers = [house.start([n, n + 1], [n]) for n in range(200)]
        await until(lambda: len(house.batches) >= 2, "it is under load")
        os.kill(pid, signal.SIGKILL)
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        assert house.pid != pid and not is_alive(pid)
        (restart,) = house.restarts
        assert restart.loss is Loss.KILLED and restart.num_convicted == 0
        assert restart.num_waiting > 50
        # Only what was being computed is suspected, not what queued.
        assert restart.num_suspects <= 2 * 64

    async def test_again_and_again(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.01, "max_batch_tokens": 32})
        callers = [house.start([n, n]) for n in range(300)]
        for _ in range(3):
            answered = sum(t.done() for t in callers)
            await until(lambda a=answered: sum(t.done() for t in callers) >= a + 20, "it works")
            os.kill(house.pid, signal.SIGKILL)
            lost = len(house.restarts)
            await until(lambda n=lost: len(house.restarts) > n, "the loss is noticed")
            await until(lambda: house.model.health is Health.READY, "the next one is ready")
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        assert len(house.restarts) == 3

    async def test_health_tells_the_truth_and_newcomers_wait(self, house):
        assert house.model.health is Health.READY
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.RECOVERING, "the loss shows", 1.0)
        await house.embed([1])  # comes while there is no worker
        assert house.model.health is Health.READY

    async def test_the_next_request_after_readiness_is_quick(self, house):
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: bool(house.restarts), "the loss is noticed")
        await until(lambda: house.model.health is Health.READY, "the next one is ready")
        start = time.monotonic()
        await house.embed([1])
        assert time.monotonic() - start < 2.0

    async def test_all_models_come_back(self, house, tmp_path):
        gate = tmp_path / "gate"
        gate.touch()
        others = [await house.load(f"m{n}") for n in range(3)]
        callers = [house.start([n], model=m) for m in [house.model, *others] for n in range(20)]
        os.kill(house.pid, signal.SIGKILL)
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        assert {m.health for m in others} == {Health.READY}
        await house.load("gated", wait_for=str(gate))
        assert house.supervisor.epoch == 1
        gate.unlink()
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.READY and len(house.restarts) == 2, "one is back")
        assert house.supervisor.epoch is None
        gate.touch()
        await until(lambda: house.supervisor.epoch == 2, "all are")

    async def test_others_do_not_wait_for_a_suspect_whose_model_is_away(self, house, tmp_path):
        gate = tmp_path / "gate"
        gate.touch()
        slow = await house.load("slow", wait_for=str(gate))
        suspect = house.start([danger.SLOW], model=slow)
        await asyncio.sleep(0.1)
        gate.unlink()
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.READY and house.restarts, "the next one is ready")
        assert house.restarts[0].num_suspects == 1
        await asyncio.wait_for(house.embed([1]), 1.0)
        gate.touch()
        await suspect

    async def test_a_caller_that_leaves_meanwhile(self, house):
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.RECOVERING, "the loss shows")
        leaver = house.start([1])
        await until(lambda: house.supervisor.num_pending == 1, "it waits")
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert house.supervisor.num_pending == 0
        await house.embed([2])

    async def test_deadlines_go_on_counting(self, house, tmp_path):
        from hilbert.errors import RequestTimeout

        gate = tmp_path / "gate"
        gate.touch()
        model = await house.load("gated", wait_for=str(gate))
        gate.unlink()
        os.kill(house.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RequestTimeout):
            await house.embed([1], model=model, deadline=0.5)
        assert 0.4 < time.monotonic() - start < 1.5
        gate.touch()


class TestStopped:
    async def test_a_stopped_worker_is_replaced(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.02, "max_batch_tokens": 64})
        pid = house.pid
        callers = [house.start([n, n + 1]) for n in range(200)]
        await until(lambda: len(house.batches) >= 2, "it is under load")
        os.kill(pid, signal.SIGSTOP)
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        assert not is_alive(pid)
        assert [r.loss for r in house.restarts] == [Loss.HUNG]

    async def test_readiness_falls_before_the_limit(self, open_house):
        house = await open_house(worker_timeout_seconds=10.0)
        os.kill(house.pid, signal.SIGSTOP)
        await until(lambda: house.model.health is Health.RECOVERING, "the silence shows", 8.0)
        assert not house.restarts
        os.kill(house.pid, signal.SIGCONT)
        await until(lambda: house.model.health is Health.READY, "it answers again")
        await house.embed([1])
        assert not house.restarts

    async def test_a_front_that_was_stopped_blames_nobody(self, open_house):
        """The loop stands still for longer than the limit."""
        house = await open_house(worker_timeout_seconds=0.5)
        time.sleep(1.5)
        await asyncio.sleep(0.3)
        await house.embed([1])
        assert not house.restarts

    async def test_while_another_model_is_loaded(self, house, tmp_path):
        """A first load does not lengthen the limit for those who are served."""
        house.supervisor.begin_load("slow", spec(wait_for=str(tmp_path / "never")), RuntimeSettings())
        await house.embed([1])
        os.kill(house.pid, signal.SIGSTOP)
        await gather_within(ALL, house.start([2]))
        assert [r.loss for r in house.restarts] == [Loss.HUNG]

    async def test_no_new_worker_in_time(self, house, tmp_path):
        """Then callers get an answer that may be retried, and those who come later do not wait for good."""
        gate = tmp_path / "gate"
        gate.touch()
        model = await house.load("gated", wait_for=str(gate))
        gate.unlink()
        await house.embed([1], model=model)
        os.kill(house.pid, signal.SIGSTOP)
        callers = [house.start([n], model=model) for n in range(10)]
        for error in await gather_within(ALL, *callers):
            assert isinstance(error, WorkerLost) and error.retryable and error.status == 503
        assert model.health is Health.RECOVERING
        await house.embed([1])  # the other model is there
        gate.touch()
        await until(lambda: model.health is Health.READY, "the gate is open")
        await house.embed([1], model=model)


class TestHung:
    @pytest.mark.parametrize("token", [danger.HANG, danger.KEEP_GIL], ids=["a batch", "the GIL"])
    async def test_only_the_guilty_request_fails(self, house, token):
        callers = [house.start([1, token]), *[house.start([n]) for n in range(50)]]
        guilty, *others = await gather_within(ALL, *callers)
        assert_convicted(guilty)
        assert [r for r in others if isinstance(r, BaseException)] == []
        assert {r.loss for r in house.restarts} == {Loss.HUNG}

    async def test_a_batch_of_a_model_that_is_unloaded(self, house):
        limits = EngineLimits(batch_timeout_seconds=0.5)
        model = await house.load("leaving", limits)
        hanging = house.start([1, danger.HANG], model=model)
        await asyncio.sleep(0.1)
        unloading = asyncio.create_task(house.supervisor.unload("leaving", 0.1))
        with pytest.raises(ShuttingDown):
            await hanging
        await asyncio.wait_for(house.embed([1]), 4.0)
        await asyncio.wait_for(unloading, 1.0)
        assert [r.loss for r in house.restarts] == [Loss.HUNG]

    async def test_a_slow_batch_is_no_hang(self, open_house):
        house = await open_house(config={"seconds_per_batch": LIMIT * 0.7})
        await house.embed([1])
        assert not house.restarts


class TestCrash:
    @pytest.mark.parametrize(
        "token",
        [danger.SEGFAULT, danger.ABORT, danger.EXIT, danger.DEVICE_LOST],
        ids=["segfault", "abort", "exit", "device lost"],
    )
    async def test_poison_is_isolated(self, house, token):
        callers = [house.start([n, n]) for n in range(40)]
        poison = house.start([1, token], [2])
        callers += [house.start([n]) for n in range(40)]
        results = await gather_within(ALL, poison, *callers)
        assert_convicted(results[0])
        assert [r for r in results[1:] if isinstance(r, BaseException)] == []
        assert len(house.restarts) == 2
        assert [r.num_convicted for r in house.restarts] == [0, 1]
        await house.embed([1])

    async def test_an_answer_that_cannot_be_read(self, house, monkeypatch):
        from hilbert.worker import desk

        read = desk.decode_result

        def garbled(*_):
            monkeypatch.setattr(desk, "decode_result", read)
            raise FrameError("the rows do not fit")

        monkeypatch.setattr(desk, "decode_result", garbled)
        await asyncio.wait_for(house.embed([1]), ALL)
        assert len(house.restarts) == 1 and "do not fit" in house.restarts[0].reason

    async def test_a_lone_poison(self, house):
        with pytest.raises(EngineError, match="twice"):
            await house.embed([danger.SEGFAULT])
        await house.embed([1])

    async def test_many_poisons_do_not_wear_the_supervisor_out(self, house):
        poisons = [house.start([danger.EXIT, n]) for n in range(4)]
        others = [house.start([n]) for n in range(40)]
        results = await gather_within(20.0, *poisons, *others)
        for error in results[:4]:
            assert_convicted(error)
        assert [r for r in results[4:] if isinstance(r, BaseException)] == []

    async def test_an_exception_costs_no_worker(self, house):
        output = await house.model.run(house.request([danger.RAISE]))
        assert list(output.errors) == [0]
        assert not house.restarts

    async def test_poison_in_one_model_spares_the_other(self, house):
        other = await house.load("other")
        poison = house.start([danger.SEGFAULT])
        callers = [house.start([n], model=other) for n in range(50)]
        results = await gather_within(ALL, poison, *callers)
        assert_convicted(results[0])
        assert [r for r in results[1:] if isinstance(r, BaseException)] == []


class TestGivingUp:
    async def test_workers_that_die_at_their_start(self, open_house, tmp_path):
        trap = tmp_path / "trap"
        house = await open_house(
            config={"die_while_exists": str(trap)}, max_fast_failures=3, slow_retry_seconds=0.3
        )
        trap.touch()
        os.kill(house.pid, signal.SIGKILL)
        waiting = house.start([1])
        (error,) = await gather_within(ALL, waiting)
        assert isinstance(error, WorkerLost) and error.retry_after_seconds
        assert house.model.health is Health.FAILED
        with pytest.raises(WorkerLost):
            await house.embed([1])
        trap.unlink()
        await until(lambda: house.model.health is Health.READY, "it goes on trying")
        await house.embed([1])

    @pytest.mark.parametrize("scarce", ["processes", "threads"])
    async def test_no_process_can_be_started(self, open_house, monkeypatch, scarce):
        from hilbert.worker import spawn, supervisor

        house = await open_house(max_fast_failures=3, slow_retry_seconds=0.2)
        await house.embed([1])  # it was useful, and it lived long enough to be no failure itself
        monkeypatch.setattr(supervisor, "_STABLE_SECONDS", 0.0)

        tries = []

        def fail(*_):
            tries.append(None)
            assert len(tries) < 100, "it tries without a pause, and nobody else gets a word in"
            if scarce == "threads":
                raise RuntimeError("can't start new thread")
            raise BlockingIOError(11, "Resource temporarily unavailable")

        if scarce == "threads":
            monkeypatch.setattr(spawn.WorkerProcess, "watch", fail)
        else:
            monkeypatch.setattr(supervisor, "prestart", fail)
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.FAILED, "it gives up")
        monkeypatch.undo()
        monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
        await until(lambda: house.model.health is Health.READY, "it goes on trying")

    async def test_one_model_that_does_not_come_back(self, house, tmp_path):
        trap = tmp_path / "trap"
        bad = await house.load("bad", fail_while_exists=str(trap))
        trap.touch()
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: bad.health is Health.FAILED, "its failure shows")
        with pytest.raises(UnsupportedArchitecture):
            await house.embed([1], model=bad)
        await house.embed([1])
        assert house.model.health is Health.READY

    async def test_one_model_that_kills_every_new_worker(self, house, tmp_path):
        trap = tmp_path / "trap"
        bad = await house.load("bad", die_while_exists=str(trap))
        trap.touch()
        os.kill(house.pid, signal.SIGKILL)
        await gather_within(ALL, house.start([1]))
        await until(lambda: bad.health is Health.FAILED, "it is left out")
        await until(lambda: house.model.health is Health.READY, "the other is not")

    async def test_a_model_that_is_traced_is_not_blamed_for_the_one_that_is_built(self, house, tmp_path):
        trap, traced = tmp_path / "trap", tmp_path / "traced"
        trap.touch()
        slow = asyncio.create_task(house.load("slow", traced_when=str(traced)))
        await house.embed([1])  # "slow" comes first
        with pytest.raises(EngineError, match="died 2 times while it loaded bad"):
            await house.load("bad", die_while_exists=str(trap))
        assert len(house.restarts) == 2
        traced.touch()
        await house.embed([1], model=await asyncio.wait_for(slow, 10))

    async def test_a_model_that_kills_workers_while_others_are_served(self, open_house, tmp_path):
        """The requests that run meanwhile are not blamed for it, and all get their vectors."""
        house = await open_house(config={"seconds_per_batch": 0.02})
        trap = tmp_path / "trap"
        trap.touch()
        is_over = False

        async def client(number: int) -> None:
            while not is_over:
                await house.embed([number])

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        await until(lambda: len(house.batches) > 2, "it is under load")
        with pytest.raises(EngineError, match="died 2 times while it loaded bad"):
            await asyncio.wait_for(house.load("bad", die_while_exists=str(trap)), ALL)
        await asyncio.sleep(0.2)
        is_over = True
        await gather_within(ALL, *clients)
        assert [client.exception() for client in clients] == [None] * 8
        assert len(house.restarts) == 2

    async def test_poison_while_a_model_is_built(self, house, tmp_path):
        gate = tmp_path / "gate"
        other = house.supervisor.begin_load("other", spec(wait_for=str(gate)), RuntimeSettings())
        callers = [house.start([1, danger.SEGFAULT]), *[house.start([n]) for n in range(20)]]
        guilty, *others = await gather_within(ALL, *callers)
        assert_convicted(guilty)
        assert [r for r in others if isinstance(r, BaseException)] == []
        gate.touch()
        await house.supervisor.wait_loaded(other)
        assert len(house.restarts) == 2

    async def test_another_version_is_refused(self, open_house, monkeypatch):
        """After an upgrade under a running server, a new worker may be another program."""
        import hilbert

        house = await open_house(max_fast_failures=2, slow_retry_seconds=5.0)
        monkeypatch.setattr(hilbert, "__version__", "0.0.0")
        os.kill(house.pid, signal.SIGKILL)
        await until(lambda: house.model.health is Health.FAILED, "it gives up")
        assert "restart the server" in house.restarts[-1].reason


class TestDrain:
    async def test_what_is_in_flight_is_finished(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.05, "max_batch_tokens": 8})
        pid = house.pid
        callers = [house.start([n]) for n in range(60)]
        await until(lambda: house.supervisor.num_pending == 60, "all are posted")
        draining = asyncio.create_task(house.supervisor.drain())
        await asyncio.sleep(0)
        assert house.model.health is Health.DRAINING
        with pytest.raises(ShuttingDown):
            await house.embed([1])
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        await draining
        assert not is_alive(pid)
        assert house.model.health is Health.STOPPED
        assert not house.restarts

    async def test_a_loss_meanwhile_is_survived(self, open_house):
        house = await open_house(config={"seconds_per_batch": 0.05, "max_batch_tokens": 8})
        callers = [house.start([n]) for n in range(60)]
        await until(lambda: len(house.batches) > 1, "it is under load")
        draining = asyncio.create_task(house.supervisor.drain())
        os.kill(house.pid, signal.SIGKILL)
        results = await gather_within(ALL, *callers)
        assert [r for r in results if isinstance(r, BaseException)] == []
        await draining

    async def test_of_one_model(self, house):
        model = await house.load("leaving")
        caller = house.start([danger.SLOW], model=model)
        await asyncio.sleep(0.1)
        unloading = asyncio.create_task(house.supervisor.unload("leaving"))
        await asyncio.sleep(0)
        os.kill(house.pid, signal.SIGKILL)
        await asyncio.wait_for(caller, 4.0)
        await unloading
        assert model.health is Health.STOPPED and list(house.supervisor.models) == ["model"]

    async def test_what_does_not_end_is_cut_off(self, open_house):
        house = await open_house(exit_seconds=0.5, worker_timeout_seconds=30.0)
        pid = house.pid
        stuck = house.start([danger.HANG])
        await until(lambda: house.supervisor.num_pending == 1, "it is posted")
        start = time.monotonic()
        await house.supervisor.drain(0.3)
        assert time.monotonic() - start < 3.0
        with pytest.raises(ShuttingDown):
            await stuck
        assert not is_alive(pid)

    async def test_while_the_first_load_goes_on(self, open_house, tmp_path):
        house = await open_house(load=False)
        loading = asyncio.create_task(
            house.supervisor.load("m", spec(wait_for=str(tmp_path / "never")), RuntimeSettings())
        )
        await until(lambda: house.supervisor.pid is not None, "a worker is there")
        await house.supervisor.drain()
        with pytest.raises(ShuttingDown):
            await loading
