"""Schedules as values: started twice they answer alike; PCT and the exhaustive search do as their papers say."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from resilience.testing.schedules import PCT, Exhaustive, Random, Replay, Schedule, schedules
from tests.resilience.support import assert_refuses

if TYPE_CHECKING:
    from collections.abc import Callable

widths = st.lists(st.integers(1, 5), max_size=40)


def play(schedule: Schedule, lengths: dict[int, int]) -> list[int]:
    """Run tasks of so many steps each; return whose steps they were."""
    choices = schedule.start()
    left = dict(lengths)
    order = []
    while left:
        names = list(left)
        name = names[choices.choose(len(names), names)]
        order.append(name)
        left[name] -= 1
        if not left[name]:
            del left[name]
    return order


@given(st.sampled_from([Random, PCT, lambda seed: Replay((seed, 1, 2, 3))]), st.integers(0, 10**6), widths)
def test_a_schedule_started_twice_answers_alike(make: Callable[[int], Schedule], seed: int, asked: list[int]) -> None:
    """The same value gives the same answers, each of them one of those that were asked for."""
    schedule = make(seed)
    first, second = schedule.start(), schedule.start()
    answers = [first.choose(n) for n in asked]
    assert answers == [second.choose(n) for n in asked]
    assert all(0 <= answer < n for answer, n in zip(answers, asked, strict=True))
    assert make(seed) == schedule
    assert eval(repr(schedule)) == schedule  # noqa: S307 - our own repr


def test_a_seed_is_a_schedule_of_its_own() -> None:
    """Two tasks of three steps have twenty orders; a few hundred seeds of either kind show most of them."""
    for kind in (Random, partial(PCT, length=6)):
        assert len({tuple(play(kind(seed), {1: 3, 2: 3})) for seed in range(300)}) >= 10


def test_a_replay_goes_on_in_plain_order() -> None:
    """What is not written down is 0; what is too large counts on from the beginning; one of one is no choice."""
    choices = Replay([1, 7]).start()
    assert [choices.choose(2), choices.choose(1), choices.choose(3), choices.choose(5)] == [1, 0, 1, 0]


def test_pct_runs_by_priority() -> None:
    """Of depth 1, the one that runs goes on until it has ended: as many orders as there are orders of the tasks."""
    orders = {tuple(play(PCT(seed, depth=1), {1: 4, 2: 4, 3: 4})) for seed in range(200)}
    assert orders == {tuple(name for name in order for _ in range(4)) for order in itertools.permutations((1, 2, 3))}


def test_pct_changes_its_mind_depth_minus_one_times() -> None:
    """A run of depth d over two tasks switches at most d times, the end of the first one included."""
    for depth, seed in itertools.product((1, 2, 3, 4), range(100)):
        order = play(PCT(seed, depth=depth, length=20), {1: 10, 2: 10})
        assert sum(a != b for a, b in itertools.pairwise(order)) <= depth


def test_pct_lets_nobody_spin_for_ever() -> None:
    """Who was passed over a thousand times on end has its turn, be it for one that spins or for ever new ones."""
    choices = PCT(1, depth=1).start()
    chosen = [choices.choose(2, (1, 2)) for _ in range(1_100)]
    assert set(chosen) == {0, 1}
    others = PCT(1, depth=1).start()
    chosen = [others.choose(4, (1, 3 * turn + 2, 3 * turn + 3, 3 * turn + 4)) for turn in range(2_500)]
    assert chosen.count(0) >= 2


def test_pct_counts_no_step_that_was_no_choice() -> None:
    """Who ran alone for long has kept nobody waiting."""
    for seed in range(10):
        choices, other = PCT(seed, depth=1).start(), PCT(seed, depth=1).start()
        for _ in range(2_000):
            choices.choose(1, (1,))
        other.choose(1, (1,))
        assert [choices.choose(2, (1, 2)) for _ in range(100)] == [other.choose(2, (1, 2)) for _ in range(100)]


def has_depth_three(order: list[int]) -> bool:
    """Tell whether task 2 ran as a whole between the eighth and the ninth step of 1, and 3 between two steps of 2."""
    text = "".join(map(str, order))
    return "1" * 8 + "2" * 5 + "3" * 10 + "2" * 5 + "1" * 2 in text


def test_pct_finds_a_bug_of_depth_three_that_chance_does_not() -> None:
    """Among 2**-30 odds of blind chance, PCT's bound says one in 3 * 30**2; it is found in 5,000 schedules."""
    lengths = {1: 10, 2: 10, 3: 10}
    assert any(has_depth_three(play(PCT(seed, depth=3, length=30), lengths)) for seed in range(5_000))
    assert not any(has_depth_three(play(Random(seed), lengths)) for seed in range(5_000))
    assert not any(has_depth_three(play(PCT(seed, depth=2, length=30), lengths)) for seed in range(5_000))


