"""Time that a cell of the board can move: installed before any library is imported, and the same for every one of them.

Few libraries take a clock, so none is given one. Instead `install()` replaces what all of them read: the functions of
`time`, `datetime.datetime`, and the clock of the event loop. A program that waits jumps to the instant that it waits
for, so no case takes real time, and a case that ends too early or too late is wrong by what it measured and not by
what the machine was doing. The wall clock can be moved without the monotonic one, as an administrator would.

What is left alone: `threading` has its own reference to the real clock, so locks and barriers time out in real
seconds, and `time.sleep` in any thread but the first one really sleeps.
"""

from __future__ import annotations

import asyncio
import concurrent.futures  # noqa: F401 - imported before the clock is replaced, like the two below
import datetime as dt
import math
import queue  # noqa: F401
import selectors
import threading
import time
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["Stuck", "VirtualLoop", "install", "jump_wall", "now", "run"]

STARTED_AT = 1_800_000_000
"""What the wall clock says at first, in Unix seconds: any date will do, as long as it is the same in every run."""
PATIENCE = 1.0
"""Real seconds to wait for another thread when nothing else is left that could go on."""
TURN = 1e-6
"""Seconds that a turn of the event loop takes, so that nobody who spins waits for ever for the clock to move."""
TICK = 1e-3
"""Seconds to which a wait is rounded up, as epoll does: timers that are due in the same tick ring in the same turn."""

_real_sleep = time.sleep  # noqa: TID251 - for threads that are to sleep in earnest
_RealDatetime = dt.datetime


class Stuck(BaseException):
    """Nothing can ever go on: no callback, no timer, no thread. A BaseException, so that no guard answers it."""


class _Now:
    """The instant, in nanoseconds, and how far the wall clock is ahead of the monotonic one."""

    monotonic_ns = 1_000 * 1_000_000_000
    wall_ahead_ns = (STARTED_AT - 1_000) * 1_000_000_000

    def advance(self, seconds: float) -> None:
        self.monotonic_ns += math.ceil(seconds * 1e9)


_now = _Now()


def now() -> float:
    """Return the monotonic clock, in seconds."""
    return _now.monotonic_ns / 1e9


def jump_wall(seconds: float) -> None:
    """Set the wall clock forward, or back; the monotonic clock does not notice."""
    _now.wall_ahead_ns += round(seconds * 1e9)


def _time_ns() -> int:
    return _now.monotonic_ns + _now.wall_ahead_ns


def _sleep(seconds: float) -> None:
    if threading.current_thread() is threading.main_thread():
        _now.advance(seconds)
    else:
        _real_sleep(seconds)


class _Datetime(_RealDatetime):
    """`datetime.datetime` whose present is the virtual one."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> _Datetime:
        return cls.fromtimestamp(_time_ns() / 1e9, tz)

    @classmethod
    def utcnow(cls) -> _Datetime:
        return cls.fromtimestamp(_time_ns() / 1e9, dt.UTC).replace(tzinfo=None)


def install() -> None:
    """Replace the clocks of this process, for good."""
    replacements = {
        "monotonic": now,
        "monotonic_ns": lambda: _now.monotonic_ns,
        "perf_counter": now,
        "perf_counter_ns": lambda: _now.monotonic_ns,
        "time": lambda: _time_ns() / 1e9,
        "time_ns": _time_ns,
        "sleep": _sleep,
    }
    for name, replacement in replacements.items():
        setattr(time, name, replacement)
    setattr(dt, "datetime", _Datetime)  # noqa: B010 - mypy has no assignment to a type


class _Selector:
    """A selector that does not wait for a timer but moves the clock to it."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def __getattr__(self, name: str) -> object:
        return getattr(self._selector, name)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._selector.select(PATIENCE if timeout is None else 0)
        if not ready and timeout is None:
            raise Stuck
        waited = 0.0 if ready or timeout is None else max(timeout, 0.0)
        _now.advance(math.ceil(waited / TICK) * TICK or TURN)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An ordinary event loop on the virtual clock."""

    def __init__(self) -> None:
        # It is no subclass: the methods of a selector that are missing here are those of the one inside.
        super().__init__(cast("selectors.BaseSelector", _Selector(selectors.DefaultSelector())))

    def time(self) -> float:
        """Return the virtual clock, in seconds."""
        return now()


def run(main: Coroutine[object, object, T]) -> T:
    """Run a coroutine in a new event loop, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
