"""What a case may ask of a library: the whole of the adapter interface.

A case knows these few shapes and nothing of any library. An adapter builds them in the way that its library's own
documentation shows; what it does not override, the library does not offer. Time is in seconds throughout. A guard is
always made with the library's defaults but for what is asked for here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, NoReturn, TypeAlias

import attrs

__all__ = [
    "Breaker",
    "Call",
    "Circuit",
    "Decorator",
    "Function",
    "Library",
    "Limiter",
    "NotOffered",
    "PlainDecorator",
    "PlainFunction",
    "PlainLimiter",
    "complete",
    "not_offered",
]

Function: TypeAlias = Callable[[], Awaitable[object]]
PlainFunction: TypeAlias = Callable[[], object]
Call: TypeAlias = Callable[[Function], Awaitable[object]]
"""Calls the function once under the guard, and returns its answer."""
Decorator: TypeAlias = Callable[[Callable[..., object]], Callable[..., object]]
"""The library's own decorator; whether it takes async generators and callable objects is what some cases ask."""
PlainDecorator: TypeAlias = Callable[[PlainFunction], PlainFunction]


class NotOffered(BaseException):
    """The library has no such feature: an answer, not an error, so no guard is to catch it."""

    def __init__(self, why: str = "no such feature") -> None:
        super().__init__(why)
        # A guard may still replace it by an exception of its own; the cell looks here.
        Library.refused = why


@attrs.frozen(kw_only=True)
class Circuit:
    """The terms of a circuit breaker: open after so many `failures` in a row, then try again after `recovery` seconds.

    There is one trial at a time, and one success closes the circuit.
    """

    failures: int
    recovery: float
    ignored: type[Exception] | None = None
    """An exception of this class says nothing about the service."""
    listener: Callable[[], None] | None = None
    """Is told of each change."""

    def ignores(self, error: BaseException) -> bool:
        """Tell whether an exception says nothing about the service."""
        return self.ignored is not None and isinstance(error, self.ignored)

    def tell(self, *_: object) -> None:
        """Tell the listener, if there is one, whatever the library has to say besides."""
        if self.listener is not None:
            self.listener()


@attrs.frozen
class Breaker:
    """A circuit breaker: `call` runs one call; `decorate`, where the library has a decorator, decorates."""

    call: Call
    decorate: Decorator | None = None

    def decorated(self, function: Callable[..., object]) -> Callable[..., object]:
        """Decorate a function."""
        if self.decorate is None:
            not_offered("no decorator")
        return self.decorate(function)


@attrs.frozen
class Limiter:
    """A rate limiter that refuses: `try_acquire(cost)`, and how long to wait before the next attempt, if it says so."""

    try_acquire: Callable[[int], Awaitable[bool]]
    retry_after: Callable[[], Awaitable[float]] | None = None


PlainLimiter: TypeAlias = Callable[[], bool]
"""Takes one permit if there is one, without waiting."""


def not_offered(why: str = "no such feature") -> NoReturn:
    """End the case: there is nothing to judge."""
    raise NotOffered(why)


def complete(function: Function) -> object:
    """Run a coroutine function in plain code, for libraries that only know that; one that waits cannot be run so."""
    running = function().__await__()
    try:
        next(running)
    except StopIteration as stop:
        return stop.value
    running.close()
    not_offered("no coroutine functions")


class Library:
    """One library; an adapter overrides what there is."""

    documented: ClassVar[Mapping[str, str]] = {}
    """Case to the place where the library's documentation says that it behaves otherwise."""
    refused: ClassVar[str | None] = None

    def breaker(self, circuit: Circuit) -> Breaker:
        """Make a circuit breaker on these terms."""
        not_offered()

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        """Return what calls a plain function under such a breaker."""
        not_offered()

    def keyed_breaker(self, circuit: Circuit, *, keys: int) -> Callable[[str], Breaker]:
        """Return what finds the breaker of a key; at most `keys` of them are kept."""
        not_offered()

    def limiter(self, *, calls: int, period: float) -> Limiter:
        """Admit at most `calls` at once, and `calls` per `period` in the long run; refuse the others at once."""
        not_offered()

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        """Return `acquire(cost)` of such a limiter, which waits for its turn for as long as it takes."""
        not_offered()

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        """Make one for plain code, shared by threads."""
        not_offered()

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        """Return `try_acquire(key)` of limiters of which at most `keys` are kept."""
        not_offered()

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        """Run at most `limit` at a time; let at least `queue` more wait, at most `max_wait` seconds."""
        not_offered()

    def retry(self, *, attempts: int) -> Decorator:
        """Call up to `attempts` times, after any Exception, with delays of 1, 2, 4 … at most 60 s, without jitter."""
        not_offered()

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        """Make one for plain functions, without delays."""
        not_offered()

    def timeout(self, *, seconds: float) -> Decorator:
        """Bound each call."""
        not_offered()

    def hedge(self, *, delay: float) -> Decorator:
        """Begin a second attempt when the first has not answered after `delay`."""
        not_offered()

    def fallback(self, *, answer: object) -> Decorator:
        """Answer in place of a call that fails with any Exception."""
        not_offered()
