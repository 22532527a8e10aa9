"""Chaos: which calls are harmed (CH1 to CH3). The laws are listed in `chaotic`."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.testing import Chaos, ManualClock
from resilience.testing.injections import Ending, Settings
from tests.resilience.chaotic import (
    FORMS,
    Kind,
    Recipe,
    alike,
    both_backends,
    endings,
    mutated,
    plain_trace,
    recipes,
    trace_of,
)
from tests.resilience.support import assert_caught, heavy
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.fusing import BlockingRunner
    from resilience.streaming import StreamRunner
    from resilience.testing.injections import Lot

# -- CH1: the seed --------------------------------------------------------------------------------------------------


def law_of_the_seed(kind: Kind, world: World) -> Callable[[], None]:
    """CH1: one seed gives the same injections, whatever is called, wherever, whenever."""

    @given(recipes(hangs=False))
    def law(recipe: Recipe) -> None:
        plain = plain_trace(recipe, Chaos, 12)
        assert alike(plain_trace(recipe, kind, 12), plain)
        for form in FORMS:
            assert alike(trace_of(recipe, kind, form, world, 12), plain)
        hanging = attrs.evolve(recipe, hangs=10 - recipe.faults - recipe.results)
        traces = [trace_of(hanging, kind, form, world, 12) for form in FORMS]
        assert all(alike(trace, traces[0]) for trace in traces)
        assert "own" not in endings(traces[0])

    return law


@every_world
def test_one_seed_gives_the_same_injections(world: World) -> None:
    """In every event loop, on every clock, for async functions, streams, context managers and plain functions."""
    heavy(law_of_the_seed(Chaos, world))()


class _Unseeded(Chaos):
    """A mutant: goes by nobody's seed."""

    __slots__ = ()

    def __init__(self, *, random: random.Random | int | None = None, **given_: Any) -> None:  # noqa: ANN401, ARG002 - that is the fault
        super().__init__(**given_)


class _Streaming(Chaos):
    """A mutant: draws for a stream when it is made, and again when it begins."""

    __slots__ = ()

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        inner = super().wrap_stream(call_next)

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            self._draw()
            return inner(func, args, kwargs)

        return run


class _Punctual(Chaos):
    """A mutant: plain functions are never late."""

    __slots__ = ()

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        inner = super().wrap_blocking(call_next)

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            clock, self.clock = self.clock, ManualClock(autojump=True)
            try:
                return inner(func, args, kwargs)
            finally:
                self.clock = clock

        return run


@pytest.mark.parametrize("mutant", [_Unseeded, _Streaming, _Punctual])
@both_backends
def test_law_of_the_seed_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """Lots of its own, a lot too many and a latency that is not waited for are seen."""
    assert_caught(law_of_the_seed(mutant, world))


# -- CH2: the rates -------------------------------------------------------------------------------------------------


class Ruler(random.Random):
    """Instead of chance, every tenth for being late with every tenth for the ending: a hundred calls, all different."""

    def __init__(self) -> None:
        super().__init__()
        self._marks = itertools.cycle(
            mark for late, ending in itertools.product(range(10), range(10)) for mark in (late, 5, ending)
        )

    def random(self) -> float:
        """Return the middle of the next tenth."""
        return (next(self._marks) + 0.5) / 10


def law_of_the_rates(kind: Kind, world: World, form: str = "call") -> Callable[[], None]:
    """CH2: each rate is exact, and whether a call is late has nothing to do with how it ends."""

    @given(recipes())
    def law(recipe: Recipe) -> None:
        trace = trace_of(recipe, kind, form, world, 100, Ruler())
        own = 10 - recipe.hangs - recipe.faults - recipe.results
        shares = {"hang": recipe.hangs, "fault": recipe.faults, "result": recipe.results, "own": own}
        assert Counter(endings(trace)) == Counter({ended: share * 10 for ended, share in shares.items() if share})
        late = Counter(ended for waited, ended in trace if waited > 0 and ended != "hang")
        # The wait of one that hangs cannot be seen from outside.
        expected = {ended: share * recipe.latencies for ended, share in shares.items() if ended != "hang"}
        assert late == Counter({ended: count for ended, count in expected.items() if count})

    return law


