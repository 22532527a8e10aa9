"""purgatory, as its README shows it: a factory of named circuits, whose breakers are context managers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from purgatory import AsyncCircuitBreakerFactory, SyncCircuitBreakerFactory

from benchmarks.conformance.library import Breaker, Library

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Function, PlainFunction

CIRCUIT = "service"


def _hook(tell: Callable[[], None]) -> Callable[[str, str, object], None]:
    def hook(_name: str, event: str, _payload: object) -> None:
        if event == "state_changed":
            tell()

    return hook


class Purgatory(Library):
    def breaker(
        self,
        *,
        failures: int,
        recovery: float,
        ignored: type[Exception] | None = None,
        listener: Callable[[], None] | None = None,
    ) -> Breaker:
        factory = AsyncCircuitBreakerFactory(
            default_threshold=failures, default_ttl=recovery, exclude=[] if ignored is None else [ignored]
        )
        if listener is not None:
            factory.add_listener(_hook(listener))

        async def call(function: Function) -> object:
            async with await factory.get_breaker(CIRCUIT):
                return await function()

        return Breaker(call, factory(CIRCUIT))

    def plain_breaker(
        self, *, failures: int, recovery: float, listener: Callable[[], None] | None = None
    ) -> Callable[[PlainFunction], object]:
        factory = SyncCircuitBreakerFactory(default_threshold=failures, default_ttl=recovery)
        if listener is not None:
            factory.add_listener(_hook(listener))

        def call(function: PlainFunction) -> object:
            with factory.get_breaker(CIRCUIT):
                return function()

        return call


LIBRARY = Purgatory()
