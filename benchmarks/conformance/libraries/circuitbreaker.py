"""circuitbreaker, as its README shows it: a decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitbreaker import CircuitBreaker

from benchmarks.conformance.library import Breaker, Library, not_offered

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import PlainFunction


class CircuitBreakerLibrary(Library):
    def breaker(
        self,
        *,
        failures: int,
        recovery: float,
        ignored: type[Exception] | None = None,
        listener: Callable[[], None] | None = None,
    ) -> Breaker:
        if listener is not None:
            not_offered("no listeners")
        breaker = CircuitBreaker(
            failure_threshold=failures,
            recovery_timeout=recovery,
            expected_exception=None
            if ignored is None
            else lambda kind, _: issubclass(kind, Exception) and not issubclass(kind, ignored),
        )
        return Breaker(lambda function: breaker(function)(), breaker)

    def plain_breaker(
        self, *, failures: int, recovery: float, listener: Callable[[], None] | None = None
    ) -> Callable[[PlainFunction], object]:
        if listener is not None:
            not_offered("no listeners")
        breaker = CircuitBreaker(failure_threshold=failures, recovery_timeout=recovery)
        return lambda function: breaker(function)()


LIBRARY = CircuitBreakerLibrary()
