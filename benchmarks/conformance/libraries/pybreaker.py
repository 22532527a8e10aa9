"""pybreaker, as its README shows it. Its coroutines are Tornado's, so here it guards plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybreaker import CircuitBreaker, CircuitBreakerListener

from benchmarks.conformance.library import Breaker, Library, complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Circuit, Function, PlainFunction


class _Listener(CircuitBreakerListener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def state_change(self, cb: CircuitBreaker, old_state: object, new_state: object) -> None:
        self._tell()


def _breaker(circuit: Circuit) -> CircuitBreaker:
    return CircuitBreaker(
        fail_max=circuit.failures,
        reset_timeout=circuit.recovery,
        exclude=[] if circuit.ignored is None else [circuit.ignored],
        listeners=[] if circuit.listener is None else [_Listener(circuit.listener)],
    )


class PyBreaker(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)

        async def call(function: Function) -> object:
            return breaker.call(lambda: complete(function))

        return Breaker(call)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        return _breaker(circuit).call


LIBRARY = PyBreaker()
