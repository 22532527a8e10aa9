"""Shrinking beside what is known to be the plainest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.testing.shrinking import plainer, shrink

if TYPE_CHECKING:
    from collections.abc import Callable

Choices = tuple[int, ...]


def attempting(fails: Callable[[Choices], bool]) -> Callable[[Choices], Choices | None]:
    """Make an attempt of what fails or not."""
    return lambda choices: choices if fails(choices) else None


def test_what_does_not_matter_is_made_plain_and_what_does_is_kept() -> None:
    """Of many choices two are needed, at whatever places they come to be; the rest goes."""

    def fails(choices: Choices) -> bool:
        return 2 in choices and 3 in choices[choices.index(2) :]

    assert shrink((1, 0, 2, 4, 4, 1, 3, 1, 1), attempting(fails)) == (2, 3)


def test_places_are_kept_where_they_matter() -> None:
    """A choice that must stand where it stands is moved by nothing."""
    assert shrink((1,) * 20, attempting(lambda choices: len(choices) > 7 and choices[7] == 1)) == (0,) * 7 + (1,)


def test_choices_become_smaller() -> None:
    """Any other thread will do: the first of them is taken."""
    assert shrink((0, 5, 4), attempting(lambda choices: sum(map(bool, choices)) >= 2)) == (1, 1)


def test_what_fails_in_any_case_fails_in_plain_order() -> None:
    """Then there is nothing to choose."""
    assert shrink((3, 1, 2), attempting(lambda _: True)) == ()


def test_choices_that_were_made_are_taken_for_those_that_were_asked_for() -> None:
    """A run may end before its schedule does."""
    assert shrink((1, 1, 1, 1), lambda choices: choices[:1] if choices[:1] == (1,) else None) == (1,)


@pytest.mark.parametrize("attempts", [0, 1, 5])
def test_attempts_are_bounded(attempts: int) -> None:
    """However much there would be to gain."""
    tried: list[Choices] = []

    def attempt(choices: Choices) -> Choices | None:
        tried.append(choices)
        return choices if len(choices) > 1 else None

    shrink((1,) * 30, attempt, attempts=attempts)
    assert len(tried) == attempts


@given(st.lists(st.integers(0, 3), max_size=12).map(tuple), st.sets(st.integers(0, 11), max_size=3))
def test_what_is_found_fails_and_is_no_less_plain(choices: Choices, needed: set[int]) -> None:
    """It fails as it did at first, and none of the choices that it holds can be made plain."""

    def fails(candidate: Choices) -> bool:
        return {place for place in needed if choices[place : place + 1] > (0,)} <= {
            place for place, choice in enumerate(candidate) if choice
        }

    found = shrink(choices, attempting(fails))
    assert fails(found)
    assert not plainer(choices, found)
    assert not any(fails((*found[:place], 0, *found[place + 1 :])) for place, choice in enumerate(found) if choice)
