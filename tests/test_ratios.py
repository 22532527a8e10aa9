"""The measure of speed: its arithmetic, with a clock that is told what to say."""

from __future__ import annotations

from itertools import accumulate, chain

import pytest

from benchmarks.ratios import Case, Ratio, exceeded, measure, spread, table


@pytest.mark.anyio
async def test_a_ratio_is_the_best_round_over_the_best_bare_round() -> None:
    """A disturbed round on either side changes nothing, and every round is taken in turns."""
    turns: list[str] = []

    async def loop(calls: int) -> None:
        turns.append("case")

    # Durations in turn: bare, case, bare, case; each is read as a start and an end.
    durations = [1_000, 3_000, 9_000, 40_000]
    instants = accumulate(chain.from_iterable((0, duration) for duration in durations))

    ratios = await measure([Case("case", loop, target=4)], rounds=2, calls=10, timer=instants.__next__)

    assert ratios == [Ratio("bare await", 100.0, 1.0), Ratio("case", 300.0, 3.0, 4)]
    assert len(turns) == 3  # one to warm up


@pytest.mark.anyio
async def test_calls_are_shared_among_tasks() -> None:
    """Every task gets its share, rounded up."""
    shares: list[int] = []

    async def loop(calls: int) -> None:
        shares.append(calls)

    await spread(loop, tasks=4)(10)

    assert shares == [3, 3, 3, 3]


def test_only_what_is_above_its_target_is_missed() -> None:
    """At the target is within it; without a target nothing can be missed."""
    within, above, free = Ratio("within", 1.0, 7.0, 7.0), Ratio("above", 1.0, 7.1, 7.0), Ratio("free", 1.0, 99.0)

    assert exceeded([within, above, free]) == [above]
    assert [line.endswith("MISSED") for line in table([within, above, free]).splitlines()] == [
        False,
        False,
        True,
        False,
    ]
