"""The eviction policy under every order of events, on a manual clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilbert.errors import ModelUnavailable, NoRoom
from hilbert.models.residency import Residency, Resident, State


class House:
    """Memory that is exactly the sum of the sizes, and an owner that does what the plan says."""

    def __init__(self, budget: int, *residents: Resident, floor: int = 0, idle: float | None = None) -> None:
        self.residency = Residency(budget, idle)
        self.floor = floor
        self.now = 0.0
        self.inside: dict[str, int] = {}
        self.loads: list[str] = []
        self.wake_at: float | None = None
        self.peak = 0
        for resident in residents:
            self.residency.add(resident)

    @property
    def used(self) -> int:
        states = (State.LOADED, State.LEAVING)
        return self.floor + sum(r.size_bytes for r in self.residency.residents if r.state in states)

    def settle(self) -> None:
        """Plan until nothing changes; loads succeed at once, idle models leave at once."""
        for _ in range(100):
            for r in self.residency.residents:
                if r.state is State.LEAVING and not self.inside.get(r.key):
                    self.residency.gone(r)
            plan = self.residency.plan(self.now, self.used, {k for k, n in self.inside.items() if n})
            self.wake_at = plan.wake_at
            for resident in plan.load:
                self.loads.append(resident.key)
                self.residency.loaded(resident, self.now, resident.size_bytes)
                self.peak = max(self.peak, self.used)
            if plan.load:
                assert self.used <= self.residency.budget_bytes
            elif plan.refused is None and not any(not self.inside.get(r.key) for r in plan.unload):
                return
        raise AssertionError("the plan never ends")

    def use(self, *residents: Resident) -> None:
        for resident in residents:
            self.now += 1.0
            if resident.state is State.LOADED:
                resident.last_used = self.now
            else:
                self.residency.want(resident, self.now)
            self.settle()

    @property
    def loaded(self) -> set[str]:
        return {r.key for r in self.residency.residents if r.state is State.LOADED}


def three(size: int = 10, **more: bool) -> list[Resident]:
    return [Resident(key, size, **more) for key in "abc"]


def test_the_least_recently_used_leaves() -> None:
    a, b, c = three()
    house = House(20, a, b, c)
    house.use(a, b, a, c)
    assert house.loaded == {"a", "c"} and house.loads == ["a", "b", "c"]


def test_the_pinned_stay_and_the_idle_go_before_the_busy() -> None:
    a, b, c = three()
    a.is_pinned = True
    d = Resident("d", 10)
    house = House(30, a, b, c, d)
    house.use(a, b, c)
    house.inside["b"] = 1
    house.use(d)
    assert house.loaded == {"a", "b", "d"}


def test_a_busy_one_finishes_before_it_leaves() -> None:
    a, b, _ = three()
    house = House(10, a, b)
    house.use(a)
    house.inside["a"] = 1
    house.use(b)
    assert a.state is State.LEAVING and house.loaded == set()
    house.inside.clear()
    house.settle()
    assert house.loaded == {"b"}


def test_eager_ones_fill_what_is_free_and_push_nobody_out() -> None:
    a, b, c = three()
    house = House(20, a, b, c)
    for r in (a, b, c):
        house.residency.want(r, house.now, is_eager=True)
    house.settle()
    assert house.loaded == {"a", "b"} and c.wanted_at is None
    house.use(c)  # somebody asks
    assert house.loaded == {"b", "c"}


def test_the_longest_wait_is_ended_first_and_eager_ones_after_people() -> None:
    a, b, c = three()
    house = House(30, a, b, c)
    house.residency.want(a, 0.0, is_eager=True)
    house.residency.want(b, 2.0)
    house.residency.want(c, 1.0)
    house.settle()
    assert house.loads == ["c", "b", "a"]


def test_several_come_together_where_there_is_room_for_all() -> None:
    a, b, c = three()
    house = House(25, a, b, c)
    for r in (a, b, c):
        house.residency.want(r, 0.0)
    assert house.residency.plan(0.0, 0, ()).load == (a, b)
    assert house.residency.plan(0.0, 3, ()).load == ()  # the two are on their way
    house.residency.loaded(a, 1.0, 10)
    assert house.residency.plan(1.0, 10, ()).load == ()  # nobody is sent away meanwhile
    house.residency.loaded(b, 2.0, 10)
    assert house.residency.plan(2.0, 20, ()).unload == (a,)


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    a, b, c = three(10_000_000)
    a.is_pinned = True
    c.size_bytes = 30_000_000
    house = House(35_000_000, a, b, c, floor=5_000_000)
    house.settle()
    house.use(a, b, c)
    assert isinstance(c.error, NoRoom) and house.loaded == {"a", "b"}
    for number in ("30 MB", "10 MB", "5 MB", "35 MB", "--memory"):
        assert number in c.error.message
    with pytest.raises(NoRoom, match="next try is in"):
        house.residency.want(c, house.now)
    house.residency.set_budget(50_000_000)  # another budget is another matter
    house.residency.want(c, house.now)
    house.settle()
    assert "c" in house.loaded and c.error is None


def test_where_no_setting_raises_the_budget_another_remedy_is_told() -> None:
    residency = Residency(5, remedy="take a smaller --dtype")
    a = Resident("a", 10)
    residency.add(a)
    residency.want(a, 0.0)
    assert residency.plan(0.0, 0, ()).refused is a and a.error is not None
    assert a.error.message.endswith("take a smaller --dtype") and "--memory" not in a.error.message


def test_failures_are_told_at_once_and_tried_again_later_and_later() -> None:
    a, b, _ = three()
    a.is_kept = True
    house = House(20, a, b)
    pauses = []
    for _ in range(12):
        house.residency.want(a, house.now, is_eager=True)
        plan = house.residency.plan(house.now, house.used, ())
        assert plan.load == (a,)
        house.residency.failed(a, house.now, ModelUnavailable("no such model"))
        with pytest.raises(ModelUnavailable, match="no such model") as refused:
            house.residency.want(a, house.now)
        assert refused.value.retry_after_seconds == pytest.approx(a.retry_at - house.now)
        assert house.residency.plan(house.now, house.used, ()).wake_at == a.retry_at
        pauses.append(a.retry_at - house.now)
        house.now = a.retry_at
    assert pauses[:4] == [1, 2, 4, 8] and pauses[-1] == 300
    house.settle()  # kept models are tried by themselves
    assert house.loaded == {"a"} and a.num_failures == 0
    house.use(b)
    assert house.loaded == {"a", "b"}


def test_idle_models_leave_after_their_time() -> None:
    a, b, c = three()
    b.is_pinned = True
    house = House(100, a, b, c, idle=10.0)
    house.use(a, b, c)
    assert house.wake_at == a.last_used + 10
    house.inside["c"] = 1
    house.now = 30.0
    house.settle()
    assert house.loaded == {"b", "c"}  # one is pinned, one is busy
    assert house.wake_at == 40.0


def test_above_the_budget_somebody_leaves_but_never_the_last() -> None:
    a, b, c = three()
    house = House(30, a, b, c)
    house.use(a, b, c)
    a.size_bytes = 25  # it has grown
    house.settle()
    assert house.loaded == {"c"} or house.loaded == {"b", "c"}
    b.size_bytes = c.size_bytes = 100
    house.settle()
    assert len(house.loaded) == 1


EVENTS = st.lists(
    st.tuples(st.sampled_from(["use", "enter", "exit", "pass", "grow"]), st.integers(0, 5)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(
    events=EVENTS,
    sizes=st.lists(st.integers(1, 12), min_size=6, max_size=6),
    pinned=st.integers(0, 5),
    budget=st.integers(25, 40),
)
def test_the_budget_is_kept_and_everybody_is_served(
    events: list[tuple[str, int]], sizes: list[int], pinned: int, budget: int
) -> None:
    residents = [Resident(str(i), size, is_pinned=i == pinned) for i, size in enumerate(sizes)]
    house = House(budget, *residents, idle=7.0)
    for event, index in events:
        resident = residents[index]
        if event == "use":
            house.use(resident)
        elif event == "enter" and resident.state is State.LOADED:
            house.inside[resident.key] = house.inside.get(resident.key, 0) + 1
        elif event == "exit":
            house.inside[resident.key] = 0
            resident.last_used = max(resident.last_used, house.now)
            house.settle()
        elif event == "pass":
            house.now += 5.0
            house.settle()
        elif event == "grow" and resident.state is State.LOADED and resident.size_bytes < 12:
            resident.size_bytes += 1
            house.settle()
        changing = sum(r.state in (State.LOADING, State.LEAVING) for r in residents)
        assert changing == sum(r.state is State.LEAVING for r in residents)
        assert house.used <= budget or changing or len(house.loaded) == 1 or event == "grow"
        assert residents[pinned].state in (State.AVAILABLE, State.LOADED)
    house.inside.clear()
    house.settle()
    waiting = [r.key for r in residents if r.wanted_at is not None]
    assert not waiting, "once everybody is idle, everybody who waited has been loaded"
    assert house.used <= budget