@pytest.mark.parametrize(("deviations", "count"), [(0, 1), (1, 4), (2, 10), (9, 20)])
def test_a_search_finds_every_order_once(deviations: int, count: int) -> None:
    """Two tasks of three steps have twenty orders in all; so many within so many deviations, none of them twice."""
    search = Exhaustive(deviations=deviations)
    orders = [tuple(play(schedule, {1: 3, 2: 3})) for schedule in search]
    assert search.complete
    assert len(orders) == len(set(orders)) == count


def test_a_search_that_was_ended_is_not_complete() -> None:
    """A limit ends it, and it says so; what it yields is shown as a replay that does the same."""
    search = Exhaustive(limit=4)
    for number, schedule in enumerate(search):
        order = play(schedule, {1: 3, 2: 3})
        assert order == play(eval(repr(schedule)), {1: 3, 2: 3})  # noqa: S307 - our own repr
        assert number < 4
    assert not search.complete
    search = Exhaustive(deviations=0)
    for schedule in search:
        play(schedule, {1: 3, 2: 3})
    assert search.complete
    next(iter(search))
    assert not search.complete


@settings(max_examples=30)
@given(schedules())
def test_a_drawn_schedule_answers_alike_when_it_is_started_again(schedule: Schedule) -> None:
    """Hypothesis draws each choice once; the second run is told the same, and may go on from there."""
    first = play(schedule, {1: 3, 2: 3})
    assert first == play(schedule, {1: 3, 2: 3})
    assert first == play(eval(repr(schedule)), {1: 3, 2: 3})  # noqa: S307 - our own repr
    assert sorted(play(schedule, {1: 3, 2: 3, 3: 2})) == [1, 1, 1, 2, 2, 2, 3, 3]


def test_a_drawn_schedule_shrinks_to_the_plain_order() -> None:
    """The smallest schedule in which 2 runs between the steps of 1 has a single choice that is not 0."""
    orders = []

    def interleaved(schedule: Schedule) -> bool:
        order = play(schedule, {1: 3, 2: 3})
        if order[0] == 1 and "121" in "".join(map(str, order)):
            orders.append(order)
            return True
        return False

    smallest = find(schedules(), interleaved)
    assert interleaved(smallest)
    assert orders[-1] in ([1, 1, 2, 1, 2, 2], [1, 2, 1, 1, 2, 2])


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis is asked for only by those who draw from it."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError) as caught:
        schedules()
    assert caught.value.__notes__ == ["resilience.testing.schedules() draws from Hypothesis: pip install hypothesis"]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (Random, "seed", -1),
        (PCT, "seed", "x"),
        (PCT, "depth", 0),
        (PCT, "length", 1.5),
        (Exhaustive, "deviations", -1),
        (Exhaustive, "limit", 0),
    ],
)
def test_bad_arguments_are_refused(make: Callable[..., object], name: str, value: object) -> None:
    """Each is named with its value."""
    assert_refuses(name, value, make)


def test_a_bad_choice_is_refused() -> None:
    """A replay is whole numbers from 0."""
    with pytest.raises(ValueError, match=r"^choices must be .*-1"):
        Replay((0, -1))
