"""When a closed circuit trips: conditions as values.

Rules of this module: a condition is a frozen value that is validated when it is made; `start` gives the counters of
one closed period, which are `tripwires`'.

A count window is exact. A time window is kept in `TimeWindow.SLICES` slices that expire one by one: it covers the last
`seconds`, less up to one slice. (Source of both forms: resilience4j's sliding windows; its slices are whole seconds.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

import attrs

from resilience.machines.checks import positive, positive_int
from resilience.machines.token_bucket import exact_fraction
from resilience.machines.tripwires import Consecutive, RateOfCalls, RateOfTime, Tripwires

if TYPE_CHECKING:
    from resilience.machines.tripwires import Tripwire

__all__ = ["ConsecutiveFailures", "CountWindow", "FailureRate", "SlowCallRate", "TimeWindow", "TripCondition", "start"]

_NANOSECONDS = 1_000_000_000


def _positive_int(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    positive_int(attribute.name, value)


def _positive(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    positive(attribute.name, value)


def _share(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if positive(attribute.name, value) > 1:
        msg = f"{attribute.name} must be a share above 0 and at most 1, not {value!r}"
        raise ValueError(msg)


@attrs.frozen
class CountWindow:
    """The last `calls` calls."""

    calls: int = attrs.field(validator=_positive_int)


@attrs.frozen
class TimeWindow:
    """The calls of the last `seconds` seconds."""

    SLICES: ClassVar[int] = 20

    seconds: float = attrs.field(validator=_positive)


Window: TypeAlias = CountWindow | TimeWindow


def _window(_instance: object, attribute: attrs.Attribute[Window], value: object) -> None:
    if not isinstance(value, CountWindow | TimeWindow):
        msg = f"{attribute.name} must be a CountWindow or a TimeWindow, not {value!r}"
        raise ValueError(msg)


def _check_min_calls(window: object, min_calls: int) -> None:
    if isinstance(window, CountWindow) and min_calls > window.calls:
        msg = f"min_calls must be at most the window's {window.calls} calls, or nothing ever trips, not {min_calls!r}"
        raise ValueError(msg)


@attrs.frozen
class ConsecutiveFailures:
    """Trip after `n` failures with no success between them."""

    n: int = attrs.field(validator=_positive_int)

    def start(self) -> Tripwire:
        """Return fresh counters."""
        return Consecutive(self.n)


@attrs.frozen
class FailureRate:
    """Trip when at least `threshold` of the calls in `window` failed, once it holds `min_calls`."""

    threshold: float = attrs.field(validator=_share)
    window: Window = attrs.field(validator=_window)
    min_calls: int = attrs.field(default=10, validator=_positive_int)

    def __attrs_post_init__(self) -> None:
        _check_min_calls(self.window, self.min_calls)

    def start(self) -> Tripwire:
        """Return fresh counters."""
        return _rate(self, slow_calls=False)


@attrs.frozen
class SlowCallRate:
    """Trip when at least `threshold` of the calls in `window` were slow, once it holds `min_calls`.

    A call is slow if it took the breaker's `slow_call_duration` or longer, however it ended.
    """

    threshold: float = attrs.field(validator=_share)
    window: Window = attrs.field(validator=_window)
    min_calls: int = attrs.field(default=10, validator=_positive_int)

    def __attrs_post_init__(self) -> None:
        _check_min_calls(self.window, self.min_calls)

    def start(self) -> Tripwire:
        """Return fresh counters."""
        return _rate(self, slow_calls=True)


TripCondition: TypeAlias = ConsecutiveFailures | FailureRate | SlowCallRate


def _rate(condition: FailureRate | SlowCallRate, *, slow_calls: bool) -> Tripwire:
    window = condition.window
    # The decimal that was written: 55 of 100 calls are a share of 0.55, though not of the float nearest to it.
    share = exact_fraction(condition.threshold)
    if isinstance(window, CountWindow):
        return RateOfCalls(window.calls, share, condition.min_calls, slow_calls=slow_calls)
    slice_ns = max(1, round(window.seconds * _NANOSECONDS) // TimeWindow.SLICES)
    return RateOfTime(slice_ns, TimeWindow.SLICES, share, condition.min_calls, slow_calls=slow_calls)


def start(conditions: tuple[TripCondition, ...]) -> Tripwire:
    """Return fresh counters of one condition, or of several at once."""
    first, *others = conditions
    return Tripwires(condition.start() for condition in conditions) if others else first.start()
