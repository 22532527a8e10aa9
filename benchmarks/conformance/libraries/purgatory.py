"""purgatory, as its README shows it: a factory of named circuits, whose breakers are context managers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from purgatory import AsyncCircuitBreakerFactory, SyncCircuitBreakerFactory

from benchmarks.conformance.library import Breaker, Library

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conformance.library import Circuit, Function, PlainFunction

CIRCUIT = "service"


def _hook(tell: Callable[[], None]) -> Callable[[str, str, object], None]:
    def hook(_name: str, event: str, _payload: object) -> None:
        if event == "state_changed":
            tell()

    return hook


class Purgatory(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        factory = AsyncCircuitBreakerFactory(
            default_threshold=circuit.failures,
            default_ttl=circuit.recovery,
            exclude=[] if circuit.ignored is None else [circuit.ignored],
        )
        if circuit.listener is not None:
            factory.add_listener(_hook(circuit.listener))

        async def call(function: Function) -> object:
            async with await factory.get_breaker(CIRCUIT):
                return await function()

        return Breaker(call, factory(CIRCUIT))

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        factory = SyncCircuitBreakerFactory(default_threshold=circuit.failures, default_ttl=circuit.recovery)
        if circuit.listener is not None:
            factory.add_listener(_hook(circuit.listener))

        def call(function: PlainFunction) -> object:
            with factory.get_breaker(CIRCUIT):
                return function()

        return call


LIBRARY = Purgatory()
