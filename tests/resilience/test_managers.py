"""Async context managers: a block is one call, from its entering until it is left."""

from __future__ import annotations

import functools
import inspect
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    ConstantBackoff,
    Deadline,
    Policy,
    Retry,
    Timeout,
    TimeoutExceededError,
)
from resilience.testing import ManualClock
from tests.resilience.layers import LAYERS, Log, Noting, OnlyCalls, every_layer
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from resilience import Clock

every_loop = pytest.mark.anyio


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
        async with guard.around(abs, 3):  # type: ignore[arg-type]
            pytest.fail("it cannot be entered")
    assert guard.out == 0
