"""Checks of arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from resilience.machines.checks import (
    callable_or_none,
    finite,
    instance,
    non_negative,
    positive,
    positive_int,
    string,
    whole_number,
)
from tests.resilience.support import NOT_A_COUNT, NOT_NEGATIVE, NOT_POSITIVE

if TYPE_CHECKING:
    from collections.abc import Callable

CASES: list[tuple[Callable[[str, object], object], tuple[object, ...], tuple[object, ...]]] = [
    (positive, (1, 0.1, 5e-324, 1e308), (*NOT_POSITIVE, -0.0)),
    (non_negative, (0, 0.0, -0.0, 3, 1e308), (*NOT_NEGATIVE, None, -5e-324)),
    (finite, (0, -1, -1e308, 1e308), (math.nan, math.inf, -math.inf, True, "x", None, 10**400, -(10**400))),
    (positive_int, (1, 10**400), NOT_A_COUNT),
    (whole_number, (0, 1), tuple(bad for bad in NOT_A_COUNT if bad != 0)),
]


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=[check.__name__ for check, _, _ in CASES])
def test_checks_pass_what_is_good_and_name_what_is_bad(
    check: Callable[[str, object], object], good: tuple[object, ...], bad: tuple[object, ...]
) -> None:
    """What is good comes back unchanged; what is bad is a ValueError that begins with the argument's name."""
    for value in good:
        assert check("size", value) is value
    for value in bad:
        with pytest.raises(ValueError, match=r"^size must be a ") as caught:
            check("size", value)
        assert repr(value) in str(caught.value) or "bits" in str(caught.value)


def test_infinity_is_a_number_where_that_is_meant() -> None:
    """`infinite` lets infinity through, and still not NaN or its negative."""
    for check in (positive, non_negative):
        assert check("wait", math.inf, infinite=True) == math.inf
        for bad in (math.nan, -math.inf):
            with pytest.raises(ValueError, match="wait must be a "):
                check("wait", bad, infinite=True)


def test_minimum_is_part_of_the_message() -> None:
    """A count with another minimum says so."""
    assert whole_number("calls", 3, minimum=3) == 3
    with pytest.raises(ValueError, match="calls must be a whole number of at least 3, not 2"):
        whole_number("calls", 2, minimum=3)


def test_strings_are_strings() -> None:
    """A name that is no string is refused by name."""
    assert string("name", "api") == "api"
    for bad in (None, 3, b"api"):
        with pytest.raises(ValueError, match=r"^name must be a string, not "):
            string("name", bad)


def test_callables_are_callable() -> None:
    """A predicate that is none is refused by name; None says that there is none."""
    assert callable_or_none("on_result", None) is None
    assert callable_or_none("on_result", bool) is bool
    for bad in (3, "bool", ()):
        with pytest.raises(ValueError, match=r"^on_result must be callable, not "):
            callable_or_none("on_result", bad)


def test_refusal_says_whether_infinity_would_do() -> None:
    """A number that has to be finite is called so, and no other."""
    for check, infinite, text in (
        (positive, False, "x must be a positive finite number, not -1"),
        (positive, True, "x must be a positive number, not -1"),
        (non_negative, False, "x must be a finite number of at least 0, not -1"),
        (non_negative, True, "x must be a number of at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=f"^{text}$"):
            check("x", -1, infinite=infinite)


def test_instance_is_of_its_kind() -> None:
    """What is none is named, and so is the kind."""
    assert instance("x", 3, int) == 3
    with pytest.raises(ValueError, match=r"^x must be a int, not 'three'$"):
        instance("x", "three", int)
