"""What remains of a layer when its calls are over: told exactly, taken up by another, and packed for the night."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from resilience import (
    EVERYTHING,
    AdaptiveLimiter,
    CircuitBreaker,
    CountWindow,
    Deadline,
    Everything,
    FailureRate,
    Fallback,
    Guard,
    Hedge,
    Layer,
    NotUntil,
    Permit,
    Policy,
    RateLimiter,
    Remains,
    Retry,
    RetryBudget,
    Sample,
    StormGuard,
    Strategy,
    SystemClock,
    Timeout,
    Verdict,
)
from resilience.remains import NEVER, pack, unpack, until_ns
from resilience.testing import ManualClock
from tests.resilience.sleepers import (
    Open,
    adaptive,
    breaker,
    bulkhead,
    counted,
    every_kind,
    learning,
    limiter,
    storm_guard,
    use,
    windowed,
)
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Clock
    from resilience.remains import Packed
    from tests.resilience.sleepers import Make

steps = st.lists(
    st.sampled_from(["use", "use", "fail", "fail", "begin", "end", "end badly", "wait", "wait", "wait long"]),
    max_size=8,
)

steps_after = st.lists(st.sampled_from(["use", "use", "fail", "end old ones", "begin", "end", "wait"]), max_size=8)


def take(clock: ManualClock, step: str, layers: list[Layer], calls: list[list[Open]]) -> list[object]:
    """Take one step with each layer, at one time; return what came of it."""
    if step.startswith("wait"):
        clock.advance(2.0 if step == "wait" else 7.0)
    if step in {"use", "fail"}:
        return [use(layer, fails=step == "fail") for layer in layers]
    if step == "begin":
        for layer, begun in zip(layers, calls, strict=True):
            begun.append(Open(layer))
        return [begun[-1].outcome for begun in calls]
    if step in {"end", "end badly"}:
        return [begun.pop(0).end(fails=step != "end") if begun else None for begun in calls]
    return []


def remains_of(layer: Layer) -> list[Remains | Everything | None]:
    """Return what remains of each part."""
    found = []
    for part in layer.parts:
        with part._section:
            found.append(part.remains())
    return found


def law_of_remains(make: Make) -> Callable[[], None]:
    """A layer of which nothing remains decides as a new one; so does a new one that was given what remains."""

    @given(steps, st.data())
    def law(before: list[str], data: st.DataObject) -> None:
        clock = ManualClock()
        old = make(clock)
        calls: list[Open] = []
        for step in before:
            take(clock, step, [old], [calls])
        remains = remains_of(old)
        assume(EVERYTHING not in remains)
        assert old.is_fresh() == all(part is None for part in remains)
        new = make(clock)
        for part, left in zip(new.parts, remains, strict=True):
            if left is not None:
                assert not isinstance(left, Everything)
                part.resume(left)
        assert remains_of(new) == remains
        both: list[list[Open]] = [[], []]
        for step in data.draw(steps_after, label="after"):
            if step == "end old ones":
                # Calls that were under way belong to the old one.
                while calls:
                    calls.pop().end(fails=True)
            outcomes = take(clock, step, [old, new], both)
            assert not outcomes or outcomes[0] == outcomes[1]
        for call in (*calls, *both[0], *both[1]):
            call.end()

    return law


@every_kind
def test_what_remains_is_all_that_matters(make: Make) -> None:
    """No sequence of calls tells a fresh layer, or one that took up another's remains, from the other."""
    law_of_remains(make)()


def mutant_of(make: Make, remains: Callable[[Guard], Remains | Everything | None]) -> Make:
    """Return a maker of guards whose remains are told wrongly."""

    def make_mutant(clock: ManualClock) -> Layer:
        guard = make(clock)
        kind = type(guard)
        guard.__class__ = type(f"Mutant{kind.__name__}", (kind,), {"__slots__": (), "remains": remains})
        return guard

    return make_mutant


@pytest.mark.parametrize(
    "make", [limiter, breaker, windowed, counted, storm_guard, bulkhead], ids=lambda make: make.__name__
)
def test_law_of_remains_catches_a_guard_that_always_feels_fresh(make: Make) -> None:
    """Forgetting a debt, a failure, an event or a permit is seen."""
    assert_caught(law_of_remains(mutant_of(make, lambda _: None)))


def _ignoring_calls(guard: Guard) -> Everything | None:
    assert isinstance(guard, CircuitBreaker)
    return None if guard._machine.is_fresh(guard.clock.monotonic_ns()) else EVERYTHING


def _half(guard: Guard) -> Remains | Everything | None:
    remains = StormGuard.remains(guard)  # type: ignore[arg-type]
    return cast("int", remains[0]) if isinstance(remains, tuple) else remains


