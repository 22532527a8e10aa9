"""Checks of arguments: a ValueError that names the argument and the value, before anything is changed.

Rules of this module: a bool is no number, NaN and the infinities are no durations, and the message says what was
given. It knows nothing of the toolkit.
"""

from __future__ import annotations

import math
from typing import TypeVar

__all__ = [
    "callable_or_none",
    "finite",
    "instance",
    "non_negative",
    "positive",
    "positive_int",
    "string",
    "whole_number",
]

F = TypeVar("F")
K = TypeVar("K")


def positive(name: str, value: object, *, infinite: bool = False) -> float:
    """Return `value` as a number above 0 (and finite, unless `infinite`), or raise ValueError."""
    number = _number(name, value)
    if not number > 0 or (math.isinf(number) and not infinite):
        msg = f"{name} must be a positive {'' if infinite else 'finite '}number, not {value!r}"
        raise ValueError(msg)
    return number


def non_negative(name: str, value: object, *, infinite: bool = False) -> float:
    """Return `value` as a number of at least 0 (and finite, unless `infinite`), or raise ValueError."""
    number = _number(name, value)
    if not number >= 0 or (math.isinf(number) and not infinite):
        msg = f"{name} must be a {'' if infinite else 'finite '}number of at least 0, not {value!r}"
        raise ValueError(msg)
    return number


def finite(name: str, value: object) -> float:
    """Return `value` as a finite number of either sign, or raise ValueError."""
    number = _number(name, value)
    if not math.isfinite(number):
        msg = f"{name} must be a finite number, not {value!r}"
        raise ValueError(msg)
    return number


def positive_int(name: str, value: object) -> int:
    """Return `value` as a whole number of at least 1, or raise ValueError."""
    return whole_number(name, value, minimum=1)


def whole_number(name: str, value: object, *, minimum: int = 0) -> int:
    """Return `value` as a whole number of at least `minimum`, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        msg = f"{name} must be a whole number of at least {minimum}, not {value!r}"
        raise ValueError(msg)
    return value


def string(name: str, value: object) -> str:
    """Return `value` as a string, or raise ValueError."""
    if not isinstance(value, str):
        msg = f"{name} must be a string, not {value!r}"
        raise ValueError(msg)
    return value


def callable_or_none(name: str, value: F) -> F:
    """Return `value` if it is a callable or None, or raise ValueError."""
    if value is not None and not callable(value):
        msg = f"{name} must be callable, not {value!r}"
        raise ValueError(msg)
    return value


def instance(name: str, value: object, kind: type[K]) -> K:
    """Return `value` if it is one of `kind`, or raise ValueError."""
    if not isinstance(value, kind):
        msg = f"{name} must be a {kind.__qualname__}, not {value!r}"
        raise ValueError(msg)
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number, not {value!r}"
        raise ValueError(msg)
    try:
        float(value)
    except OverflowError:
        msg = f"{name} must be a number that a float can hold, not one of {value.bit_length()} bits"  # type: ignore[union-attr]
        raise ValueError(msg) from None
    return value
