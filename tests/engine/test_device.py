"""The device's turn: one at a time, fair by seconds, no credit for idling."""

from __future__ import annotations

import math
import threading
from queue import Queue

import pytest

from hilbert.engine import Device
from hilbert.errors import WorkerLost
from hilbert.testing.clock import ManualClock


class Player:
    """A thread that wants the device once and then stays on it until told to leave."""

    def __init__(self, device: Device, owner: str, arrivals: Queue[Player]) -> None:
        self.owner = owner
        self.error: WorkerLost | None = None
        self.may_leave = threading.Event()
        is_free = device._holder is None
        num_waiting = len(device._waiting)

        def play() -> None:
            try:
                with device.turn(owner):
                    arrivals.put(self)
                    self.may_leave.wait()
            except WorkerLost as error:
                self.error = error

        self.thread = threading.Thread(target=play, daemon=True)
        self.thread.start()
        # Until it has the turn or stands in the line: the order of arrival is part of the tests.
        while (device._holder is None) if is_free else (len(device._waiting) == num_waiting):
            threading.Event().wait(0.001)

    def leave(self) -> None:
        self.may_leave.set()
        self.thread.join(10)


def play(device: Device, clock: ManualClock, owners: list[str], seconds: dict[str, float]) -> list[str]:
    """Threads arrive in the order of `owners`, and each stays for the seconds of its owner.

    Returns:
        The owners in the order in which they had the turn.
    """
    arrivals: Queue[Player] = Queue()
    for owner in owners:
        Player(device, owner, arrivals)
    order = []
    for _ in owners:
        player = arrivals.get(timeout=10)
        order.append(player.owner)
        clock.advance(seconds[player.owner])
        player.leave()
    return order


def test_the_engine_that_has_used_least_goes_first():
    clock = ManualClock()
    owners = ["slow", "slow", "slow", "fast", "fast", "fast", "fast"]
    order = play(Device(clock=clock), clock, owners, {"slow": 4.0, "fast": 1.0})
    assert order == ["slow", "fast", "fast", "fast", "fast", "slow", "slow"]


def test_equal_engines_alternate():
    clock = ManualClock()
    order = play(Device(clock=clock), clock, ["a", "a", "a", "b", "b", "b"], {"a": 1.0, "b": 1.0})
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_idling_banks_no_credit():
    clock = ManualClock()
    device = Device(clock=clock)
    for _ in range(100):  # b has used 100 s that a has not
        with device.turn("b"):
            clock.advance(1.0)
    clock.advance(1000)
    order = play(device, clock, ["b", "a", "a", "a", "a", "b", "b"], {"a": 1.0, "b": 1.0})
    assert order == ["b", "a", "a", "b", "a", "b", "a"]


def test_an_exception_gives_the_turn_on():
    device = Device()
    with pytest.raises(ZeroDivisionError), device.turn("a"):
        raise ZeroDivisionError
    with device.turn("b"):
        pass


def test_a_lost_device_lets_everybody_go():
    arrivals: Queue[Player] = Queue()
    device = Device(name="cpu")
    holder = Player(device, "a", arrivals)
    waiting = [Player(device, "b", arrivals), Player(device, "a", arrivals)]
    device.fail("it burns")
    for player in waiting:
        player.thread.join(10)
        assert player.error is not None
        assert player.error.message == "cpu was lost: it burns"
    holder.leave()
    assert holder.error is None
    with pytest.raises(WorkerLost), device.turn("b"):
        pass
    assert arrivals.qsize() == 1


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


def test_long_turns_are_cut_while_short_ones_are_about() -> None:
    now = 0.0
    device = Device(clock=lambda: now)

    def turn(owner: str, seconds: float) -> None:
        nonlocal now
        with device.turn(owner):
            now += seconds

    turn("flood", 0.032)
    assert device.slice_seconds("flood") == math.inf  # alone, it may take what it likes
    turn("lone", 0.005)
    assert device.slice_seconds("flood") == pytest.approx(0.010)
    assert device.slice_seconds("lone") == pytest.approx(0.064)  # which it does not need
    turn("tiny", 0.0001)
    assert device.slice_seconds("flood") == 0.004
    device.leave("tiny")
    assert device.slice_seconds("flood") == pytest.approx(0.010)
    for _ in range(40):  # the usual turn follows
        turn("lone", 0.040)
    assert device.slice_seconds("flood") == pytest.approx(0.080, rel=0.01)
    now += 1.0
    assert device.slice_seconds("flood") == math.inf  # gone for a second
