"""Ids sort in the order of their making, and say when that was."""

from __future__ import annotations

import concurrent.futures

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_adapter.ids import first_id, new_id

NOW = 1_800_000_000.0
ALPHABET = set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=5))
def test_ids_sort_by_their_milliseconds(times: list[float]) -> None:
    """Whatever was made in an earlier millisecond has the lower id; all have one form."""
    made = [(int(at * 1000), new_id("msg_", at)) for at in times]
    for _, name in made:
        assert name.startswith("msg_")
        assert len(name) == 30
        assert set(name[4:]) <= ALPHABET
    assert len({name for _, name in made}) == len(made)
    for first, one in made:
        for second, other in made:
            assert not first < second or one < other


@pytest.mark.parametrize(("now", "start"), [(-1.0, "0" * 10), (1e30, "7ZZZZZZZZZ"), (0.001, "0000000001")])
def test_ids_stay_in_range(now: float, start: str) -> None:
    """Instants that 48 bits of milliseconds cannot hold are clamped."""
    assert new_id("x_", now)[2:12] == start


def test_ids_of_one_millisecond_sort_in_the_order_of_their_making() -> None:
    """Also when ids of another kind, or of an earlier millisecond, are made in between, and from many threads."""
    made = []
    for _ in range(50):
        made.append(new_id("order_", NOW))
        new_id("other_", NOW)
        new_id("order_", NOW - 1)
    assert made == sorted(set(made))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [new_id("threads_", NOW) for _ in range(500)], range(4)))
    assert all(run == sorted(run) for run in runs)
    assert len({each for run in runs for each in run}) == 2_000


@pytest.mark.parametrize("at", [0.0, 0.0014, NOW, 1e30])
def test_the_first_id_of_an_instant_is_a_limit(at: float) -> None:
    """What is made then or later is not below it; what was made a millisecond before is."""
    assert first_id("x_", at) <= new_id("x_", at)
    assert len(first_id("x_", at)) == len(new_id("x_", at))
    assert at < 0.002 or at > 1e12 or new_id("x_", at - 0.002) < first_id("x_", at)
