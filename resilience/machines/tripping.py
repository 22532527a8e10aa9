"""When a closed circuit trips: conditions as values, and the counters that watch them.

Rules of this module: a condition is a frozen value that is validated when it is made; `start` gives the counters of
one closed period, so that what an earlier period saw can never trip a later one. Memory is fixed by the
configuration, never by the number of calls.

A count window is exact. A time window is kept in `TimeWindow.SLICES` slices that expire one by one: it covers the last
`seconds`, less up to one slice. (Source of both forms: resilience4j's sliding windows; its slices are whole seconds.)
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Protocol, TypeAlias, cast

import attrs

from resilience.machines.checks import positive, positive_int
from resilience.machines.token_bucket import exact_fraction

__all__ = [
    "ConsecutiveFailures",
    "CountWindow",
    "FailureRate",
    "Notes",
    "SlowCallRate",
    "TimeWindow",
    "TripCondition",
    "Tripwire",
]

_NANOSECONDS = 1_000_000_000


Notes: TypeAlias = "tuple[int | Notes, ...]"
"""What is counted, as plain integers: other counters of the same condition can take it up."""


class Tripwire(Protocol):
    """The counters of one closed period."""

    @property
    def failures(self) -> int:
        """The failures counted now."""
        ...

    @property
    def blank(self) -> bool:
        """Whether nothing is counted now, so that these counters are as good as new."""
        ...

    def record(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        """Count one outcome; return True if the circuit trips."""
        ...

    def age(self, now_ns: int) -> None:
        """Forget what has left the window by now."""
        ...

    def notes(self) -> Notes | None:
        """Return what is counted now; None where that is in slices of time, and will be gone by itself."""
        ...

    def resume(self, notes: Notes) -> None:
        """Count what others counted. Nothing has been recorded yet."""
        ...


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
        return _Consecutive(self.n)


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
        return _Rate(self.threshold, _counts(self.window), self.min_calls, slow_calls=False)


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
        return _Rate(self.threshold, _counts(self.window), self.min_calls, slow_calls=True)


TripCondition: TypeAlias = ConsecutiveFailures | FailureRate | SlowCallRate


class Tripwires:
    """Several conditions at once: the circuit trips when any of them does."""

    __slots__ = ("_wires",)

    def __init__(self, conditions: tuple[TripCondition, ...]) -> None:
        self._wires = tuple(condition.start() for condition in conditions)

    @property
    def failures(self) -> int:
        """The failures counted now, by the first condition."""
        return self._wires[0].failures

    @property
    def blank(self) -> bool:
        """Whether no condition counts anything now."""
        return all(wire.blank for wire in self._wires)

    def age(self, now_ns: int) -> None:
        """Forget what has left each condition's window by now."""
        for wire in self._wires:
            wire.age(now_ns)

    def record(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        """Count one outcome with every condition; return True if any trips."""
        tripped = False
        for wire in self._wires:
            tripped |= wire.record(now_ns, failed=failed, slow=slow)
        return tripped

    def notes(self) -> Notes | None:
        """Return what each condition counts now; None if one cannot tell."""
        every = tuple(wire.notes() for wire in self._wires)
        return None if None in every else cast("Notes", every)

    def resume(self, notes: Notes) -> None:
        """Give each condition what it had counted."""
        for wire, counted in zip(self._wires, notes, strict=True):
            wire.resume(cast("Notes", counted))


class _Consecutive:
    __slots__ = ("_limit", "failures")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.failures = 0

    @property
    def blank(self) -> bool:
        return not self.failures

    def age(self, now_ns: int) -> None:
        """Do nothing: consecutive failures are forgotten by a success alone."""

    def record(self, now_ns: int, *, failed: bool, slow: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        if not failed:
            self.failures = 0
            return False
        self.failures += 1
        return self.failures >= self._limit

    def notes(self) -> Notes:
        return (self.failures,)

    def resume(self, notes: Notes) -> None:
        (self.failures,) = cast("tuple[int]", notes)


class _Counts(Protocol):
    calls: int
    failed: int
    slow: int

    def age(self, now_ns: int) -> None: ...
    def add(self, now_ns: int, failed: bool, slow: bool) -> None: ...  # noqa: FBT001 - added up
    def notes(self) -> Notes | None: ...
    def resume(self, notes: Notes) -> None: ...


_GOOD = (False, False)


class _LastCalls:
    __slots__ = ("_entries", "_size", "calls", "failed", "slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: deque[tuple[bool, bool]] = deque()
        self.calls = self.failed = self.slow = 0

    def age(self, now_ns: int) -> None:
        """Do nothing: calls leave this window as others enter it."""

    def add(self, now_ns: int, failed: bool, slow: bool) -> None:  # noqa: ARG002, FBT001 - the protocol's signature
        if self.calls == self._size:
            old = self._entries.popleft()
            if old is not _GOOD:
                self.failed -= old[0]
                self.slow -= old[1]
        else:
            self.calls += 1
        if not failed and not slow:
            # As nearly all are.
            self._entries.append(_GOOD)
            return
        self._entries.append((failed, slow))
        self.failed += failed
        self.slow += slow

    def notes(self) -> Notes:
        """Return how many calls there are, one bit for each that failed, and one for each that was slow."""
        failed = sum(entry[0] << place for place, entry in enumerate(self._entries))
        slow = sum(entry[1] << place for place, entry in enumerate(self._entries))
        return self.calls, failed, slow

    def resume(self, notes: Notes) -> None:
        calls, failed, slow = cast("tuple[int, int, int]", notes)
        for place in range(calls):
            self.add(0, bool(failed >> place & 1), bool(slow >> place & 1))


class _LastSeconds:
    __slots__ = ("_slice_ns", "_slices", "calls", "failed", "slow")

    def __init__(self, window_ns: int) -> None:
        self._slice_ns = max(1, window_ns // TimeWindow.SLICES)
        self._slices: deque[list[int]] = deque()
        self.calls = self.failed = self.slow = 0

    def age(self, now_ns: int) -> None:
        number = now_ns // self._slice_ns
        while self._slices and self._slices[0][0] <= number - TimeWindow.SLICES:
            _, old_calls, old_failed, old_slow = self._slices.popleft()
            self.calls -= old_calls
            self.failed -= old_failed
            self.slow -= old_slow

    def add(self, now_ns: int, failed: bool, slow: bool) -> None:  # noqa: FBT001 - the protocol's signature
        self.age(now_ns)
        number = now_ns // self._slice_ns
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0, 0])
        newest = self._slices[-1]
        newest[1] += 1
        newest[2] += failed
        newest[3] += slow
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def notes(self) -> Notes | None:
        return None if self.calls else ()

    def resume(self, notes: Notes) -> None:
        """Do nothing: there is nothing to tell but that there was nothing."""


def _counts(window: Window) -> _Counts:
    if isinstance(window, CountWindow):
        return _LastCalls(window.calls)
    return _LastSeconds(round(window.seconds * _NANOSECONDS))


class _Rate:
    __slots__ = ("_counts", "_least", "_min_calls", "_of", "_slow_calls")

    def __init__(self, threshold: float, counts: _Counts, min_calls: int, *, slow_calls: bool) -> None:
        # The decimal that was written: 55 of 100 calls are a share of 0.55, though not of the float nearest to it.
        # `_least` of `_of` calls, in whole numbers.
        self._least, self._of = exact_fraction(threshold).as_integer_ratio()
        self._counts = counts
        self._min_calls = min_calls
        self._slow_calls = slow_calls

    @property
    def failures(self) -> int:
        return self._counts.failed

    @property
    def blank(self) -> bool:
        return not self._counts.calls

    def age(self, now_ns: int) -> None:
        self._counts.age(now_ns)

    def record(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        counts = self._counts
        counts.add(now_ns, failed, slow)
        if counts.calls < self._min_calls:
            return False
        counted = counts.slow if self._slow_calls else counts.failed
        return counted * self._of >= self._least * counts.calls

    def notes(self) -> Notes | None:
        return self._counts.notes()

    def resume(self, notes: Notes) -> None:
        self._counts.resume(notes)
