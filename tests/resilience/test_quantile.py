"""The quantile of the latest values: exact, bounded, and forgetting."""

from __future__ import annotations

import math
import random
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.machines.quantile import WindowedQuantile
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable


def nearest_rank(q: str, values: list[int]) -> int:
    """Return the smallest value that at least the share `q` of all values do not exceed."""
    return next(value for value in sorted(values) if sum(each <= value for each in values) >= Fraction(q) * len(values))


def law_of_the_quantile(kind: type[WindowedQuantile]) -> Callable[[], None]:
    """It is the nearest rank among the last `window` values, and nothing while it would be the largest by need."""

    @given(
        st.sampled_from(["0.1", "0.5", "0.9", "0.95", "0.07"]),
        st.integers(0, 20),
        st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1)), max_size=80),
    )
    def law(q: str, spare: int, values: list[int]) -> None:
        window = math.ceil(1 / (1 - Fraction(q))) + spare
        quantile = kind(float(q), window)
        latest: deque[int] = deque(maxlen=window)
        assert quantile.value() is None
        for value in values:
            quantile.add(value)
            latest.append(value)
            known = len(latest) * (1 - Fraction(q)) >= 1
            assert quantile.value() == (nearest_rank(q, list(latest)) if known else None)

    return law


def test_the_quantile_is_exact() -> None:
    """The machine agrees with counting."""
    law_of_the_quantile(WindowedQuantile)()


class _Remembering(WindowedQuantile):
    """A mutant: never forgets."""

    def __init__(self, q: float, window: int) -> None:
        super().__init__(q, window * 1000)


class _ForgettingTheSmallest(WindowedQuantile):
    """A mutant: the smallest value leaves, not the oldest."""

    def add(self, value: int) -> None:
        super().add(value)
        self._by_age = type(self._by_age)("q", self._by_size)
        self._oldest = 0


class _Below(WindowedQuantile):
    """A mutant: rounds the rank down."""

    def value(self) -> int | None:
        exact = super().value()
        rank = math.floor(len(self._by_size) * self._q)
        return None if exact is None else self._by_size[max(0, rank - 1)]


class _Hasty(WindowedQuantile):
    """A mutant: knows the quantile from the first value on."""

    def __init__(self, q: float, window: int) -> None:
        super().__init__(q, window)
        self.least = 1


@pytest.mark.parametrize("mutant", [_Remembering, _ForgettingTheSmallest, _Below, _Hasty])
def test_law_of_the_quantile_catches_mutants(mutant: type[WindowedQuantile]) -> None:
    """A wrong window, a wrong rank and a guess are seen."""
    assert_caught(law_of_the_quantile(mutant))


def test_the_rank_is_that_of_the_decimal_as_written() -> None:
    """0.07 of a hundred is the seventh value, although 0.07 * 100 is more than 7 in floats."""
    assert math.ceil(0.07 * 100) == 8
    quantile = WindowedQuantile(0.07, 100)
    for value in random.Random(1).sample(range(1, 101), 100):
        quantile.add(value)
    assert quantile.value() == 7


def test_what_is_out_of_range_counts_as_the_nearer_end() -> None:
    """A clock that steps back gives a negative time, and a broken one may give anything."""
    quantile = WindowedQuantile(0.5, 2)
    quantile.add(-5)
    quantile.add(-(2**70))
    assert quantile.value() == 0
    quantile.add(2**70)
    quantile.add(2**70)
    assert quantile.value() == 2**63 - 1
