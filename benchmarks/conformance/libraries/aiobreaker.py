"""aiobreaker, as its README shows it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from aiobreaker import CircuitBreaker, CircuitBreakerListener

from benchmarks.conformance.library import Breaker, Library

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Circuit, PlainFunction


class _Listener(CircuitBreakerListener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def state_change(self, breaker: CircuitBreaker, old: object, new: object) -> None:
        self._tell()


def _breaker(circuit: Circuit) -> CircuitBreaker:
    return CircuitBreaker(
        fail_max=circuit.failures,
        timeout_duration=timedelta(seconds=circuit.recovery),
        exclude=[] if circuit.ignored is None else [circuit.ignored],
        listeners=[] if circuit.listener is None else [_Listener(circuit.listener)],
    )


class AioBreaker(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)
        return Breaker(breaker.call_async, breaker)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        return _breaker(circuit).call


LIBRARY = AioBreaker()
