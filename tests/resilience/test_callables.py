"""Callables of every kind: what is decorated stays what it was and is guarded whole, or it is refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import anyio
import anyio.lowlevel
import pytest

from resilience import (
    CircuitBreaker,
    Deadline,
    Fallback,
    Hedge,
    Policy,
    Retry,
    Timeout,
)
from resilience.testing import ManualClock
from tests.resilience.layers import LAYERS, Again, Callee, Log, Noting, OnlyCalls, every_layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from resilience.fusing import Runner

every_loop = pytest.mark.anyio


async def double(number: int, *, plus: int = 0) -> int:
    """Double a number."""
    await anyio.lowlevel.checkpoint()
    return 2 * number + plus


def double_plainly(number: int, *, plus: int = 0) -> int:
    """Double a number."""
    return 2 * number + plus


async def doubles(number: int, *, plus: int = 0) -> AsyncIterator[int]:
    """Double a number, for ever."""
    while True:
        number = 2 * number + plus
        yield number


class Doubler:
    """Methods and calls of every kind."""

    def __init__(self, plus: int = 0) -> None:
        self.plus = plus

    async def method(self, number: int) -> int:
        """Double."""
        return 2 * number + self.plus

    async def __call__(self, number: int) -> int:
        """Double."""
        return 2 * number + self.plus


class PlainDoubler:
    """A callable object."""

    def __call__(self, number: int) -> int:
        """Double."""
        return 2 * number


class StreamingDoubler:
    """A callable object whose calls are streams."""

    async def __call__(self, number: int) -> AsyncIterator[int]:
        """Double."""
        yield 2 * number


class Thing(Awaitable[str]):
    """Something that can be awaited, and is no coroutine."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return "awaited"


# -- what is decorated stays what it was ----------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("func", [double, double_plainly, doubles], ids=lambda func: func.__name__)
def test_decorated_function_looks_like_itself(layer: str, func: Callable[..., object]) -> None:
    """Its name, docstring, signature and kind are those of the original, which is at hand too."""
    decorated = LAYERS[layer]()(func)
    assert decorated is not func
    assert (decorated.__name__, decorated.__doc__) == (func.__name__, func.__doc__)
    assert inspect.signature(decorated) == inspect.signature(func)
    assert inspect.unwrap(decorated) is func
    for is_of_kind in (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction):
        assert is_of_kind(decorated) == is_of_kind(func)


@every_layer
@every_loop
async def test_arguments_and_results_go_through(layer: str) -> None:
    """By position and by name, decorated and called once, async and plain, twice over."""
    around = LAYERS[layer]()
    assert await around(double)(3, plus=1) == 7
    assert await around.call(double, 3, plus=1) == 7
    assert around(double_plainly)(3, plus=1) == 7
    assert [item async for item in around(StreamingDoubler())(3)] == [6]
    outer = LAYERS[layer]()
    assert await outer(around(double))(3, plus=1) == 7
    assert outer(around(double_plainly))(3, plus=1) == 7


@every_loop
async def test_arguments_may_have_any_name() -> None:
    """Even those that a runner's own arguments have."""

    async def named(self: int, func: int, args: int, *, kwargs: int, call_next: int) -> tuple[int, ...]:
        return self, func, args, kwargs, call_next

    given = {"self": 1, "func": 2, "args": 3, "kwargs": 4, "call_next": 5}
    for around in (Timeout(9.0), Deadline(9.0), Retry(2), Fallback(None), Hedge(9.0), Noting([]), Again([])):
        assert await around(named)(**given) == (1, 2, 3, 4, 5)


def test_no_frame_stands_between_the_layers_of_a_decorated_function() -> None:
    """Neighbouring guards share one, each strategy has one, and the function's own is the next."""

    async def suspended() -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        decorated = Policy(Timeout(9.0), Retry(2), Noting([]), Noting([]))(suspended)
        call: Any = decorated()
        async with anyio.create_task_group() as group:
            group.start_soon(_awaiting, call)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            frames = []
            while call.cr_code is not suspended.__code__:
                frames.append(call.cr_code)
                call = call.cr_await
            assert len(frames) == 3
            group.cancel_scope.cancel()

    anyio.run(main)


