"""What the tests of Chaos share: callees, recipes, runs of calls and what becomes of them.

The laws, each tested with mutants that break it:

* CH1 One seed gives the same injections, for every kind of callable, in every event loop, on every clock.
* CH2 Each rate is exact, and a call ends in one way; whether it is late has nothing to do with how it ends.
* CH3 Changing one rate leaves what the others inject where it was; a greater one keeps what a smaller one injected.
* CH4 Callers, statistics and events tell the same, and the callee runs once if nothing took its place, else never.
* CH5 A fault is fresh: no two calls raise the same object.
* CH6 A hang ends by a cancellation and by nothing else, at that very instant, and permits come back.
* CH7 A latency is within its range, comes before the call, and a call that is cancelled during it has not gone wrong.
* CH8 A call that comes while it is disabled is left alone, and takes nobody's lot.
* CH9 An update changes everything it names, or nothing.
* CH10 A lot is drawn whole, whichever threads draw.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
from hypothesis import strategies as st

from resilience.testing import Chaos, ManualClock
from resilience.testing.injections import Settings
from tests.resilience.worlds import WORLDS, World, now

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

    from resilience import Layer
    from resilience.clock import Clock

#: Mutants are hunted on asyncio and on trio.
both_backends = pytest.mark.parametrize("world", WORLDS[::2], ids=lambda world: world.backend)

DAY = 86_400.0
Trace: TypeAlias = "list[tuple[float, str]]"


class FaultError(Exception):
    """What is injected."""


async def work() -> str:
    """Go its own way."""
    return "own"


def work_plainly() -> str:
    """Go its own way, in plain code."""
    return "own"


async def stream() -> AsyncIterator[str]:
    """Go its own way, item by item."""
    yield "own"


async def other_stream() -> AsyncIterator[str]:
    """Take the place of a stream."""
    yield "result"


manager = asynccontextmanager(stream)


def ends(func: Callable[[], str]) -> str:
    """Call it; return how it ended."""
    try:
        return func()
    except FaultError:
        return "fault"


FORMS = ("call", "stream", "manager")
Kind: TypeAlias = "Callable[..., Chaos]"


@attrs.frozen(kw_only=True)
class Recipe:
    """What a Chaos is made with; rates in tenths."""

    seed: int = 0
    latencies: int = 0
    hangs: int = 0
    faults: int = 0
    results: int = 0
    longest: int = 3

    def make(self, kind: Kind, form: str, clock: Clock | None, source: random.Random | None = None) -> Chaos:
        """Return the Chaos for one form of call."""
        return kind(
            latency=(1.0, float(self.longest)),
            latency_rate=self.latencies / 10,
            fault=FaultError,
            fault_rate=self.faults / 10,
            result=other_stream if form in ("stream", "manager") else "result",
            result_rate=self.results / 10,
            hang_rate=self.hangs / 10,
            clock=clock,
            random=self.seed if source is None else source,
        )


@st.composite
def recipes(draw: st.DrawFn, *, hangs: bool = True) -> Recipe:
    """Draw rates that are at most 1 together."""
    first, second, third = sorted(draw(st.lists(st.integers(0, 10), min_size=3, max_size=3)))
    return Recipe(
        seed=draw(st.integers(0, 2**32)),
        latencies=draw(st.integers(0, 10)),
        faults=first,
        results=second - first,
        hangs=third - second if hangs else 0,
        longest=draw(st.integers(1, 5)),
    )


class Run:
    """Calls in a row, and what became of each."""

    def __init__(self, layer: Layer, form: str, clock: Clock) -> None:
        self.layer = layer
        self.form = form
        self.clock = clock
        self.begun: list[float] = []

    async def ends(self) -> tuple[float, str]:
        """Make one call; return how long it was and how it ended. One that is not over after a day hangs."""
        started = now(self.clock)
        try:
            with self.clock.fail_after(DAY):
                ended = await self._call()
        except FaultError:
            ended = "fault"
        except TimeoutError:
            return DAY, "hang"
        return now(self.clock) - started, ended

    async def trace(self, calls: int) -> Trace:
        """Make so many calls."""
        return [await self.ends() for _ in range(calls)]

    def _own(self) -> str:
        self.begun.append(now(self.clock))
        return "own"

    async def _work(self) -> str:
        return self._own()

    async def _stream(self) -> AsyncIterator[str]:
        yield self._own()

    async def _call(self) -> str:
        if self.form == "call":
            return await self.layer.call(self._work)
        if self.form == "stream":
            (item,) = [item async for item in self.layer(self._stream)()]
            return item
        async with self.layer.around(asynccontextmanager(self._stream)) as item:
            return item


def trace_of(  # noqa: PLR0917 - a table has as many columns
    recipe: Recipe, kind: Kind, form: str, world: World, calls: int, source: random.Random | None = None
) -> Trace:
    """Return what becomes of so many calls in that world."""
    return world.run(lambda clock: Run(recipe.make(kind, form, clock, source), form, clock).trace(calls))


def plain_trace(recipe: Recipe, kind: Kind, calls: int) -> Trace:
    """Return the same for plain functions, which have no event loop, and a clock that they move themselves."""
    clock = ManualClock(autojump=True)
    guarded = recipe.make(kind, "plain", clock)(work_plainly)
    trace: Trace = []
    for _ in range(calls):
        started = now(clock)
        ended = ends(guarded)
        trace.append((now(clock) - started, ended))
    return trace


def alike(one: Trace, other: Trace) -> bool:
    """Tell whether two runs went the same way. Timers of event loops round up, each at its own grain."""
    return endings(one) == endings(other) and [waited for waited, _ in one] == pytest.approx(
        [waited for waited, _ in other], abs=1e-6
    )


def endings(trace: Trace) -> list[str]:
    """Return how the calls ended."""
    return [ended for _, ended in trace]


class Mutant(Chaos):
    """What mutants of the settings are made of."""

    __slots__ = ()

    settings_class: type[Settings] = Settings

    def __init__(self, **given_: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(**given_)
        fields = (field.name for field in attrs.fields(Settings) if field.init)
        self._settings = self.settings_class(**{name: getattr(self._settings, name) for name in fields})


def mutated(mutant: type[Settings]) -> type[Chaos]:
    """Return a Chaos that decides by these settings."""
    return type(mutant.__name__, (Mutant,), {"settings_class": mutant, "__slots__": ()})
