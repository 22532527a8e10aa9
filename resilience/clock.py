"""Where time comes from.

Rules of this module:

* Every guard and strategy takes its clock as an argument; nothing else in `resilience` reads the time.
* Public durations are seconds (`float`); instants inside are integer nanoseconds of one monotonic line.
* The wall clock is for what leaves or outlives the process (a log line, a timestamp), never for a decision.

It knows no guard and no event loop library beyond anyio.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["CallbackClock", "Clock", "MonotoneLine", "SystemClock", "nanoseconds", "seconds"]

NANOSECONDS_PER_SECOND = 1_000_000_000
_BEYOND = (math.inf, -math.inf)


@runtime_checkable
class Clock(Protocol):
    """What a guard or a strategy asks of its clock; write your own to run them on another time."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds on a line that is meant never to go back; its origin means nothing."""
        ...

    def time_ns(self) -> int:
        """Return Unix time in nanoseconds; it may jump either way."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Suspend the calling task for `seconds`. A checkpoint, even at 0."""
        ...

    def sleep_blocking(self, seconds: float, /) -> None:
        """Block the calling thread for `seconds`."""
        ...

    def fail_after(self, seconds: float, /) -> AbstractContextManager[object]:
        """Return a plain context manager that cancels its block after `seconds` and then raises TimeoutError."""
        ...


@runtime_checkable
class CallbackClock(Clock, Protocol):
    """A clock that can also call back, so that a wait on it needs neither a task nor a cancel scope."""

    def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:
        """Call `callback` once `delay_ns` nanoseconds have passed; the function returned takes that back."""
        ...


class SystemClock:
    """The clock of the machine: `time.monotonic_ns`, `time.time_ns`, and anyio's sleep and timeouts."""

    __slots__ = ()

    # Held as plain functions rather than wrapped: this is read once or twice on every call that is guarded.
    monotonic_ns: staticmethod[[], int] = staticmethod(time.monotonic_ns)
    time_ns: staticmethod[[], int] = staticmethod(time.time_ns)

    async def sleep(self, seconds: float, /) -> None:
        """Suspend the calling task for `seconds`. A checkpoint, even at 0; a cancellation ends it at once."""
        await anyio.sleep(seconds)

    def sleep_blocking(self, seconds: float, /) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)

    def fail_after(self, seconds: float, /) -> AbstractContextManager[object]:
        """Cancel the block after `seconds` and raise TimeoutError, as `anyio.fail_after` does."""
        return anyio.fail_after(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"


class MonotoneLine:
    """One guard's own line of time, which stands still where its clock steps back.

    A clock that falls back by an hour must not make anybody wait an hour longer, nor mint the hour twice. So the
    step is added to an offset: time stands still at that instant and then goes on at the clock's own pace.
    Not locked: its guard reads it under the guard's lock.
    """

    __slots__ = ("last_ns", "offset_ns")

    def __init__(self, now_ns: int) -> None:
        self.last_ns: int = now_ns
        self.offset_ns: int = 0

    def at(self, clock_ns: int) -> int:
        """Return the instant on this line for a reading of the clock."""
        now_ns = clock_ns + self.offset_ns
        if now_ns < self.last_ns:
            return self.stand_still(now_ns)
        self.last_ns = now_ns
        return now_ns

    def glance(self, clock_ns: int) -> int:
        """Return the instant for a reading as far as it is known without the guard's lock; the line does not move."""
        now_ns = clock_ns + self.offset_ns
        return now_ns if now_ns > self.last_ns else self.last_ns  # noqa: FURB136 - max() costs five times as much

    def at_reading(self, clock_ns: int | None, read: Callable[[], int]) -> int:
        """Return the instant for a reading that was taken before the guard's lock was; None: for one taken now.

        Another thread may have had its turn in between. Such a reading is late, not a step back: the clock is read
        again. Taken for a step back, it would put this line ahead of the clock for ever, a little with each race.
        """
        late = clock_ns is None or clock_ns + self.offset_ns < self.last_ns
        return self.at(read() if late else clock_ns)  # type: ignore[arg-type]

    def stand_still(self, behind_ns: int) -> int:
        """Return the last instant, and count on from there: the clock has fallen back to `behind_ns`."""
        self.offset_ns += self.last_ns - behind_ns
        return self.last_ns


def nanoseconds(seconds: float, /) -> int:
    """Return `seconds` as the nearest whole number of nanoseconds .

    What `seconds` gives returns unchanged up to 26 days (2**51 nanoseconds), and to within a few nanoseconds beyond.
    """
    product = seconds * NANOSECONDS_PER_SECOND
    # Past 1e299 seconds the product is beyond what a float holds; an int holds it.
    return int(seconds) * NANOSECONDS_PER_SECOND if product in _BEYOND and seconds not in _BEYOND else round(product)


def seconds(nanoseconds: int, /) -> float:
    """Return nanoseconds as seconds; infinity for what is beyond a float."""
    try:
        return nanoseconds / NANOSECONDS_PER_SECOND
    except OverflowError:
        return math.inf if nanoseconds > 0 else -math.inf
