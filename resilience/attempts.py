"""Attempts at a block: a loop that runs its body again, which a function cannot do.

Rules of this module: a block is entered and left before the next attempt begins; its exception is kept back only if
another attempt follows. Whether one follows, and after what delay, is for whoever made the attempts to say.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol

from resilience.clock import seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock

__all__ = ["Attempt", "Attempts", "Rounds"]


class Rounds(Protocol):
    """What judges the attempts of one block."""

    @property
    def failed(self) -> int:
        """How many have failed so far."""
        ...

    def after_error(self, error: Exception) -> int | None:
        """Return the delay before the next attempt; None if there is none."""
        ...

    def after_result(self, result: object) -> int | None:
        """Return the delay before the next attempt; None if the result stands."""
        ...


class Attempts:
    """The attempts at one block: an iterator for `async for` and, in plain code, for `for`.

    Raises RuntimeError if another attempt is asked for before the block of the last one has been entered and left.
    """

    __slots__ = ("_begin", "_clock", "_delay_ns", "_is_open", "_rounds")

    def __init__(self, begin: Callable[[], Rounds], clock: Clock) -> None:
        self._begin = begin
        self._clock = clock
        self._rounds: Rounds | None = None
        self._is_open = False
        self._delay_ns: int | None = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        delay_ns = self._delay()
        if delay_ns is None:
            raise StopAsyncIteration
        if self._rounds is not None:
            await self._clock.sleep(seconds(delay_ns))
        return self._next()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        delay_ns = self._delay()
        if delay_ns is None:
            raise StopIteration
        if self._rounds is not None:
            self._clock.sleep_blocking(seconds(delay_ns))
        return self._next()

    def _delay(self) -> int | None:
        if self._is_open:
            msg = (
                "the block of an attempt must have been left before the next attempt: write `with attempt:` in the loop"
            )
            raise RuntimeError(msg)
        return self._delay_ns

    def _next(self) -> Attempt:
        if self._rounds is None:
            self._rounds = self._begin()
        self._is_open = True
        return Attempt(self._rounds.failed + 1, functools.partial(self._judge, self._rounds))

    def _judge(self, rounds: Rounds, exception: BaseException | None, result: object) -> bool:
        """Hear how an attempt ended; tell whether another one follows."""
        self._is_open = False
        self._delay_ns = None
        if isinstance(exception, Exception):
            self._delay_ns = rounds.after_error(exception)
        elif exception is None and result is not _NO_RESULT:
            self._delay_ns = rounds.after_result(result)
        return self._delay_ns is not None


_NO_RESULT = object()


class Attempt:
    """One attempt at a block, made by `Retry.attempts`; entered once, as a plain context manager.

    `number` counts from 1. Set `result` to have `on_result` judge it; when the attempts are used up, the last one
    stands. Not a checkpoint. A cancellation goes on.
    """

    __slots__ = ("_entered", "_judge", "number", "result")

    def __init__(self, number: int, judge: Callable[[BaseException | None, object], bool]) -> None:
        self.number: int = number
        self.result: object = _NO_RESULT
        self._judge = judge
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            msg = "the block of an attempt may be entered only once"
            raise RuntimeError(msg)
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._judge(exception, self.result) and exception is not None
