"""Backoff: how long to wait before the next attempt.

Theory of operation. A schedule maps the number of the failed attempt (from 1), a random number in [0, 1) and, for
decorrelated jitter, the delay before it, to a delay in nanoseconds that never exceeds the cap. A power or a sum that a
float cannot hold is the cap, so attempt 10,000 costs what attempt 10 does and overflows nothing (PO7).

Source of the jitters: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Full jitter is
uniform in [0, d]; equal jitter in [d/2, d]; decorrelated in [base, 3 * previous], capped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import attrs

from resilience.machines.checks import non_negative, positive

__all__ = [
    "Backoff",
    "ConstantBackoff",
    "ExponentialBackoff",
    "FibonacciBackoff",
    "Jitter",
    "LinearBackoff",
    "ScheduleBackoff",
    "Spread",
    "as_backoff",
    "is_backoff",
]

#: How a delay is spread below what the schedule says.
Spread: TypeAlias = Literal["full", "equal", "none"]
#: The same, and the one that makes a schedule of its own of the delay before.
Jitter: TypeAlias = Literal["full", "equal", "decorrelated", "none"]
_SPREADS = ("full", "equal", "none")
_JITTERS = ("full", "equal", "decorrelated", "none")
_MOST_DELAYS = 1_000
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


def as_backoff(name: str, value: Backoff | Iterable[float]) -> Backoff:
    """Return `value` as a schedule, an iterable of seconds as a ScheduleBackoff; a ValueError names anything else."""
    if is_backoff(value):
        return value  # type: ignore[return-value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | type):
        return ScheduleBackoff(value)
    msg = f"{name} must be a backoff such as ExponentialBackoff(), or an iterable of seconds, not {value!r}"
    raise ValueError(msg)


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


def _check_spread(_instance: object, attribute: attrs.Attribute[Spread], value: Spread) -> None:
    if value not in _SPREADS:
        msg = f"{attribute.name} must be one of {', '.join(map(repr, _SPREADS))}, not {value!r}"
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
        try:
            # A float, whose power overflows at once where that of an int would grow as long as the attempt's number.
            grown = self.base * float(self.factor) ** (attempt - 1)
        except OverflowError:
            grown = self.cap
        return _spread(self.jitter, u, _whole_ns(min(self.cap, grown)))


def _whole_ns(seconds: float) -> int:
    """Return whole nanoseconds, also of what is too long for a float of them."""
    return round(seconds * _NANOSECONDS) if seconds < _LONG else int(seconds) * _NANOSECONDS


def _share(u: float, delay_ns: int) -> int:
    """Return that share of a delay, rounded down, also of one that no float holds."""
    share = int(u * delay_ns) if delay_ns < _LONG else int(u * _NANOSECONDS) * (delay_ns // _NANOSECONDS)
    return min(delay_ns, share)


def _spread(jitter: Spread, u: float, delay_ns: int) -> int:
    """Return a delay of at most `delay_ns`, as random as the jitter says."""
    if jitter == "full":
        return _share(u, delay_ns)
    if jitter == "equal":
        return delay_ns // 2 + _share(u, delay_ns - delay_ns // 2)
    return delay_ns


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


@attrs.frozen
class LinearBackoff:
    """Delays of base, base + step, base + 2 * step …, none above `cap`, spread by `jitter`.

    Args:
        base: the first delay in seconds.
        step: by how many seconds each delay is longer than the one before.
        cap: the longest delay in seconds.
        jitter: "full", "equal" or "none".

    """

    base: float = attrs.field(default=0.1, validator=_check_positive)
    step: float = attrs.field(default=0.1, validator=_check_positive)
    cap: float = attrs.field(default=30.0, validator=_check_positive)
    jitter: Spread = attrs.field(default="full", validator=_check_spread, kw_only=True)

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - the protocol's signature
        """Return the delay after the failed `attempt`, between 0 and the cap."""
        grown = self.base + float(self.step) * (attempt - 1)
        return _spread(self.jitter, u, _whole_ns(min(self.cap, grown)))


@attrs.frozen
class FibonacciBackoff:
    """Delays of 1, 1, 2, 3, 5, 8 … times `base`, none above `cap`, spread by `jitter`.

    They grow slower than those of an ExponentialBackoff with its factor of 2, and faster than a LinearBackoff's.

    Args:
        base: the first delay in seconds.
        cap: the longest delay in seconds.
        jitter: "full", "equal" or "none".

    """

    base: float = attrs.field(default=0.1, validator=_check_positive)
    cap: float = attrs.field(default=30.0, validator=_check_positive)
    jitter: Spread = attrs.field(default="full", validator=_check_spread, kw_only=True)

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - the protocol's signature
        """Return the delay after the failed `attempt`, between 0 and the cap."""
        delay, following = self.base, self.base
        # The cap is reached within 23 rounds for what is usual, within 1,500 for the smallest base and the largest cap.
        for _ in range(attempt - 1):
            if delay >= self.cap:
                break
            delay, following = following, delay + following
        return _spread(self.jitter, u, _whole_ns(min(self.cap, delay)))


def _as_delays(delays: Iterable[float]) -> tuple[float, ...]:
    read = (
        None
        if isinstance(delays, str | bytes) or not isinstance(delays, Iterable)
        else tuple(itertools.islice(delays, _MOST_DELAYS))
    )
    if not read:
        msg = f"delays must be at least one number of seconds, not {delays!r}"
        raise ValueError(msg)
    for delay in read:
        non_negative("delays", delay)
    return read


@attrs.frozen
class ScheduleBackoff:
    """The delays of any iterable, in its order; once they are used up, the last one again and again.

    The iterable is read once, when the schedule is made, and no further than to its thousandth delay; so it may be
    endless. How many attempts there are is not its business.

    Args:
        delays: seconds, each at least 0.
        jitter: "none" (the default, since these delays were chosen one by one), "full" or "equal".

    """

    delays: tuple[float, ...] = attrs.field(converter=_as_delays)
    jitter: Spread = attrs.field(default="none", validator=_check_spread, kw_only=True)

    @property
    def cap(self) -> float:
        """The longest of the delays."""
        return max(self.delays)

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - the protocol's signature
        """Return the delay after the failed `attempt`, between 0 and the cap."""
        delay = self.delays[min(attempt, len(self.delays)) - 1]
        return _spread(self.jitter, u, _whole_ns(delay))