@every_world
def test_rates_are_exact(world: World) -> None:
    """Where chance is spread evenly, the shares are the rates, to the call."""
    heavy(law_of_the_rates(Chaos, world))()


class _Independent(Settings):
    """A mutant: asks whether it hangs, then whether it fails, each by a coin of its own."""

    __slots__ = ()

    def ending(self, lot: Lot) -> Ending:
        if lot.ending < self._now("hang_rate"):
            return Ending.HANG
        rest = (lot.ending - self._now("hang_rate")) / (1 - self._now("hang_rate"))
        if rest >= 1 - self._now("fault_rate"):
            return Ending.FAULT
        return Ending.RESULT if rest < self._now("result_rate") else Ending.OWN


class _Correlated(Settings):
    """A mutant: decides both by one number."""

    __slots__ = ()

    def ending(self, lot: Lot) -> Ending:
        return super().ending(lot._replace(ending=lot.latency))


class _Either(Settings):
    """A mutant: a call that is late goes well."""

    __slots__ = ()

    def ending(self, lot: Lot) -> Ending:
        return super().ending(lot) if self.delay(lot) is None else Ending.OWN


@pytest.mark.parametrize("mutant", [_Independent, _Correlated, _Either])
@both_backends
def test_law_of_the_rates_catches_mutants(mutant: type[Settings], world: World) -> None:
    """Rates that cut into each other, and latencies that go with an ending, are seen."""
    assert_caught(law_of_the_rates(mutated(mutant), world))


# -- CH3: rates apart -----------------------------------------------------------------------------------------------


def law_of_one_rate_at_a_time(kind: Kind, world: World) -> Callable[[], None]:
    """CH3: what one rate injects stays where it is when another one changes, and only grows with its own."""

    @given(recipes(), st.sampled_from(["latencies", "faults", "hangs"]))
    def law(recipe: Recipe, name: str) -> None:
        less = attrs.evolve(recipe, results=recipe.results if name == "faults" else 0)
        room = 10 - (less.latencies if name == "latencies" else less.hangs + less.faults + less.results)
        more = attrs.evolve(less, **{name: getattr(less, name) + room})
        before, after = (trace_of(each, kind, "call", world, 12) for each in (less, more))
        injected = {"faults": "fault", "hangs": "hang", "latencies": ""}[name]
        for (waited, ended), (waits, ends) in zip(before, after, strict=True):
            if name == "latencies":
                assert ends == ended
                assert waited == 0 or waited == pytest.approx(waits)
            else:
                assert ends == ended if ended != "own" else ends in ("own", injected)
                assert ends == "hang" or waits == pytest.approx(waited)

    return law


@every_world
def test_one_rate_is_changed_at_a_time(world: World) -> None:
    """A greater rate adds calls to those that it had harmed, and takes none from another kind."""
    heavy(law_of_one_rate_at_a_time(Chaos, world))()


class _Frugal(Chaos):
    """A mutant: draws only what it needs, and so deals anew whenever it needs something else."""

    __slots__ = ()

    def _draw(self) -> tuple[Settings, Lot]:
        settings, lot = super()._draw()
        return settings, lot if settings.latency_rate else lot._replace(ending=lot.latency)


class _Stacked(Settings):
    """A mutant: one kind begins where the other ends, hangs first."""

    __slots__ = ()

    def ending(self, lot: Lot) -> Ending:
        hangs, faults = self._now("hang_rate"), self._now("fault_rate")
        if lot.ending < hangs:
            return Ending.HANG
        if lot.ending < hangs + faults:
            return Ending.FAULT
        return Ending.RESULT if lot.ending < hangs + faults + self._now("result_rate") else Ending.OWN


@pytest.mark.parametrize("mutant", [_Frugal, mutated(_Stacked)])
@both_backends
def test_law_of_one_rate_at_a_time_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """Lots that depend on the settings, and kinds that push each other along, are seen."""
    assert_caught(law_of_one_rate_at_a_time(mutant, world))
