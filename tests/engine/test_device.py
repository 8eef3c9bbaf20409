"""The device's turn: one at a time, fair by seconds, no credit for idling."""

from __future__ import annotations

import threading

import pytest

from hilbert.engine import Device
from hilbert.errors import WorkerLost
from hilbert.testing.clock import ManualClock


class Player:
    """A thread that wants the device once and then stays on it until told to leave."""

    def __init__(self, device: Device, owner: str, log: list[str]) -> None:
        self.error: WorkerLost | None = None
        self.has_turn = threading.Event()
        self.may_leave = threading.Event()
        num_waiting = len(device._waiting)
        is_free = device._holder is None

        def play() -> None:
            try:
                with device.turn(owner):
                    log.append(owner)
                    self.has_turn.set()
                    self.may_leave.wait()
            except WorkerLost as error:
                self.error = error

        self.thread = threading.Thread(target=play, daemon=True)
        self.thread.start()
        if is_free:
            assert self.has_turn.wait(10)
        else:  # until it stands in the line: the order of arrival is part of the tests
            while len(device._waiting) == num_waiting:
                threading.Event().wait(0.001)

    def leave(self) -> None:
        assert self.has_turn.wait(10)
        self.may_leave.set()
        self.thread.join(10)


def play(
    device: Device, clock: ManualClock, players: list[Player], seconds: dict[str, float], log: list[str]
):
    """Let everybody have the turn, in the device's order, each for the seconds of its owner."""
    left = list(players)
    while left:
        current = next(p for p in left if p.has_turn.wait(0.01))
        clock.advance(seconds[log[-1]])
        current.leave()
        left.remove(current)


def test_the_engine_that_has_used_least_goes_first():
    clock, log = ManualClock(), []
    device = Device(clock=clock)
    first = Player(device, "slow", log)
    players = [
        first,
        *(Player(device, owner, log) for owner in ["slow", "slow", "fast", "fast", "fast", "fast"]),
    ]
    play(device, clock, players, {"slow": 4.0, "fast": 1.0}, log)
    assert log == ["slow", "fast", "fast", "fast", "fast", "slow", "slow"]


def test_equal_engines_alternate():
    clock, log = ManualClock(), []
    device = Device(clock=clock)
    players = [Player(device, owner, log) for owner in ["a", "a", "a", "b", "b", "b"]]
    play(device, clock, players, {"a": 1.0, "b": 1.0}, log)
    assert log == ["a", "b", "a", "b", "a", "b"]


def test_idling_banks_no_credit():
    clock, log = ManualClock(), []
    device = Device(clock=clock)
    for _ in range(100):  # b has used 100 s that a has not
        with device.turn("b"):
            clock.advance(1.0)
    clock.advance(1000)
    players = [Player(device, owner, log) for owner in ["b", "a", "a", "a", "a", "b", "b"]]
    play(device, clock, players, {"a": 1.0, "b": 1.0}, log)
    assert log == ["b", "a", "a", "b", "a", "b", "a"]


def test_an_exception_gives_the_turn_on():
    device = Device()
    with pytest.raises(ZeroDivisionError), device.turn("a"):
        raise ZeroDivisionError
    with device.turn("b"):
        pass


def test_a_lost_device_lets_everybody_go():
    log: list[str] = []
    device = Device(name="cpu")
    holder = Player(device, "a", log)
    waiting = [Player(device, "b", log), Player(device, "a", log)]
    device.fail("it burns")
    for player in waiting:
        player.thread.join(10)
        assert player.error is not None
        assert player.error.message == "cpu was lost: it burns"
    holder.leave()
    assert holder.error is None
    with pytest.raises(WorkerLost), device.turn("b"):
        pass
    assert log == ["a"]


def test_an_engine_may_leave_while_it_has_the_turn():
    device = Device()
    with device.turn("a"):
        device.leave("a")
    with device.turn("a"):
        pass


def test_one_at_a_time_under_contention():
    device = Device()
    inside, most, total = 0, 0, 0

    def work(owner: int) -> None:
        nonlocal inside, most, total
        for _ in range(200):
            with device.turn(owner):
                inside += 1
                most = max(most, inside)
                total += 1
                inside -= 1

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, total) == (1, 1200)
