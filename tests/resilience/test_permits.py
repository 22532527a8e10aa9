"""Permits alone: a count that is never more than its limit, and a share of it."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience.machines.permits import Permits
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

shares = st.sampled_from([Fraction(1, 3), Fraction(1, 2), Fraction(3, 4), Fraction(1)])
moves = st.lists(st.tuples(st.sampled_from(["take", "share", "share", "back", "limit"]), st.integers(1, 6), shares))


def law_of_the_count(kind: type[Permits]) -> Callable[[], None]:
    """A permit is given if, and only if, fewer are out than the limit allows, or than the share of it does."""

    @given(st.integers(1, 6), moves)
    @example(5, [("share", 1, Fraction(1, 2))] * 4)
    @example(
        2, [("take", 1, Fraction(1)), ("take", 1, Fraction(1)), ("limit", 1, Fraction(1)), ("take", 1, Fraction(1))]
    )
    def law(limit: int, steps: list[tuple[str, int, Fraction]]) -> None:
        permits, out = kind(limit), 0
        for step, number, share in steps:
            if step == "limit":
                permits.limit = limit = number
            elif step == "back":
                if out:
                    permits.give_back()
                    out -= 1
            else:
                # The least whole number that is not below the share of the limit.
                bound = limit if step == "take" else next(n for n in range(limit + 1) if n >= share * limit)
                taken = permits.take() if step == "take" else permits.take_within(share)
                assert taken == (out < bound)
                out += taken
            assert (permits.in_use, permits.limit) == (out, limit)

    return law


class _OneMore(Permits):
    """Gives one permit too many."""

    __slots__ = ()

    def take(self) -> bool:
        if self.in_use > self.limit:
            return False
        self.in_use += 1
        return True


class _RoundsDown(Permits):
    """Rounds a share down, so that a third of two is none at all."""

    __slots__ = ()

    def take_within(self, share: Fraction) -> bool:
        return self.in_use < int(self.limit * share) and self.take()


class _Losing(Permits):
    """Forgets one of the permits that come back."""

    __slots__ = ()

    def give_back(self) -> None:
        if self.in_use != 2:
            super().give_back()


def test_no_more_are_out_than_the_limit_allows() -> None:
    """Nor fewer, where somebody asks for one; also while the limit moves."""
    law_of_the_count(Permits)()


@pytest.mark.parametrize("mutant", [_OneMore, _RoundsDown, _Losing])
def test_law_of_the_count_catches_mutants(mutant: type[Permits]) -> None:
    """One too many, a share that is rounded down, and a permit that is lost are seen."""
    assert_caught(law_of_the_count(mutant))
