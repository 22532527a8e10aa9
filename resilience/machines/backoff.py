"""Backoff: how long to wait before the next attempt.

Theory of operation. A schedule maps the number of the failed attempt (from 1), a random number in [0, 1) and, for
decorrelated jitter, the delay before it, to a delay in nanoseconds that never exceeds the cap. A power that a float
cannot hold is the cap, so attempt 10,000 costs what attempt 10 does and overflows nothing (PO7).

Source of the jitters: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Full jitter is
uniform in [0, d]; equal jitter in [d/2, d]; decorrelated in [base, 3 * previous], capped.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, runtime_checkable

import attrs

from resilience.machines.checks import non_negative, positive

__all__ = ["Backoff", "ConstantBackoff", "ExponentialBackoff", "Jitter", "is_backoff"]

Jitter: TypeAlias = Literal["full", "equal", "decorrelated", "none"]
_JITTERS = ("full", "equal", "decorrelated", "none")
_NANOSECONDS = 1_000_000_000
_LONG = 1e200


@runtime_checkable
class Backoff(Protocol):
    """A schedule of delays; write your own to use another."""

    @property
    def cap(self) -> float:
        """The longest delay in seconds."""
        ...

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        """Return the delay after the failed `attempt` (from 1), given a random `u` in [0, 1) and the delay before."""
        ...


def is_backoff(value: object) -> bool:
    """Tell whether `value` is a schedule; a class of schedules, its parentheses forgotten, is none."""
    return isinstance(value, Backoff) and not isinstance(value, type)


def _check_positive(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    positive(attribute.name, value)


def _check_factor(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if positive(attribute.name, value) < 1:
        msg = f"{attribute.name} must be at least 1, not {value!r}"
        raise ValueError(msg)


def _check_jitter(_instance: object, attribute: attrs.Attribute[Jitter], value: Jitter) -> None:
    if value not in _JITTERS:
        msg = f"{attribute.name} must be one of {', '.join(map(repr, _JITTERS))}, not {value!r}"
        raise ValueError(msg)


def _check_non_negative(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    non_negative(attribute.name, value)


@attrs.frozen
class ExponentialBackoff:
    """Delays of base, base * factor, base * factor**2 …, none above `cap`, spread by `jitter`.

    Args:
        base: the first delay in seconds.
        factor: what each delay is multiplied by; at least 1.
        cap: the longest delay in seconds.
        jitter: "full" (the default: of all who failed together, the fewest come back together), "equal",
            "decorrelated" or "none".

    """

    base: float = attrs.field(default=0.1, validator=_check_positive)
    factor: float = attrs.field(default=2.0, validator=_check_factor)
    cap: float = attrs.field(default=30.0, validator=_check_positive)
    jitter: Jitter = attrs.field(default="full", validator=_check_jitter, kw_only=True)

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        """Return the delay after the failed `attempt`, between 0 and the cap."""
        cap_ns = _whole_ns(self.cap)
        if self.jitter == "decorrelated":
            base_ns = _whole_ns(self.base)
            longest = max(base_ns, 3 * previous_ns)
            return min(cap_ns, base_ns + _share(u, longest - base_ns))
        delay_ns = self._unjittered_ns(attempt, cap_ns)
        if self.jitter == "full":
            return _share(u, delay_ns)
        if self.jitter == "equal":
            return delay_ns // 2 + _share(u, delay_ns - delay_ns // 2)
        return delay_ns

    def _unjittered_ns(self, attempt: int, cap_ns: int) -> int:
        try:
            # A float, whose power overflows at once where that of an int would grow as long as the attempt's number.
            grown = self.base * float(self.factor) ** (attempt - 1)
        except OverflowError:
            return cap_ns
        return min(cap_ns, _whole_ns(grown)) if grown < self.cap else cap_ns


def _whole_ns(seconds: float) -> int:
    """Return whole nanoseconds, also of what is too long for a float of them."""
    return round(seconds * _NANOSECONDS) if seconds < _LONG else int(seconds) * _NANOSECONDS


def _share(u: float, delay_ns: int) -> int:
    """Return that share of a delay, rounded down, also of one that no float holds."""
    share = int(u * delay_ns) if delay_ns < _LONG else int(u * _NANOSECONDS) * (delay_ns // _NANOSECONDS)
    return min(delay_ns, share)


@attrs.frozen
class ConstantBackoff:
    """The same delay, in seconds, before every retry."""

    delay: float = attrs.field(default=0.0, validator=_check_non_negative)

    @property
    def cap(self) -> float:
        """The delay itself."""
        return self.delay

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - the protocol's signature
        """Return the delay."""
        return _whole_ns(self.delay)