async def _awaiting(call: Awaitable[object]) -> None:
    await call


@every_loop
async def test_no_stream_stands_between_the_layers_of_a_decorated_stream() -> None:
    """Neighbouring guards share one, each strategy has one, and the function's own is the next."""

    async def stream() -> AsyncIterator[int]:
        frame = inspect.currentframe()
        around = []
        while frame is not None:
            if frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
                around.append(frame)
            frame = frame.f_back
        yield len(around)

    assert [item async for item in stream()] == [1]
    decorated = Policy(Timeout(9.0), Retry(2), Noting([]), Noting([]))(stream)
    assert [item async for item in decorated()] == [4]


@every_loop
async def test_a_strategy_that_is_derived_from_may_look_at_the_call() -> None:
    """What the original promises about its runners does not bind those that override them."""

    class Looking(Retry):
        """A Retry that notes what it runs."""

        def wrap(self, call_next: Runner) -> Runner:
            inner = super().wrap(call_next)

            async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
                seen.append((func, args, kwargs))
                return await inner(func, args, kwargs)

            return run

    seen: list[object] = []
    assert await Policy(Fallback(None), Looking(2), Noting([]))(double)(3, plus=1) == 7
    assert seen == [(double, (3,), {"plus": 1})]


def test_decorated_twice_a_function_holds_the_outer_layer() -> None:
    """The inner function holds the inner one."""
    inner, outer = Noting([]), Noting([])
    once = inner(double)
    twice = outer(once)
    assert vars(once)["__layer__"] is inner
    assert vars(twice)["__layer__"] is outer


@every_layer
@every_loop
async def test_every_kind_of_async_callable_is_guarded(layer: str) -> None:
    """Bound methods, partials, partials of partials, callable objects and mocks."""
    around = LAYERS[layer]()
    doubler = Doubler(1)
    # Python makes one partial of two, unless the inner one has attributes of its own.
    noted = partial(doubler)
    noted.note = "noted"  # type: ignore[attr-defined]
    for func in (
        doubler.method,
        doubler,
        partial(double, plus=1),
        partial(partial(double), plus=1),
        partial(noted),
        partial(doubler),
        partial(Doubler.method, doubler),
        AsyncMock(return_value=7),
    ):
        decorated: Any = around(func)
        assert inspect.iscoroutinefunction(decorated)
        assert await decorated(3) == 7
        assert await around.call(func, 3) == 7


@every_layer
def test_every_kind_of_plain_callable_is_guarded(layer: str) -> None:
    """Callable objects, partials, builtins, bound methods of them, cached functions and mocks."""
    around = LAYERS[layer]()
    for func in (
        PlainDoubler(),
        partial(double_plainly, plus=0),
        partial(PlainDoubler()),
        PlainDoubler().__call__,
        functools.lru_cache(double_plainly),
        (3).__add__,
        Mock(return_value=6),
        partial(int, "6"),
    ):
        decorated: Any = around(func)
        assert not inspect.iscoroutinefunction(decorated)
        assert decorated(*[3] * (getattr(func, "func", None) is not int)) == 6


@every_loop
async def test_methods_are_decorated_in_the_class_body() -> None:
    """Each instance's calls go through the one layer; it stands below @staticmethod and @classmethod."""
    log: Log = []
    guard = Noting(log)

    class Client:
        base = 10

        def __init__(self, plus: int) -> None:
            self.plus = plus

        @guard
        async def fetch(self, number: int) -> int:
            return number + self.plus

        @guard
        def fetch_plainly(self, number: int) -> int:
            return number + self.plus

        @guard
        async def stream(self, number: int) -> AsyncIterator[int]:
            yield number + self.plus

        @staticmethod
        @guard
        async def static(number: int) -> int:
            return number

        @classmethod
        @guard
        async def of_class(cls, number: int) -> int:
            return cls.base + number

    client = Client(5)
    assert await client.fetch(1) == 6
    assert client.fetch_plainly(1) == 6
    assert [item async for item in client.stream(1)] == [6]
    assert await Client.static(1) == 1
    assert await Client.of_class(1) == await client.of_class(1) == 11
    assert [what for _, what in log if what == "admitted"] == ["admitted"] * 6
    assert guard.out == 0


