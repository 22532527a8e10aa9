"""pybreaker, as its README shows it. Its coroutines are Tornado's, so here it guards plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybreaker import CircuitBreaker, CircuitBreakerListener

from benchmarks.conformance.library import Breaker, Library, complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Function, PlainFunction


class _Listener(CircuitBreakerListener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def state_change(self, cb: CircuitBreaker, old_state: object, new_state: object) -> None:
        self._tell()


def _breaker(
    failures: int,
    recovery: float,
    ignored: type[Exception] | None = None,
    listener: Callable[[], None] | None = None,
) -> CircuitBreaker:
    return CircuitBreaker(
        fail_max=failures,
        reset_timeout=recovery,
        exclude=[] if ignored is None else [ignored],
        listeners=[] if listener is None else [_Listener(listener)],
    )


class PyBreaker(Library):
    def breaker(
        self,
        *,
        failures: int,
        recovery: float,
        ignored: type[Exception] | None = None,
        listener: Callable[[], None] | None = None,
    ) -> Breaker:
        breaker = _breaker(failures, recovery, ignored, listener)

        async def call(function: Function) -> object:
            return breaker.call(lambda: complete(function))

        return Breaker(call)

    def plain_breaker(
        self, *, failures: int, recovery: float, listener: Callable[[], None] | None = None
    ) -> Callable[[PlainFunction], object]:
        return _breaker(failures, recovery, listener=listener).call


LIBRARY = PyBreaker()
