"""aiobreaker, as its README shows it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from aiobreaker import CircuitBreaker, CircuitBreakerListener

from benchmarks.conformance.library import Breaker, Library

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import PlainFunction


class _Listener(CircuitBreakerListener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def state_change(self, breaker: CircuitBreaker, old: object, new: object) -> None:
        self._tell()


def _breaker(
    failures: int,
    recovery: float,
    ignored: type[Exception] | None = None,
    listener: Callable[[], None] | None = None,
) -> CircuitBreaker:
    return CircuitBreaker(
        fail_max=failures,
        timeout_duration=timedelta(seconds=recovery),
        exclude=[] if ignored is None else [ignored],
        listeners=[] if listener is None else [_Listener(listener)],
    )


class AioBreaker(Library):
    def breaker(
        self,
        *,
        failures: int,
        recovery: float,
        ignored: type[Exception] | None = None,
        listener: Callable[[], None] | None = None,
    ) -> Breaker:
        breaker = _breaker(failures, recovery, ignored, listener)
        return Breaker(breaker.call_async, breaker)

    def plain_breaker(
        self, *, failures: int, recovery: float, listener: Callable[[], None] | None = None
    ) -> Callable[[PlainFunction], object]:
        return _breaker(failures, recovery, listener=listener).call


LIBRARY = AioBreaker()