# -- what cannot be guarded is refused ------------------------------------------------------------------------------


def _generator() -> Iterator[int]:
    yield 1


class _Generating:
    def __call__(self) -> Iterator[int]:
        yield 1


@contextmanager
def _plain_manager() -> Iterator[int]:
    yield 1


@functools.wraps(double)
def _hidden(number: int) -> Awaitable[int]:
    return double(number)


@functools.wraps(doubles)
def _hidden_stream(number: int) -> AsyncIterator[int]:
    return doubles(number)


REFUSED: dict[str, tuple[Any, str]] = {
    "class": (Doubler, "a class is not a call"),
    "staticmethod": (staticmethod(double), "put the layer below @staticmethod or @classmethod"),
    "classmethod": (classmethod(Doubler.method), "put the layer below @staticmethod or @classmethod"),  # type: ignore[arg-type]
    "generator": (_generator, "a plain generator would run outside of it"),
    "partial-of-a-generator": (partial(_generator), "a plain generator would run outside of it"),
    "generating-object": (_Generating(), "a plain generator would run outside of it"),
    "context-manager": (_plain_manager, "its block would run outside of it"),
    "partial-of-a-context-manager": (partial(_plain_manager), "its block would run outside of it"),
    "wrapped-async-function": (_hidden, "it wraps an async function in a plain one"),
    "cached-async-function": (functools.cache(double), "it wraps an async function in a plain one"),
    "wrapped-stream": (_hidden_stream, "its block would run outside of it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_run_outside_of_the_layer_is_refused(kind: str) -> None:
    """PO1: it is a TypeError when it is decorated, which says what to do instead; never silently unprotected."""
    func, why = REFUSED[kind]
    with pytest.raises(TypeError, match=r"^Noting cannot guard ") as caught:
        Noting([])(func)
    assert repr(func) in str(caught.value)
    assert why in str(caught.value)


def test_only_callables_are_decorated() -> None:
    """Anything else is a TypeError that names the layer."""
    with pytest.raises(TypeError, match=r"^Policy can only decorate a callable, not 3$"):
        Policy()(3)  # type: ignore[arg-type]


def test_strategy_that_cannot_guard_a_kind_refuses_it() -> None:
    """One layer of a policy that cannot is enough, wherever it stands."""
    for layer in (OnlyCalls(), Policy(Noting([]), OnlyCalls(), Again([]))):
        name = type(layer).__name__
        with pytest.raises(
            TypeError, match=rf"^{name} cannot guard the plain function .*: it could not be stopped; ma"
        ):
            layer(double_plainly)
        with pytest.raises(TypeError, match=rf"^{name} cannot guard the async generator <function doubles at"):
            layer(doubles)
    with pytest.raises(TypeError, match=r"^Timeout cannot guard the plain function"):
        Policy(Noting([]), Timeout(1.0)).layers[1](double_plainly)


@every_loop
async def test_plain_function_that_returns_what_runs_later_is_refused() -> None:
    """A coroutine, stream or manager would run outside of every layer: it is a TypeError when it comes out."""
    for later in (partial(double, 1), partial(doubles, 1), Callee([]).manager, Thing):
        guard = Noting([])
        decorated = guard(lambda later=later: later())
        with pytest.raises(TypeError, match=r"is a plain function that returned .*: make it async, so that all of it"):
            decorated()
        assert guard.out == 0


@every_layer
@every_loop
async def test_single_call_takes_whatever_can_be_awaited(layer: str) -> None:
    """Also what a plain function returns at once; a stream or a manager would run outside of it, and is refused."""
    around = LAYERS[layer]()
    assert await around.call(Thing) == "awaited"
    assert await around.call(double_plainly, 3) == 6  # type: ignore[arg-type]
    for func in (doubles, Callee([]).manager):
        with pytest.raises(
            TypeError, match=r"returned .*, which would run outside of the call: decorate it, or use `ar"
        ):
            await around.call(func, *[1] * (func is doubles))  # type: ignore[arg-type]


@every_layer
@every_loop
async def test_single_call_begins_when_it_is_awaited(layer: str) -> None:
    """Not before, whatever the layers are."""
    log: Log = []
    waiting = LAYERS[layer]().call(Callee(log).call)
    assert not log
    assert await waiting == "ok"


# -- streams --------------------------------------------------------------------------------------------------------


async def _echo() -> AsyncIterator[object]:
    """Yield what is sent or thrown, until it is told to stop; be a generator that minds both."""
    received: object = "begun"
    while received != "stop":
        try:
            received = yield received
        except LookupError as error:
            received = error
        finally:
            _ended.append("step")
    _ended.append("end")


_ended: list[str] = []


@every_layer
@every_loop
async def test_streams_are_sent_to_and_thrown_into(layer: str) -> None:
    """`asend`, `athrow` and the end go through as if there were no layer, and an exception as the object it is."""
    stream: Any = LAYERS[layer]()(_echo)()
    _ended.clear()
    assert await anext(stream) == "begun"
    assert await stream.asend("sent") == "sent"
    error = LookupError()
    assert await stream.athrow(error) is error
    assert await anext(stream) is None
    with pytest.raises(StopAsyncIteration):
        await stream.asend("stop")
    assert _ended == ["step"] * 4 + ["end"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@every_layer
@every_loop
async def test_stream_that_is_closed_is_closed_inside(layer: str) -> None:
    """`aclose` reaches the callee at once, whether it has begun or not; what is thrown and not caught comes out."""
    for begun in (True, False):
        stream: Any = LAYERS[layer]()(_echo)()
        _ended.clear()
        if begun:
            await anext(stream)
        await stream.aclose()
        assert _ended == ["step"] * begun
    stream = LAYERS[layer]()(_echo)()
    await anext(stream)
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        await stream.athrow(error)
    assert caught.value is error


@every_loop
async def test_whole_stream_is_one_call() -> None:
    """Admitted with the first step, renewed with each item, settled at the end: by how it ends, or as cancelled."""
    for last, verdict in (("stop", "success"), (None, "cancelled"), (KeyError(), "failure"), (OSError(), "failure")):
        log: Log = []
        guard = Noting(log)
        stream: Any = guard(_echo)()
        assert not log
        await anext(stream)
        await stream.asend("again")
        if last is None:
            await stream.aclose()
        elif isinstance(last, KeyError):
            # The stream catches it and goes on; it fails with the next one.
            await stream.athrow(last)
            with pytest.raises(ZeroDivisionError):
                await stream.athrow(ZeroDivisionError())
        elif isinstance(last, OSError):
            with pytest.raises(OSError, match=r"^$"):
                await stream.athrow(last)
        else:
            with pytest.raises(StopAsyncIteration):
                await stream.asend(last)
        renewals = 3 if isinstance(last, KeyError) else 2
        assert [what for _, what in log] == ["admitted", *["renewed"] * renewals, verdict]


@every_loop
async def test_stream_that_gives_items_keeps_its_probe() -> None:
    """CB2: the lease of a half-open breaker's probe begins anew with each item; with none it expires."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, probe_timeout=5.0, clock=clock)
    failed = breaker.try_admit()
    assert failed is not None
    failed.failure()
    clock.advance(10.0)
    stream: Any = breaker(_echo)()
    await anext(stream)
    for _ in range(5):
        clock.advance(4.0)
        assert breaker.state == "half_open"
        await anext(stream)
    clock.advance(5.0)
    assert breaker.state == "open"
    await stream.aclose()
