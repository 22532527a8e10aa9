"""Layers as a user might write them, which note down what happens to them; and calls of every kind to put into them."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio.lowlevel
import pytest

from resilience import Guard, NotUntil, Permit, Policy, RejectedError, Retry, Strategy
from resilience.streaming import Relay, relaying
from resilience.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

    from resilience import Clock, Layer, Verdict
    from resilience.fusing import BlockingRunner, Runner
    from resilience.streaming import StreamRunner

Log: TypeAlias = "list[tuple[str, str]]"

#: The kinds of call that need an event loop; "call" and "around" are the forms for a single one.
ASYNC_FORMS = ("call", "async def", "stream", "manager", "around")


class Noting(Guard):
    """A guard that refuses the admissions whose numbers it is given, and notes every question and every answer."""

    def __init__(self, log: Log, name: str = "guard", refused: Iterable[int] = ()) -> None:
        super().__init__(name)
        self.clock: Clock = ManualClock()
        self.log = log
        self.refused = frozenset(refused)
        self.asked = 0
        self.out = 0

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil:  # noqa: ARG002 - a call is a call
        """Admit, unless it is this one's turn to be refused."""
        with self._section:
            admitted = self.asked not in self.refused
            self.asked += 1
            self.out += admitted
        self.log.append((self.name, "admitted" if admitted else "refused"))
        return Permit(self) if admitted else NotUntil(None)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Note the verdict that settles the permit."""
        with self._section:
            if not permit.use_up():
                return
            self.out -= 1
        self.log.append((self.name, verdict.value))

    def renew(self, permit: Permit) -> None:
        """Note the sign of life."""
        assert not permit.settled
        self.log.append((self.name, "renewed"))


class Deaf(Noting):
    """One that does not mind successes."""

    hears_success = False


class Again(Strategy):
    """A strategy that runs a call, but no stream, a second time if it raises."""

    def __init__(self, log: Log, name: str = "again") -> None:
        self.log = log
        self.name = name

    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner of up to two calls."""

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            self.log.append((self.name, "begins"))
            try:
                try:
                    return await call_next(func, args, kwargs)
                except Exception:  # noqa: BLE001 - whatever it is
                    self.log.append((self.name, "again"))
                    return await call_next(func, args, kwargs)
            finally:
                self.log.append((self.name, "ends"))

        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions."""

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            self.log.append((self.name, "begins"))
            try:
                try:
                    return call_next(func, args, kwargs)
                except Exception:  # noqa: BLE001
                    self.log.append((self.name, "again"))
                    return call_next(func, args, kwargs)
            finally:
                self.log.append((self.name, "ends"))

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return a stream that is passed on, once."""

        def begin(*call: Any) -> Relay:  # noqa: ANN401 - a function, its arguments and its keywords
            self.log.append((self.name, "begins"))
            return _Noted(self, functools.partial(call_next, *call))

        return relaying(begin)


class OnlyCalls(Strategy):
    """A strategy whose user has thought of `async def` only."""

    def wrap(self, call_next: Runner) -> Runner:
        """Let calls pass."""
        return call_next


class _Noted(Relay):
    """A stream that is passed on, once; its end is noted before it is closed."""

    def __init__(self, again: Again, open_inner: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        super().__init__(open_inner)
        self.again = again

    async def close(self) -> None:
        """Note the end."""
        self.again.log.append((self.again.name, "ends"))
        await super().close()


class Callee:
    """What is called: it ends each time as the script says, with "ok" once that has come to its end."""

    def __init__(self, log: Log, script: Iterable[str] = ()) -> None:
        self.log = log
        self.script = iter(script)
        self.calls = 0

    def end(self) -> str:
        """End as it is written."""
        self.calls += 1
        outcome = next(self.script, "ok")
        self.log.append(("callee", outcome))
        if outcome == "error":
            raise LookupError(outcome)
        if outcome == "rejected":
            raise RejectedError("another guard")
        return outcome

    async def call(self) -> str:
        """Be an `async def`."""
        await anyio.lowlevel.checkpoint()
        return self.end()

    async def stream(self) -> AsyncIterator[str]:
        """Be an async generator of one item."""
        yield "item"
        self.end()

    @asynccontextmanager
    async def manager(self) -> AsyncIterator[str]:
        """Be an async context manager."""
        yield "item"
        self.end()


async def go_through(layer: Layer, form: str, callee: Callee) -> str:
    """Make a call of that form; return how it ended."""
    try:
        if form == "call":
            return await layer.call(callee.call)
        if form == "async def":
            return await layer(callee.call)()
        if form == "stream":
            assert [item async for item in layer(callee.stream)()] == ["item"]
        else:
            manager = layer.around(callee.manager) if form == "around" else layer(callee.manager)()
            async with manager as item:
                assert item == "item"
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return _outcome(error)
    return "ok"


def go_through_plainly(layer: Layer, callee: Callee) -> str:
    """Do the same with a plain `def`."""
    try:
        return layer(callee.end)()
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return _outcome(error)


def _outcome(error: Exception) -> str:
    return {LookupError: "error", RejectedError: "rejected"}[type(error)]


#: Layers of every kind, by name.
LAYERS: dict[str, Callable[[], Layer]] = {
    "guard": lambda: Noting([]),
    "strategy": lambda: Again([]),
    "both": lambda: Policy(Again([]), Noting([]), Noting([])),
    "nothing": Policy,
    "passing on": lambda: Policy(Retry(1), Noting([]), Noting([])),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)
