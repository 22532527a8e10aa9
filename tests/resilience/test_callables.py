"""Callables of every kind: what is decorated stays what it was and is guarded whole, or it is refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import anyio
import anyio.lowlevel
import pytest

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    ConstantBackoff,
    Deadline,
    Fallback,
    Hedge,
    Policy,
    Retry,
    Strategy,
    Timeout,
    TimeoutExceededError,
)
from resilience.testing import ManualClock
from tests.resilience.layers import Again, Callee, Log, Noting
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator

    from resilience import Clock, Layer
    from resilience.fusing import Runner

every_loop = pytest.mark.anyio


class OnlyCalls(Strategy):
    """A strategy whose user has thought of `async def` only."""

    def wrap(self, call_next: Runner) -> Runner:
        """Let calls pass."""
        return call_next


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


LAYERS: dict[str, Callable[[], Layer]] = {
    "guard": lambda: Noting([]),
    "strategy": lambda: Again([]),
    "both": lambda: Policy(Again([]), Noting([]), Noting([])),
    "nothing": Policy,
    "passing on": lambda: Policy(Retry(1), Noting([]), Noting([])),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


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


# -- async context managers -----------------------------------------------------------------------------------------


class Connection:
    """An async context manager, as a class makes them; it may fail to open, and may swallow what its block raises."""

    def __init__(self, log: Log, *, failures: Iterable[bool] = (), swallows: bool = False) -> None:
        self.log = log
        self.failures = iter(failures)
        self.swallows = swallows

    async def __aenter__(self) -> str:
        await anyio.lowlevel.checkpoint()
        if next(self.failures, False):
            self.log.append(("connection", "fails"))
            raise ConnectionError
        self.log.append(("connection", "opens"))
        return "connected"

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.log.append(("connection", "closes"))
        return self.swallows


@asynccontextmanager
async def connect(log: Log, **options: Any) -> AsyncIterator[str]:  # noqa: ANN401 - passed on
    """Make the same with a decorator."""
    async with Connection(log, **options) as state:
        yield state


class Pool:
    """A method that makes managers."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[str]:
        """Open a connection."""
        async with Connection(self.log) as state:
            yield state


class Connecting:
    """A callable object that makes managers."""

    @asynccontextmanager
    async def __call__(self, log: Log) -> AsyncIterator[str]:
        """Open a connection."""
        async with Connection(log) as state:
            yield state


@functools.wraps(connect)
def connect_with_a_wrapper(log: Log) -> Any:  # noqa: ANN401 - what `connect` returns
    """Be wrapped once more."""
    return connect(log)


@every_layer
@every_loop
async def test_every_maker_of_managers_is_guarded(layer: str) -> None:
    """Functions, methods, partials, callable objects, wrapped and guarded ones; classes and the like by `around`."""
    around = LAYERS[layer]()
    log: Log = []
    makers: list[Any] = [connect, Connecting(), partial(connect), connect_with_a_wrapper, LAYERS[layer]()(connect)]
    for make in makers:
        async with around(make)(log) as state:
            assert state == "connected"
    pool = Pool(log)
    async with around(pool.connect)() as state:
        assert state == "connected"
    async with around.around(connect, log, swallows=True) as state:
        raise LookupError
    async with around.around(Connection, log, swallows=True) as state:
        raise LookupError
    assert log == [("connection", "opens"), ("connection", "closes")] * 8


@every_layer
def test_decorated_maker_looks_like_itself(layer: str) -> None:
    """Its name, docstring and signature are those of the original."""
    decorated = LAYERS[layer]()(connect)
    assert (decorated.__name__, decorated.__doc__) == ("connect", "Make the same with a decorator.")
    assert inspect.signature(decorated) == inspect.signature(connect)


@every_loop
async def test_manager_decorates_functions_too() -> None:
    """What `asynccontextmanager` makes is a decorator as well, and enters anew for each call."""
    log: Log = []

    @Noting(log)(connect)([])
    async def work() -> str:
        return "done"

    assert [await work(), await work()] == ["done", "done"]
    assert [what for _, what in log] == ["admitted", "renewed", "success"] * 2


@every_loop
async def test_manager_is_one_call_from_entering_to_leaving() -> None:
    """The permit is out while the block runs; how the block ends is how the call ends, unless the manager objects."""
    for error, swallows, verdict in (
        (None, False, "success"),
        (LookupError(), False, "failure"),
        (LookupError(), True, "success"),
        (KeyboardInterrupt(), False, "cancelled"),
        (StopAsyncIteration(), False, "failure"),
        (StopIteration(), False, "failure"),
    ):
        log: Log = []
        guard = Noting(log)
        manager = guard(connect)([], swallows=swallows)
        assert not log
        with nullcontext() if error is None or swallows else pytest.raises(type(error)) as caught:
            async with manager:
                assert guard.out == 1
                if error is not None:
                    raise error
        assert caught is None or caught.value is error
        assert log == [("guard", "admitted"), ("guard", "renewed"), ("guard", verdict)]


