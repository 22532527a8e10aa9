"""Chaos: switched, changed and shared while calls are made (CH8 to CH10). The laws are listed in `chaotic`."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.testing import Chaos
from tests.resilience.chaotic import (
    FORMS,
    FaultError,
    Kind,
    Recipe,
    Run,
    Trace,
    alike,
    both_backends,
    endings,
    ends,
    plain_trace,
    recipes,
    trace_of,
    work_plainly,
)
from tests.resilience.support import Door, assert_caught, heavy, in_thread
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import Clock
    from resilience.fusing import Runner

# -- CH8: off is off ------------------------------------------------------------------------------------------------


def law_of_the_switch(kind: Kind, world: World) -> Callable[[], None]:
    """CH8: calls that come while it is disabled are left alone, and take the lots of none that come later."""

    @given(recipes(), st.lists(st.booleans(), min_size=1, max_size=16), st.sampled_from(FORMS))
    def law(recipe: Recipe, switches: list[bool], form: str) -> None:
        async def main(clock: Clock) -> tuple[Trace, Trace, Chaos]:
            chaos = recipe.make(kind, form, clock)
            run = Run(chaos, form, clock)
            traces: dict[bool, Trace] = {True: [], False: []}
            for enabled in switches:
                with chaos.enable() if enabled else chaos.disable():
                    traces[enabled].append(await run.ends())
            return traces[True], traces[False], chaos

        harmed, spared, chaos = world.run(main)
        assert alike(harmed, trace_of(recipe, Chaos, form, world, len(harmed)))
        assert alike(spared, [(0.0, "own")] * len(spared))
        assert chaos.statistics().calls == len(harmed)

    return law


@every_world
def test_off_is_off(world: World) -> None:
    """Nothing is injected, counted or drawn."""
    heavy(law_of_the_switch(Chaos, world))()


class _Restless(Chaos):
    """A mutant: draws for every call, and then may not use it."""

    __slots__ = ()

    def wrap(self, call_next: Runner) -> Runner:
        inner = super().wrap(call_next)

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            if not self._enabled:
                self._random.random()
            return await inner(func, args, kwargs)

        return run


class _Stubborn(Chaos):
    """A mutant: once it is on, it stays on."""

    __slots__ = ()

    def disable(self) -> Any:  # noqa: ANN401 - of the real thing's type
        return self.enable()


@pytest.mark.parametrize("mutant", [_Restless, _Stubborn])
@both_backends
def test_law_of_the_switch_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """One that goes on in secret, or openly, is seen."""
    assert_caught(law_of_the_switch(mutant, world))


# -- CH9: updates ---------------------------------------------------------------------------------------------------

CHANGES: dict[str, st.SearchStrategy[object]] = {
    "latency": st.sampled_from([0.5, (1.0, 2.0), (2.0, 1.0), "soon"]),
    "latency_rate": st.sampled_from([0.0, 0.5, 1.5]),
    "fault": st.sampled_from([FaultError, ValueError, FaultError("shared")]),
    "fault_rate": st.sampled_from([0.0, 0.25, 0.75, -1.0]),
    "result": st.sampled_from([1, "two"]),
    "result_rate": st.sampled_from([0.0, 0.25, 0.5]),
    "hang_rate": st.sampled_from([0.25, 0.5, True]),
}


def _accepts(changed: dict[str, Any]) -> bool:
    """Tell whether a Chaos could be made so."""
    try:
        Chaos(**changed)
    except ValueError:
        return False
    return True


def law_of_updates(kind: Kind) -> Callable[[], None]:
    """CH9: an update that a new Chaos would refuse changes nothing; any other leaves what a new one would have."""

    @given(st.lists(st.fixed_dictionaries({}, optional=CHANGES), min_size=1, max_size=8))
    def law(updates: list[dict[str, Any]]) -> None:
        chaos = kind()
        model: dict[str, object] = {}
        for changes in updates:
            if _accepts({**model, **changes}):
                model.update(changes)
                chaos.update(**changes)
            else:
                with pytest.raises(ValueError, match=" must be "):
                    chaos.update(**changes)
            assert chaos.settings() == Chaos(**model).settings()  # type: ignore[arg-type]

    return law


def test_an_update_changes_everything_or_nothing() -> None:
    """In any order, good ones and bad ones."""
    law_of_updates(Chaos)()


class _Piecemeal(Chaos):
    """A mutant: takes one change after the other."""

    __slots__ = ()

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - handed on
        for name, value in changes.items():
            super().update(**{name: value})


def test_law_of_updates_catches_mutants() -> None:
    """One that stops half way is seen."""
    assert_caught(law_of_updates(_Piecemeal))


# -- CH10: threads --------------------------------------------------------------------------------------------------


class Turnstile(random.Random):
    """Lets another thread come in the middle of a lot, if anything lets it draw there."""

    def __init__(self, other: Callable[[], None]) -> None:
        super().__init__(1)
        self._other = other
        self.drawn: list[int] = []

    def random(self) -> float:
        """Note who draws."""
        self.drawn.append(threading.get_ident())
        if len(self.drawn) == 2:
            self._other()
        return super().random()


def law_of_whole_lots(*, locks: bool = True) -> None:
    """CH10: what one call draws is drawn together, though another thread is about to draw as well."""
    stopped_or_done = threading.Event()
    threads: list[threading.Thread] = []

    def call() -> None:
        guarded()
        stopped_or_done.set()

    def another() -> None:
        threads.append(threading.Thread(target=call))
        threads[0].start()
        stopped_or_done.wait()

    dice = Turnstile(another)
    chaos = Chaos(random=dice)
    guarded = chaos(work_plainly)
    chaos._lock = Door(stopped_or_done, locks=locks)  # type: ignore[assignment]
    guarded()
    threads[0].join()
    assert chaos.statistics().calls == 2
    assert len(dice.drawn) == 6
    assert dice.drawn == [dice.drawn[0]] * 3 + [dice.drawn[-1]] * 3


def test_lots_are_drawn_whole() -> None:
    """One without a lock is seen."""
    law_of_whole_lots()
    assert_caught(partial(law_of_whole_lots, locks=False))


def test_threads_share_the_lots_of_one_seed() -> None:
    """Of so many calls as many go wrong as of one thread's, whichever they are."""
    recipe = Recipe(seed=11, faults=3, results=2)
    alone = Counter(endings(plain_trace(recipe, Chaos, 400)))
    chaos = recipe.make(Chaos, "plain", None)
    guarded = chaos(work_plainly)
    start = threading.Barrier(4)
    found: list[list[str]] = []

    def calls() -> None:
        start.wait()
        found.append([ends(guarded) for _ in range(100)])

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(itertools.chain.from_iterable(found)) == alone
    statistics = chaos.statistics()
    assert (statistics.calls, statistics.faults, statistics.results) == (400, alone["fault"], alone["result"])


def test_another_thread_may_switch_it() -> None:
    """What one thread sets holds for the next call of any other."""
    chaos = Chaos(result="result")
    guarded = chaos(work_plainly)
    in_thread(chaos.disable)
    assert guarded() == "own"
    in_thread(chaos.enable)
    assert guarded() == "result"
