"""circuitbreaker, as its README shows it: a decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitbreaker import CircuitBreaker

from benchmarks.conformance.library import Breaker, Library, not_offered

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Circuit, PlainFunction


def _breaker(circuit: Circuit) -> CircuitBreaker:
    if circuit.listener is not None:
        not_offered("no listeners")
    return CircuitBreaker(
        failure_threshold=circuit.failures,
        recovery_timeout=circuit.recovery,
        expected_exception=None
        if circuit.ignored is None
        else lambda kind, error: issubclass(kind, Exception) and not circuit.ignores(error),
    )


class CircuitBreakerLibrary(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)
        return Breaker(lambda function: breaker(function)(), breaker)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        breaker = _breaker(circuit)
        return lambda function: breaker(function)()


LIBRARY = CircuitBreakerLibrary()
