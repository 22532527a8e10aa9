"""Every layer around callables of every kind: as long as it has nothing to say, nobody can tell that it is there."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio.lowlevel
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Deadline,
    Fallback,
    Hedge,
    Keyed,
    Policy,
    RateLimiter,
    Retry,
    StormGuard,
    Strategy,
    Timeout,
)
from resilience.streaming import Relay, relaying
from resilience.testing import Chaos, ManualClock
from tests.resilience.support import assert_caught, both_loops, run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from resilience import Clock, Layer
    from resilience.fusing import Runner
    from resilience.streaming import StreamRunner

Trace: TypeAlias = "list[object]"

#: What a layer may stand around.
KINDS = ("async def", "single call", "plain def", "stream", "manager", "single manager")
NO_PLAIN = frozenset({"plain def"})
CALLS_ALONE = frozenset({"plain def", "stream", "manager", "single manager"})


async def _stored(*_: object, **__: object) -> AsyncIterator[object]:
    yield "stored"


def _fallback(kind: str) -> Fallback:
    answer: Any = _stored if kind == "stream" or "manager" in kind else None
    return Fallback(answer, on=TimeoutError)


def _keyed(clock: Clock) -> Layer:
    guards = Keyed[int, Policy](lambda _: Policy(Bulkhead(1, clock=clock), CircuitBreaker(clock=clock)), clock=clock)
    return guards.layer(key=lambda *args, **_: len(args))


#: How each layer is made, given the kind of callable, and what it refuses to stand around.
LAYERS: dict[str, tuple[Callable[[str, Clock], Layer], frozenset[str]]] = {
    "AdaptiveLimiter": (lambda _, clock: AdaptiveLimiter(clock=clock), frozenset()),
    "LimiterShare": (lambda _, clock: AdaptiveLimiter(clock=clock).at(0.5), frozenset()),
    "Bulkhead": (lambda _, clock: Bulkhead(1, clock=clock), frozenset()),
    "Chaos": (lambda _, clock: Chaos(clock=clock), frozenset()),
    "CircuitBreaker": (lambda _, clock: CircuitBreaker(clock=clock), frozenset()),
    "Deadline": (lambda _, clock: Deadline(1.0, clock=clock), NO_PLAIN),
    "Fallback": (lambda kind, _: _fallback(kind), frozenset()),
    "Hedge": (lambda _, clock: Hedge(1.0, clock=clock), CALLS_ALONE),
    "Keyed": (lambda _, clock: _keyed(clock), frozenset()),
    "Policy": (
        lambda _, clock: Policy(Retry(2, on=TimeoutError, clock=clock), Policy(), StormGuard(clock=clock)),
        frozenset(),
    ),
    "RateLimiter": (lambda _, clock: RateLimiter(1.0, 1, clock=clock), frozenset()),
    "Retry": (lambda _, clock: Retry(3, on=TimeoutError, clock=clock), frozenset()),
    "StormGuard": (lambda _, clock: StormGuard(clock=clock), frozenset()),
    "Timeout": (lambda _, clock: Timeout(1.0, clock=clock), NO_PLAIN),
}


class Callee:
    """What is called, in each form; it puts down what reaches it, and ends as it is told."""

    def __init__(self, ending: str) -> None:
        self.ending = ending
        self.trace: Trace = []

    def end(self) -> object:
        """Return or raise."""
        if self.ending == "error":
            raise LookupError(self.ending)
        return self.ending

    def plain(self, /, *args: object, **kwargs: object) -> object:
        """Be a plain function."""
        self.trace.append(("called with", args, kwargs))
        return self.end()

    async def call(self, /, *args: object, **kwargs: object) -> object:
        """Be an `async def`."""
        await anyio.lowlevel.checkpoint()
        return self.plain(*args, **kwargs)

    async def stream(self, /, *args: object, **kwargs: object) -> AsyncGenerator[object, object]:
        """Be a stream that gives back what is sent and, if it is a LookupError, thrown into it."""
        self.trace.append(("called with", args, kwargs))
        received: object = "first"
        try:
            while received != "stop":
                try:
                    received = yield received
                except LookupError as error:
                    received = repr(error)
                self.trace.append(("received", received))
                await anyio.lowlevel.checkpoint()
            self.end()
        finally:
            self.trace.append("closed")

    @asynccontextmanager
    async def manager(self, /, *args: object, **kwargs: object) -> AsyncIterator[object]:
        """Be a context manager that keeps a LookupError of its block to itself."""
        self.trace.append(("called with", args, kwargs))
        try:
            yield "entered"
        except LookupError as error:
            self.trace.append(("kept", repr(error)))
        finally:
            self.trace.append("left")
        self.end()


async def _use_stream(stream: AsyncGenerator[object, object], script: list[str], trace: Trace) -> None:
    trace.append(await anext(stream))
    for step in script:
        try:
            if step == "next":
                trace.append(await anext(stream))
            elif step == "close":
                await stream.aclose()
            elif step in {"LookupError", "ZeroDivisionError"}:
                kind = LookupError if step == "LookupError" else ZeroDivisionError
                trace.append(await stream.athrow(kind("thrown")))
            else:
                trace.append(await stream.asend(step))
        except (Exception, StopAsyncIteration) as error:  # noqa: BLE001 - it is the trace
            trace.append(repr(error))
    await stream.aclose()


async def _use_manager(manager: Any, script: list[str], trace: Trace) -> None:  # noqa: ANN401
    async with manager as value:
        trace.append(value)
        if "LookupError" in script:
            raise LookupError("in the block")
        if "ZeroDivisionError" in script:
            raise ZeroDivisionError("in the block")
    trace.append("after the block")


async def use(
    layer: Layer | None, kind: str, script: list[str], call: tuple[tuple[object, ...], dict[str, object]]
) -> Trace:
    """Make a call of this kind through the layer, or without one; return all that could be seen of it."""
    callee = Callee("error" if "error" in script else "ok")
    args, kwargs = call
    decorate: Callable[[Any], Any] = layer if layer is not None else lambda func: func
    trace = callee.trace
    try:
        match kind:
            case "async def":
                trace.append(await decorate(callee.call)(*args, **kwargs))
            case "single call" if layer is not None:
                trace.append(await layer.call(callee.call, *args, **kwargs))
            case "single call":
                trace.append(await callee.call(*args, **kwargs))
            case "plain def":
                trace.append(decorate(callee.plain)(*args, **kwargs))
            case "stream":
                await _use_stream(decorate(callee.stream)(*args, **kwargs), script, trace)
            case "single manager" if layer is not None:
                await _use_manager(layer.around(callee.manager, *args, **kwargs), script, trace)
            case _:
                await _use_manager(decorate(callee.manager)(*args, **kwargs), script, trace)
    except Exception as error:  # noqa: BLE001 - it is the trace
        trace.append(repr(error))
    return trace


names = st.sampled_from(["func", "self", "args", "kwargs", "call_next", "layer", "permit", "key", "x"])
calls = st.tuples(
    st.lists(st.integers(0, 9), max_size=3).map(tuple), st.dictionaries(names, st.integers(0, 9), max_size=3)
)
scripts = st.lists(
    st.sampled_from(["next", "one", "two", "stop", "error", "LookupError", "ZeroDivisionError", "close"]), max_size=5
)


def law_of_transparency(
    make: Callable[[str, Clock], Layer], refused: frozenset[str], backend: str
) -> Callable[[], None]:
    """PO1: with the layer and without it all is the same, from the arguments to the last step; or it is refused."""

    @given(st.sampled_from(KINDS), scripts, calls)
    def law(kind: str, script: list[str], call: tuple[tuple[object, ...], dict[str, object]]) -> None:
        async def main() -> None:
            layer = make(kind, ManualClock())
            if kind in refused:
                assert _refuses(layer, kind)
                return
            assert await use(layer, kind, script, call) == await use(None, kind, script, call)

        run(backend, main)

    return law


def _refuses(layer: Layer, kind: str) -> bool:
    """Tell whether a callable is a TypeError as soon as it is decorated."""
    callee = Callee("ok")
    try:
        match kind:
            case "plain def":
                layer(callee.plain)
            case "stream":
                layer(callee.stream)
            case "manager":
                layer(callee.manager)
            case _:
                layer.around(callee.manager)
    except TypeError:
        return True
    return False


@both_loops
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_that_has_nothing_to_say_is_not_there(layer: str, backend: str) -> None:
    """PO1: every layer, on callables of every kind."""
    hypothesis.settings(deadline=None)(law_of_transparency(*LAYERS[layer], backend))()


class _Passing(Strategy):
    """What mutants derive from: passes everything on."""

    def wrap(self, call_next: Runner) -> Runner:
        return call_next

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        return relaying(lambda *call: Relay(functools.partial(call_next, *call)))


class _WithoutNames(_Passing):
    """A mutant: passes no arguments by name."""

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], _: dict[str, Any]) -> Any:  # noqa: ANN401
            return await call_next(func, args, {})

        return run


class _Soft(_Passing):
    """A mutant: makes None of an exception."""

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                return await call_next(func, args, kwargs)
            except LookupError:
                return None

        return run


class _OneWay(_Passing):
    """A mutant: what is sent into a stream does not arrive."""

    class _Relay(Relay):
        async def step(self, _: object, thrown: BaseException | None) -> Any:  # noqa: ANN401
            return await super().step(None, thrown)

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        return relaying(lambda *call: self._Relay(functools.partial(call_next, *call)))


class _Loud(_Passing):
    """A mutant: tells the stream that there was an error, where it is only closed."""

    class _Relay(Relay):
        async def close(self) -> None:
            with suppress(Exception, StopAsyncIteration):
                await self.step(None, LookupError("closed"))
            await super().close()

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        return relaying(lambda *call: self._Relay(functools.partial(call_next, *call)))


class _Careless(_Passing):
    """A mutant: takes a plain function, and lets it run outside of itself."""

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


@both_loops
@pytest.mark.parametrize("mutant", [_WithoutNames, _Soft, _OneWay, _Loud, _Careless])
def test_law_of_transparency_catches_mutants(mutant: type[_Passing], backend: str) -> None:
    """What gets lost on its way in or out is seen, and so is a callable that should have been refused."""
    assert_caught(law_of_transparency(lambda *_: mutant(), NO_PLAIN, backend))
