"""Cancel points: a call that is cancelled at the k-th point at which it can be, for every k.

Rules of this module: a *cancel point* is a place where the call suspends, or point 0, before its first step. The call
is driven step by step from outside, so nothing has to be changed in what is called, and it works on any event loop;
under a schedule (`seeded_asyncio`, `seeded_trio`) it is exhaustive and repeatable.

There are three ways of cancelling, and code gets them wrong one by one:

* "scope": by a cancel scope of anyio, while the call waits;
* "native": on asyncio by `Task.cancel()`, while the call waits (on trio the same as "scope");
* "woken": after what it waited for has come, before it goes on: natively on asyncio, where the wait then ends in the
  cancellation although it was served; on trio the cancellation comes with the next checkpoint.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import anyio

from resilience.machines.checks import positive_int, whole_number

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["WAYS", "CancelPoint", "Way", "cancel_at", "every_cancel_point"]

T = TypeVar("T")

Way: TypeAlias = Literal["scope", "native", "woken"]
WAYS: tuple[Way, ...] = ("scope", "native", "woken")


class CancelPoint:
    """The k-th point at which a call can be cancelled; `cancel_at` makes it; what it tells is of its last call."""

    __slots__ = ("_scope", "_seen", "_task", "_under_way", "cancelled", "number", "reached", "way")

    def __init__(self, number: int, way: Way) -> None:
        self.number: int = number
        self.way: Way = way
        #: Whether the call came as far as this point.
        self.reached: bool = False
        #: Whether the cancellation came through, rather than too late to matter.
        self.cancelled: bool = False
        self._seen = -1
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[object] | None = None
        self._under_way = False

    async def call(self, func: Callable[..., Awaitable[T]], /, *args: object) -> T | None:
        """Call and await `func(*args)`; return what it returns, or None if it was cancelled here.

        A cancellation from elsewhere goes on.
        """
        if self._under_way:
            msg = "a cancel point serves for one call at a time"
            raise RuntimeError(msg)
        self.reached = self.cancelled = False
        self._seen = -1
        self._task = _current_asyncio_task()
        native = self.way != "scope" and self._task is not None
        already = self._task.cancelling() if self._task is not None else 0
        self._under_way = True
        try:
            with anyio.CancelScope() as self._scope:
                self._suspends(None)
                return await _Driven(func(*args), self)
        except anyio.get_cancelled_exc_class():
            if not native or not self.reached or self._task is None or self._task.cancelling() <= already:
                raise
            self.cancelled = True
        finally:
            self._under_way = False
            if native and self._task is not None:
                while self._task.cancelling() > already:
                    self._task.uncancel()
        self.cancelled = True
        return None

    def _suspends(self, awaited: object) -> None:
        """Note that the call suspends for `awaited`; cancel it, if this is the point."""
        self._seen += 1
        if self._seen != self.number:
            return
        self.reached = True
        if self.way != "woken" or self.number == 0:
            self._cancel()
        elif self._task is not None and hasattr(awaited, "add_done_callback"):
            # Whoever waits is woken by a callback too, and the loop may run either of them first.
            awaited.add_done_callback(lambda _: self._cancel())

    def _resumes(self) -> None:
        """Note that the call was woken: on trio, and where nothing was waited for, this is the moment."""
        if self.way == "woken" and self._seen == self.number and self._task is None:
            self._cancel()

    def _cancel(self) -> None:
        if not self._under_way:
            return
        if self._task is not None and self.way != "scope":
            self._task.cancel()
        elif self._scope is not None:
            self._scope.cancel()


class _Driven(Generic[T]):
    """An awaitable that lets another one run, and tells when that suspends and resumes."""

    __slots__ = ("_awaitable", "_point")

    def __init__(self, awaitable: Awaitable[T], point: CancelPoint) -> None:
        self._awaitable = awaitable
        self._point = point

    def __await__(self) -> Generator[object, object, T]:
        inner = self._awaitable.__await__()
        resume: Callable[[], object] = lambda: next(inner)  # noqa: E731 - it changes with every step
        while True:
            try:
                awaited = resume()
            except StopIteration as stop:
                result: T = stop.value
                return result
            self._point._suspends(awaited)  # noqa: SLF001 - its own other half
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - handed in, whatever it is
                resume = _throwing(inner, error)
            else:
                self._point._resumes()  # noqa: SLF001 - as above
                resume = _sending(inner, sent)


def _sending(inner: Generator[object, object, object], value: object) -> Callable[[], object]:
    # An iterator that is no generator can only be asked for its next.
    return (lambda: inner.send(value)) if hasattr(inner, "send") else (lambda: next(inner))


def _throwing(inner: Generator[object, object, object], error: BaseException) -> Callable[[], object]:
    def throw() -> object:
        if hasattr(inner, "throw"):
            return inner.throw(error)
        raise error

    return throw


def _current_asyncio_task() -> asyncio.Task[object] | None:
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return None
    import asyncio

    return asyncio.current_task()


def cancel_at(number: int, way: Way = "scope") -> CancelPoint:
    """Return the cancel point with this number: 0 is before the first step, 1 where the call first suspends.

    Raises:
        ValueError: `number` is negative, or `way` is none of the three.

    """
    whole_number("number", number)
    if way not in WAYS:
        msg = f"way must be one of {', '.join(map(repr, WAYS))}, not {way!r}"
        raise ValueError(msg)
    return CancelPoint(number, way)


def every_cancel_point(trial: Callable[[CancelPoint], object], *, way: Way = "scope", limit: int = 10_000) -> int:
    """Run `trial(point)` for every cancel point, until one is not reached; return how many were.

    The trial starts from nothing each time, awaits `point.call(func, *args)`, and judges what it finds afterwards; most
    run a whole event loop. What it raises leaves with a note of the point.

    Args:
        trial: what to run.
        way: how to cancel.
        limit: the most points that there may be; a call that never ends has no last one.

    Raises:
        AssertionError: there are more points than `limit`.
        ValueError: the trial did not call.

    """
    positive_int("limit", limit)
    for number in range(limit + 1):
        point = cancel_at(number, way)
        try:
            trial(point)
        except BaseException as error:
            error.add_note(f"cancelled at point {number}, way={way!r}")
            raise
        if point._seen < 0:  # noqa: SLF001 - its own other half
            msg = f"trial must await point.call(), which {trial!r} did not"
            raise ValueError(msg)
        if not point.reached:
            return number
    msg = f"no end after {limit} cancel points"
    raise AssertionError(msg)
