"""The counters that watch a closed circuit, and say when it trips.

Rules of this module: counters live for one closed period, so that what an earlier period saw can never trip a later
one. Memory is fixed by the configuration, never by the number of calls. A call that went well is what happens on nearly
every call: it takes a step or two, whatever the window, and counters say where one more would change nothing at all.

What a count window keeps is the calls that did not go well, each by its number; what a time window keeps is how much
was counted in each slice of it that is over.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from fractions import Fraction

__all__ = ["Consecutive", "Notes", "Rate", "RateOfCalls", "RateOfTime", "Tripwire", "Tripwires"]

Notes: TypeAlias = "tuple[int | Notes, ...]"
"""What is counted, as plain integers: other counters of the same condition can take it up."""


class Tripwire(Protocol):
    """The counters of one closed period."""

    @property
    def failures(self) -> int:
        """The failures counted now."""
        ...

    @property
    def steady(self) -> bool:
        """Whether calls that go well change nothing now, however many there are and however much time goes by."""
        ...

    @property
    def blank(self) -> bool:
        """Whether nothing is counted now, so that these counters are as good as new."""
        ...

    def good(self, now_ns: int) -> bool:
        """Count a call that went well; return True if the circuit trips."""
        ...

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        """Count a call that failed or was slow, or both; return True if the circuit trips."""
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


class Tripwires:
    """Several conditions at once: the circuit trips when any of them does."""

    __slots__ = ("_wires", "steady")

    def __init__(self, wires: Iterable[Tripwire]) -> None:
        self._wires = tuple(wires)
        self.steady: bool = self._is_steady()

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

    def good(self, now_ns: int) -> bool:
        """Count a call that went well with every condition; return True if any trips."""
        tripped = False
        for wire in self._wires:
            tripped |= wire.good(now_ns)
        self.steady = self._is_steady()
        return tripped

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        """Count one that did not with every condition; return True if any trips."""
        self.steady = False
        tripped = False
        for wire in self._wires:
            tripped |= wire.bad(now_ns, failed=failed, slow=slow)
        return tripped

    def notes(self) -> Notes | None:
        """Return what each condition counts now; None if one cannot tell."""
        every = tuple(wire.notes() for wire in self._wires)
        return None if None in every else every  # type: ignore[return-value]

    def resume(self, notes: Notes) -> None:
        """Give each condition what it had counted."""
        for wire, counted in zip(self._wires, notes, strict=True):
            wire.resume(counted)  # type: ignore[arg-type]
        self.steady = self._is_steady()

    def _is_steady(self) -> bool:
        return all(wire.steady for wire in self._wires)


class Consecutive:
    """Trips after `limit` failures with no success between them."""

    __slots__ = ("_limit", "failures", "steady")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.failures: int = 0
        self.steady: bool = True

    @property
    def blank(self) -> bool:
        """Whether the last call was no failure."""
        return self.steady

    def age(self, now_ns: int) -> None:
        """Do nothing: consecutive failures are forgotten by a success alone."""

    def good(self, now_ns: int) -> bool:  # noqa: ARG002 - the protocol's signature
        """Forget the failures."""
        self.failures = 0
        self.steady = True
        return False

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        """Count a failure; one that was only slow is a success."""
        if not failed:
            return self.good(now_ns)
        self.failures += 1
        self.steady = False
        return self.failures >= self._limit

    def notes(self) -> Notes:
        """Return the failures."""
        return (self.failures,)

    def resume(self, notes: Notes) -> None:
        """Have counted so many failures."""
        (self.failures,) = notes  # type: ignore[assignment]
        self.steady = not self.failures


class Rate:
    """Trips when at least a share of the calls in a window failed, or were slow, once it holds `min_calls`.

    A subclass keeps the window.
    """

    __slots__ = ("_least", "_min_calls", "_of", "_slow_calls", "failures", "slow")

    def __init__(self, share: Fraction, min_calls: int, *, slow_calls: bool) -> None:
        # `_least` of `_of` calls, in whole numbers.
        self._least, self._of = share.as_integer_ratio()
        self._min_calls = min_calls
        self._slow_calls = slow_calls
        self.failures: int = 0
        self.slow: int = 0

    def _reached(self, calls: int) -> bool:
        """Tell whether so many calls of the window are enough, and those of them that are counted are too many."""
        counted = self.slow if self._slow_calls else self.failures
        return calls >= self._min_calls and counted * self._of >= self._least * calls


class RateOfCalls(Rate):
    """Watches the last `size` calls, exactly."""

    __slots__ = ("_bad", "_newest", "_size", "steady")

    failures: int
    slow: int

    def __init__(self, size: int, share: Fraction, min_calls: int, *, slow_calls: bool) -> None:
        super().__init__(share, min_calls, slow_calls=slow_calls)
        self._size = size
        # Calls are numbered from 1. Those that went well need not be kept: they are the others.
        self._newest = 0
        self._bad: deque[tuple[int, bool, bool]] = deque()
        self.steady: bool = False

    @property
    def blank(self) -> bool:
        """Whether there has been no call yet."""
        return not self._newest

    def age(self, now_ns: int) -> None:
        """Do nothing: calls leave this window as others enter it."""

    def good(self, now_ns: int) -> bool:  # noqa: ARG002 - the protocol's signature
        """Count a call that went well; it trips where it is what made the calls enough."""
        self._newest = newest = self._newest + 1
        bad = self._bad
        if bad and bad[0][0] + self._size <= newest:
            self._forget()
        if bad:
            return self._reached(min(newest, self._size))
        # What is full of calls that went well stays so.
        self.steady = newest >= self._size
        return False

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        """Count a call that did not."""
        self.steady = False
        self._newest = newest = self._newest + 1
        if self._bad and self._bad[0][0] + self._size <= newest:
            self._forget()
        self._bad.append((newest, failed, slow))
        self.failures += failed
        self.slow += slow
        return self._reached(min(newest, self._size))

    def _forget(self) -> None:
        """Forget the oldest of those that did not go well."""
        _, failed, slow = self._bad.popleft()
        self.failures -= failed
        self.slow -= slow

    def notes(self) -> Notes:
        """Return how many calls there are, one bit for each that failed, and one for each that was slow."""
        calls = min(self._newest, self._size)
        oldest = self._newest - calls + 1
        failed = sum(failed << (number - oldest) for number, failed, _ in self._bad)
        slow = sum(slow << (number - oldest) for number, _, slow in self._bad)
        return calls, failed, slow

    def resume(self, notes: Notes) -> None:
        """Have counted so many calls."""
        self._newest, failed, slow = notes  # type: ignore[assignment]
        for place in range(self._newest):
            call = (place + 1, bool(failed >> place & 1), bool(slow >> place & 1))  # type: ignore[operator]
            if any(call[1:]):
                self._bad.append(call)
                self.failures += call[1]
                self.slow += call[2]
        self.steady = not self._bad and self._newest >= self._size


class RateOfTime(Rate):
    """Watches the calls of the last `slices` slices of time, the one that goes on included."""

    __slots__ = ("_ends_at", "_finished", "_past", "_slice_ns", "_slices", "calls")

    steady = False

    failures: int
    slow: int
    _finished: tuple[int, int, int]

    def __init__(self, slice_ns: int, slices: int, share: Fraction, min_calls: int, *, slow_calls: bool) -> None:
        super().__init__(share, min_calls, slow_calls=slow_calls)
        self._slice_ns = slice_ns
        self._slices = slices
        # Of each slice that is over: when it will have left the window, and its calls, failures and slow calls.
        self._past: deque[tuple[int, int, int, int]] = deque()
        # When the slice that goes on will be over, if one has begun. What is counted in it is all that is counted, but
        # for what the others come to, which is `_finished`.
        self._ends_at: int | None = None
        self.calls: int = 0

    @property
    def blank(self) -> bool:
        """Whether there was no call in the window that ended when it was last aged."""
        return not self.calls

    def age(self, now_ns: int) -> None:
        """Forget the slices that have left the window by now."""
        if self._ends_at is None or now_ns >= self._ends_at:
            self._begin_slice(now_ns)

    def good(self, now_ns: int) -> bool:
        """Count a call that went well; it trips where it is what made the calls enough."""
        if self._ends_at is None or now_ns >= self._ends_at:
            self._begin_slice(now_ns)
        self.calls += 1
        return (self.failures or self.slow) > 0 and self._reached(self.calls)

    def bad(self, now_ns: int, *, failed: bool, slow: bool) -> bool:
        """Count a call that did not."""
        self.age(now_ns)
        self.calls += 1
        self.failures += failed
        self.slow += slow
        return self._reached(self.calls)

    def _begin_slice(self, now_ns: int) -> None:
        if self._ends_at is not None:
            calls, failures, slow = self._finished
            leaves_at = self._ends_at + (self._slices - 1) * self._slice_ns
            self._past.append((leaves_at, self.calls - calls, self.failures - failures, self.slow - slow))
        while self._past and self._past[0][0] <= now_ns:
            _, calls, failures, slow = self._past.popleft()
            self.calls -= calls
            self.failures -= failures
            self.slow -= slow
        self._finished = (self.calls, self.failures, self.slow)
        self._ends_at = (now_ns // self._slice_ns + 1) * self._slice_ns

    def notes(self) -> Notes | None:
        """Return that there is nothing, or None."""
        return None if self.calls else ()

    def resume(self, notes: Notes) -> None:
        """Do nothing: there is nothing to tell but that there was nothing."""