@every_loop
async def test_manager_that_is_refused_is_not_entered() -> None:
    """The refusal comes out of `async with`, and nothing was opened."""
    breaker = CircuitBreaker(1, clock=ManualClock())
    log: Log = []
    with pytest.raises(ConnectionError):
        async with breaker(connect)(log, failures=[True]):
            pytest.fail("it was not opened")
    with pytest.raises(CircuitOpenError):
        async with breaker.around(Connection, log):
            pytest.fail("it was refused")
    assert log == [("connection", "fails")]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_retry_enters_a_manager_again(backend: str) -> None:
    """It tries again to enter; once it has, the block and the leaving are run once, whatever comes."""

    async def main(clock: Clock) -> tuple[float, Log]:
        retry = Retry(3, backoff=ConstantBackoff(2.0), clock=clock)
        log: Log = []
        started_ns = clock.monotonic_ns()
        # One attempt, each with a connection of its own, takes what is left of them.
        failures = iter([True, True])

        async def use() -> None:
            async with retry.around(Connection, log, failures=failures) as state:
                log.append(("block", state))
                raise ConnectionError("in the block")

        with pytest.raises(ConnectionError, match=r"^in the block$"):
            await use()
        return (clock.monotonic_ns() - started_ns) / 10**9, log

    assert World(backend, "manual").run(main) == (
        4.0,
        [
            ("connection", "fails"),
            ("connection", "fails"),
            ("connection", "opens"),
            ("block", "connected"),
            ("connection", "closes"),
        ],
    )


@asynccontextmanager
async def _slow(clock: Clock, entering: float, leaving: float) -> AsyncIterator[None]:
    await clock.sleep(entering)
    yield
    await clock.sleep(leaving)


@pytest.mark.parametrize("times", [(4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 1.0, 4.0), (0.9, 0.9, 0.9)], ids=str)
@pytest.mark.parametrize("layer", [Timeout, Deadline])
@every_world
def test_timeout_ends_a_manager_wherever_it_is(
    world: World, layer: type[Timeout | Deadline], times: tuple[float, float, float]
) -> None:
    """PO3: the time is for entering, the block and leaving together; the block is stopped too, and then left."""
    entering, inside, leaving = times

    async def main(clock: Clock) -> float:
        started_ns = clock.monotonic_ns()
        guard = Noting([])
        policy = Policy(guard, layer(3.0, clock=clock))
        if sum(times) < 3.0:
            async with policy(_slow)(clock, entering, leaving):
                await clock.sleep(inside)
        else:
            with pytest.raises(TimeoutExceededError) as caught:
                async with policy.around(_slow, clock, entering, leaving):
                    await clock.sleep(inside)
            assert caught.value.seconds == 3.0
        assert guard.out == 0
        return (clock.monotonic_ns() - started_ns) / 10**9

    assert world.run(main) == pytest.approx(min(3.0, sum(times)), abs=1e-6)


@every_loop
async def test_timeout_leaves_the_block_s_own_timeout_error_alone() -> None:
    """What the block raises itself is not the layer's doing; and a Deadline that has passed lets nobody in."""
    clock = ManualClock()
    error = TimeoutError("its own")
    with pytest.raises(TimeoutError) as caught:
        async with Timeout(1.0, clock=clock)(connect)([]):
            raise error
    assert caught.value is error
    deadline = Deadline(1.0, clock=clock)
    clock.advance(1.0)
    log: Log = []
    with pytest.raises(TimeoutExceededError):
        async with deadline(connect)(log):
            pytest.fail("it is too late")
    assert not log


@every_loop
async def test_cancelled_block_is_left_and_cancelled() -> None:
    """PO5: a cancellation goes through the block and the manager; the permit is cancelled."""
    log: Log = []
    guard = Noting(log)
    with anyio.CancelScope() as scope:
        async with Policy(Timeout(9.0, clock=ManualClock()), guard, Retry(2))(connect)(log):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert log[-2:] == [("connection", "closes"), ("guard", "cancelled")]


def test_strategy_that_cannot_guard_managers_refuses_them() -> None:
    """At decoration, and when `around` is called; not when the manager is entered."""
    for layer in (OnlyCalls(), Policy(Noting([]), OnlyCalls())):
        name = type(layer).__name__
        with pytest.raises(TypeError, match=rf"^{name} cannot guard the async context manager <function connect at"):
            layer(connect)
        with pytest.raises(TypeError, match=rf"^{name} cannot guard the async context manager <class .*Connection'>$"):
            layer.around(Connection, [])


@every_loop
async def test_what_makes_no_manager_is_a_type_error() -> None:
    """When it is entered, since only then it is known; the permit comes back."""
    guard = Noting([])
    with pytest.raises(TypeError, match="async"):
        async with guard.around(double_plainly, 3):  # type: ignore[arg-type]
            pytest.fail("it cannot be entered")
    assert guard.out == 0