def _one_less(guard: Guard) -> Remains | Everything | None:
    remains = CircuitBreaker.remains(guard)  # type: ignore[arg-type]
    return (*remains[:2], max(0, cast("int", remains[2]) - 1)) if isinstance(remains, tuple) else remains


def _swapped(guard: Guard) -> Remains | Everything | None:
    remains = CircuitBreaker.remains(guard)  # type: ignore[arg-type]
    if not isinstance(remains, tuple):
        return remains
    counts = cast("list[tuple[int, int, int]]", list(remains[2:]))
    return (*remains[:2], *((calls, slow, failed) for calls, failed, slow in counts))


def _unlearnt(guard: Guard) -> Remains | Everything | None:
    remains = AdaptiveLimiter.remains(guard)  # type: ignore[arg-type]
    return None if isinstance(remains, tuple) else remains


def _early(guard: Guard) -> Remains | Everything | None:
    remains = RateLimiter.remains(guard)  # type: ignore[arg-type]
    return remains - 1_000_000_000 if isinstance(remains, int) else remains


@pytest.mark.parametrize(
    ("make", "remains"),
    [
        (breaker, _ignoring_calls),
        (breaker, _one_less),
        (counted, _swapped),
        (adaptive, _unlearnt),
        (learning, _unlearnt),
        (storm_guard, _half),
        (limiter, _early),
    ],
    ids=[
        "calls under way",
        "a failure less",
        "slow for failed",
        "a limit that was cut",
        "a latency",
        "the last event alone",
        "a little less debt",
    ],
)
def test_law_of_remains_catches_mutants(make: Make, remains: Callable[[Guard], Remains | Everything | None]) -> None:
    """Forgetting a part of what remains is seen too."""
    assert_caught(law_of_remains(mutant_of(make, remains)))


def test_debt_is_rounded_up_to_the_nanosecond() -> None:
    """Where a debt is no whole number of nanoseconds, who takes it up admits no earlier, and a nanosecond later."""
    clock = ManualClock()
    old, new = (RateLimiter(rate=3.0, capacity=1, clock=clock) for _ in range(2))
    old.try_acquire()
    [remains] = remains_of(old)
    assert remains == 333_333_334
    new.resume(remains)
    assert new.retry_after() == old.retry_after()


def test_remains_count_as_the_clock_counts() -> None:
    """A clock that fell back before, or falls back while nobody looks, makes nobody wait longer than a bucket takes."""
    clock = ManualClock()
    old = limiter(clock)
    storms = storm_guard(clock)
    clock.advance(100.0)
    assert not old.retry_after() + storms.retry_after()
    clock.step_back(50.0)
    assert [use(old), use(old), use(storms), use(storms)] == ["done"] * 4
    (debt,), (events,) = remains_of(old), remains_of(storms)
    later, after = limiter(clock), storm_guard(clock)
    assert isinstance(debt, int)
    assert isinstance(events, tuple)
    later.resume(debt)
    after.resume(events)
    assert later.retry_after() == old.retry_after() == 2.0
    assert after.retry_after() == storms.retry_after() == pytest.approx(3.0)
    clock.step_back(40.0)
    last, youngest = limiter(clock), storm_guard(clock)
    last.resume(debt)
    youngest.resume(events)
    assert last.retry_after() == 2.0
    assert youngest.retry_after() == pytest.approx(3.0)


def test_what_only_the_guard_itself_can_stand_for() -> None:
    """Places in a queue, changed terms, storms, shares and samples half taken are kept as they are."""
    clock = ManualClock()
    changed, reserved, scheduled = limiter(clock), limiter(clock), limiter(clock)
    changed.update(rate=1.0)
    for queued in (reserved, scheduled):
        queued.try_acquire(2)
    reservation = reserved.reserve()
    scheduled.schedule()
    stormy = storm_guard(clock)
    assert [use(stormy) for _ in range(3)].count("done") == 2
    shared = StormGuard(3.0, 4, key_share=0.5, clock=clock)
    shared.try_admit("a")
    sampled = StormGuard(3.0, 1, surplus=Sample(3), calm_ratio=1.0, clock=clock)
    for _ in range(3):
        sampled.try_admit()
    clock.advance(1.0)
    every: list[Guard] = [changed, reserved, scheduled, stormy, shared, sampled]
    for each in every:
        assert remains_of(each) == [EVERYTHING]
        assert not each.is_fresh()
    clock.advance(100.0)
    reservation.cancel()
    assert [changed.is_fresh(), reserved.is_fresh(), scheduled.is_fresh()] == [False, True, True]
    assert [stormy.is_fresh(), shared.is_fresh(), sampled.is_fresh()] == [True, True, False]


def test_late_outcomes_end_a_call_too() -> None:
    """A call that ends after its circuit was reset no longer counts, nor is it under way."""
    circuit = CircuitBreaker(clock=ManualClock())
    first, second = circuit.try_admit(), circuit.try_admit()
    assert first is not None
    assert second is not None
    assert not circuit.is_fresh()
    circuit.reset()
    first.failure()
    assert not circuit.is_fresh()
    second.ignored()
    assert circuit.is_fresh()


def test_a_count_window_forgets_nothing() -> None:
    """Calls leave a window of calls only as others come; so after the first one its circuit is never fresh again."""
    circuit = CircuitBreaker(trip=FailureRate(0.5, CountWindow(2), min_calls=2), clock=ManualClock())
    assert circuit.is_fresh()
    use(circuit)
    assert not circuit.is_fresh()


def test_strategies_say_whether_they_keep_anything() -> None:
    """Most keep nothing; what is learnt or spent is not forgotten; who does not say is taken to keep something."""
    clock = ManualClock()
    budget = RetryBudget(clock=clock)
    spenders = [Retry(2, budget=budget, clock=clock), Hedge(0.5, budget=budget, clock=clock)]
    learner = Hedge(clock=clock)

    class Silent(Strategy):
        def wrap(self, call_next: object) -> object:  # type: ignore[override]
            return call_next

    class Mute(Guard):
        clock: Clock = SystemClock()

        def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil:  # noqa: ARG002 - it decides nothing
            return Permit(self)

        def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - as above
            permit.use_up()

    assert all(layer.is_fresh() for layer in (Timeout(1.0), Retry(2), Fallback(None), learner, *spenders, Policy()))
    assert not any(layer.is_fresh() for layer in (Silent(), Mute(), Deadline(1.0), Policy(Timeout(1.0), Silent())))
    assert budget.try_spend()
    assert not any(layer.is_fresh() for layer in spenders)
    clock.advance(1.0)
    assert all(layer.is_fresh() for layer in spenders)
    learner._times.add(1)
    assert not learner.is_fresh()
    for layer in (Silent(), Mute()):
        with pytest.raises(TypeError, match="must implement resume, since its remains are 1"):
            layer.resume(1)


# -- packed for the night ---------------------------------------------------------------------------------------------

instants = st.integers(-(2**40), 2**80)
firsts = st.none() | instants
told: st.SearchStrategy[Remains] = st.one_of(
    instants,
    st.tuples(firsts, st.integers()),
    st.tuples(firsts, st.floats(allow_nan=False), st.none(), st.tuples(st.integers(), st.booleans())),
)


def law_of_packing(
    pack: Callable[[list[Remains | None]], Packed | None],
    unpack: Callable[[Packed], tuple[Remains | None, ...]],
    until_ns: Callable[[Packed], int],
) -> Callable[[], None]:
    """What was packed is unpacked as it was, and tells when nothing of it is left without being unpacked."""

    @given(st.lists(st.none() | told, max_size=7))
    @example([None, 7])
    @example([7])
    @example([None] * 5 + [7])
    @example([(None, 1), 3])
    def law(found: list[Remains | None]) -> None:
        packed = pack(found)
        left = [remains[0] if isinstance(remains, tuple) else remains for remains in found if remains is not None]
        assert (packed is None) == (not left)
        if packed is None:
            return
        assert unpack(packed) == tuple(found)
        last = max(NEVER if instant is None else cast("int", instant) for instant in left)
        assert min(until_ns(packed), NEVER) == min(last, NEVER)

    return law


def test_packing_loses_nothing() -> None:
    """Any instants and notes of any number of parts come out as they went in."""
    law_of_packing(pack, unpack, until_ns)()


def _squeezed(found: list[Remains | None]) -> Packed | None:
    return pack([remains for remains in found if remains is not None])


def _first(found: list[Remains | None]) -> Packed | None:
    return pack([remains[0] if isinstance(remains, tuple) else remains for remains in found])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("packs", "untils"),
    [(_squeezed, until_ns), (_first, until_ns), (pack, lambda packed: until_ns(packed) - 1), (pack, lambda _: NEVER)],
    ids=["no gaps", "no notes", "a nanosecond less", "never"],
)
def test_law_of_packing_catches_mutants(
    packs: Callable[[list[Remains | None]], Packed | None], untils: Callable[[Packed], int]
) -> None:
    """Another part, a note that is lost and another instant are seen."""
    assert_caught(law_of_packing(packs, unpack, untils))


def test_what_nearly_always_remains_is_one_integer() -> None:
    """One instant of one part, for two years of a clock, takes what the smallest integer above a second takes."""
    two_years_ns = 2 * 365 * 24 * 3600 * 10**9
    packed = pack([None, two_years_ns, None])
    assert sys.getsizeof(packed) == sys.getsizeof(10**9 * 2)
