"""Keyed: a guard for each key, in bounded memory, and nobody the wiser; and what it rests on, freshness and remains."""

from __future__ import annotations

import functools
import gc
import threading
import tracemalloc
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resilience import (
    AIMD,
    EVERYTHING,
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    CountWindow,
    Deadline,
    Everything,
    FailureRate,
    Fallback,
    Guard,
    Hedge,
    Keyed,
    KeyedStatistics,
    KeysExhaustedError,
    Layer,
    NotUntil,
    Permit,
    Policy,
    RateLimitedError,
    RateLimiter,
    RejectedError,
    Remains,
    Retry,
    RetryBudget,
    Sample,
    SlowCallRate,
    StormGuard,
    Strategy,
    SystemClock,
    Timeout,
    TimeWindow,
    Verdict,
)
from resilience.telemetry import Rejected, StateChanged, subscribe
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_A_COUNT,
    Crew,
    assert_caught,
    assert_refuses,
    brief,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractContextManager

    from resilience import Clock
    from resilience.events import EventQueue
    from resilience.telemetry import Event

every_loop = pytest.mark.anyio

Make: TypeAlias = "Callable[[ManualClock], Layer]"


def limiter(clock: ManualClock) -> RateLimiter:
    """Make a limiter whose debts are whole nanoseconds."""
    return RateLimiter(rate=0.5, capacity=2, clock=clock)


def breaker(clock: ManualClock) -> CircuitBreaker:
    """Make a breaker that counts consecutive failures."""
    return CircuitBreaker(2, 3.0, clock=clock)


def windowed(clock: ManualClock) -> CircuitBreaker:
    """Make a breaker whose failures are forgotten in time, by two conditions."""
    slow = SlowCallRate(0.5, TimeWindow(4.0), min_calls=2)
    return CircuitBreaker(
        recovery_timeout=3.0,
        trip=[FailureRate(0.5, TimeWindow(4.0), min_calls=2), slow],
        slow_call_duration=2.0,
        clock=clock,
    )


def storm_guard(clock: ManualClock) -> StormGuard:
    """Make a storm guard whose storms take a while to end."""
    return StormGuard(3.0, 2, hold_for=1.0, clock=clock)


def bulkhead(clock: ManualClock) -> Bulkhead:
    """Make a bulkhead for one call at a time."""
    return Bulkhead(1, clock=clock)


def adaptive(clock: ManualClock) -> AdaptiveLimiter:
    """Make a limiter that learns from the first failure."""
    return AdaptiveLimiter(AIMD(initial_limit=2), is_failure=lambda _: True, clock=clock)


def several(clock: ManualClock) -> Policy:
    """Make a policy whose parts recover each in its own time, or not by themselves."""
    return Policy(Fallback("other", on=KeyError), storm_guard(clock), breaker(clock), limiter(clock))


MAKERS: dict[str, Make] = {
    make.__name__: make for make in (limiter, breaker, windowed, storm_guard, bulkhead, adaptive, several)
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def drive(coroutine: Coroutine[object, object, str]) -> str:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return str(end.value)
    coroutine.close()
    raise AssertionError("it waited")


def use(layer: Layer, *, fails: bool = False) -> str:
    """Make one call through a layer, and return how it ended."""

    async def call() -> str:
        if fails:
            raise ConnectionError
        return "done"

    try:
        return drive(layer.call(call))
    except (RejectedError, ConnectionError) as error:
        return repr(error)


# -- what remains -----------------------------------------------------------------------------------------------------


class Open:
    """A call under way, to be ended at some other time."""

    def __init__(self, layer: Layer) -> None:
        self.coroutine = layer.call(self._wait)
        self.fails = False
        self.outcome = self._step()

    async def _wait(self) -> str:
        @attrs.define
        class Pause:
            def __await__(self) -> object:
                yield

        await Pause()  # type: ignore[misc]
        if self.fails:
            raise ConnectionError
        return "done"

    def _step(self) -> str | None:
        try:
            self.coroutine.send(None)
        except StopIteration as end:
            return str(end.value)
        except (RejectedError, ConnectionError) as error:
            return repr(error)
        return None

    def end(self, *, fails: bool = False) -> str:
        """Let the call end."""
        if self.outcome is None:
            self.fails = fails
            self.outcome = self._step()
        assert self.outcome is not None
        return self.outcome


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


@pytest.mark.parametrize("make", [limiter, breaker, windowed, storm_guard, bulkhead], ids=lambda make: make.__name__)
def test_law_of_remains_catches_a_guard_that_always_feels_fresh(make: Make) -> None:
    """Forgetting a debt, a failure, an event or a permit is seen."""
    assert_caught(law_of_remains(mutant_of(make, lambda _: None)))


def _ignoring_calls(guard: Guard) -> Everything | None:
    assert isinstance(guard, CircuitBreaker)
    return None if guard._machine.is_fresh(guard.clock.monotonic_ns()) else EVERYTHING


def _half(guard: Guard) -> Remains | Everything | None:
    remains = StormGuard.remains(guard)  # type: ignore[arg-type]
    return remains[0] if isinstance(remains, tuple) else remains


def _early(guard: Guard) -> Remains | Everything | None:
    remains = RateLimiter.remains(guard)  # type: ignore[arg-type]
    return remains - 1_000_000_000 if isinstance(remains, int) else remains


@pytest.mark.parametrize(
    ("make", "remains"),
    [(breaker, _ignoring_calls), (storm_guard, _half), (limiter, _early)],
    ids=["calls under way", "the last event alone", "a little less debt"],
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
    last.resume((debt,))
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
        with pytest.raises(NotImplementedError):
            layer.resume(1)


# -- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """A count that is none is a ValueError that names it."""
    assert_refuses("max_keys", bad, partial(Keyed, limiter))
    assert_refuses("max_awake", bad, partial(Keyed, limiter))


def test_refuses_bad_arguments() -> None:
    """A factory that is none, or makes no layer, or one on another clock, is refused; nothing is remembered of it."""
    assert_refuses("factory", 3, Keyed)
    assert_refuses("name", 3, partial(Keyed, limiter))
    makes_none: Keyed[str, Layer] = Keyed(lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="factory must return a guard or another layer, not None"):
        makes_none["a"]
    clock = ManualClock()
    other: Keyed[str, Policy] = Keyed(lambda _: several(clock))
    with pytest.raises(ValueError, match=r"clock must be that of the guards, .*ManualClock.*, not SystemClock\(\)"):
        other["a"]
    assert (len(makes_none), "a" in makes_none, len(other)) == (0, False, 0)
    same: Keyed[str, RateLimiter] = Keyed(lambda _: RateLimiter(1, 1), clock=SystemClock())
    assert same["a"].available == 1.0


def test_a_key_has_one_guard() -> None:
    """The factory is asked once for each key; any other lookup finds what it made."""
    asked: list[str] = []
    clock = ManualClock()

    def make(key: str) -> RateLimiter:
        asked.append(key)
        return RateLimiter(1.0, 1, name=key, clock=clock)

    keyed = Keyed(make, clock=clock, name="hosts")
    first = keyed["a"]
    assert first.name == "a"
    assert keyed["a"] is first
    assert keyed["b"] is keyed["b"]
    assert asked == ["a", "b"]
    assert ("a" in keyed, "c" in keyed, len(keyed)) == (True, False, 2)
    assert repr(keyed) == "<Keyed 'hosts', 2 of 10000 keys>"
    assert keyed.statistics() == KeyedStatistics(keys=2, awake=2, made=2)


class World:
    """A Keyed with little room, and a guard for each key that is never dropped."""

    KEYS, ROOM, AWAKE = 5, 3, 2

    def __init__(self, kind: type[Keyed[int, Layer]], make: Make) -> None:
        self.clock = ManualClock()
        self.keyed = kind(lambda _: make(self.clock), max_keys=self.ROOM, max_awake=self.AWAKE, clock=self.clock)
        self.model = [make(self.clock) for _ in range(self.KEYS)]
        self.held: dict[int, Layer] = {}
        self.calls: list[tuple[int, Open, Open]] = []

    def find(self, key: int) -> Layer | None:
        """Look a key up; judge what is found, or that nothing is."""
        known = [other for other in range(self.KEYS) if other in self.keyed]
        # What the model says of the keys that are known: whose guard could be told from a new one?
        busy = [other for other in known if other in self.held or not self.model[other].is_fresh()]
        # A call under way holds the guard, or only the parts of it.
        in_use = {other for other, mine, _ in self.calls if mine.outcome is None}
        lost = [other for other in range(self.KEYS) if other not in known and not self.model[other].is_fresh()]
        assert not lost
        try:
            guard = self.keyed[key]
        except KeysExhaustedError:
            assert key not in known
            assert len(in_use | set(busy)) == len(known) == self.ROOM
            return None
        assert key in known or len(busy) < self.ROOM
        assert guard is self.held.get(key, guard)
        assert len(self.keyed) <= self.ROOM
        assert key in self.keyed
        return guard

    def step(self, name: str, key: int) -> None:
        """Take one step."""
        if name.startswith("wait"):
            self.clock.advance(2.0 if name == "wait" else 7.0)
        elif name == "release":
            self.held.pop(key, None)
        elif name.startswith("end") and self.calls:
            _, mine, models = self.calls.pop(0)
            assert mine.end(fails=name != "end") == models.end(fails=name != "end")
        elif (guard := self.find(key)) is not None:
            if name == "hold":
                self.held[key] = guard
            elif name == "begin":
                self.calls.append((key, Open(guard), Open(self.model[key])))
                assert self.calls[-1][1].outcome == self.calls[-1][2].outcome
            else:
                assert use(guard, fails=name == "fail") == use(self.model[key], fails=name == "fail")


def law_of_the_keys(kind: type[Keyed[int, Layer]], make: Make) -> Callable[[], None]:
    """Bounded, and yet every key's guard decides as if it had never been dropped; who is held is found."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["use", "use", "use", "fail", "fail", "hold", "release", "begin", "end", "wait", "wait long"]
                ),
                st.integers(0, World.KEYS - 1),
            ),
            min_size=5,
            max_size=30,
        )
    )
    def law(chosen: list[tuple[str, int]]) -> None:
        world = World(kind, make)
        for name, key in chosen:
            world.step(name, key)
        for _, mine, models in world.calls:
            assert mine.end() == models.end()

    return law


@every_kind
def test_nobody_is_the_wiser(make: Make) -> None:
    """Decisions are those of guards that are kept for ever; a new key is refused only if all others are busy."""
    law_of_the_keys(Keyed, make)()


class _Careless(Keyed[int, Layer]):
    """A mutant: forgets those that fall asleep."""

    __slots__ = ()

    def _put_to_sleep(self, queues: list[object]) -> None:  # type: ignore[override]
        super()._put_to_sleep(queues)  # type: ignore[arg-type]
        self._asleep.clear()


class _Grasping(Keyed[int, Layer]):
    """A mutant: drops the guard that has gone longest without use, however it is, and whoever holds it."""

    __slots__ = ()

    def _let_go(self, key: int, *_: object, **__: object) -> None:
        del self._awake[key]


class _Blind(Keyed[int, Layer]):
    """A mutant: puts to sleep what somebody holds."""

    __slots__ = ()

    def _let_go(self, key: int, queues: list[object], *, only_fresh: bool = False) -> object:  # type: ignore[override]
        guard = self._awake[key]
        remains = super()._let_go(key, queues, only_fresh=only_fresh)  # type: ignore[arg-type]
        if remains is EVERYTHING and guard.is_fresh():
            del self._awake[key]
            return None
        return remains


class _Boundless(Keyed[int, Layer]):
    """A mutant: takes in everybody."""

    __slots__ = ()

    def _see_to_room(self, *_: object) -> None:
        """Say that there is room."""


class _Timid(Keyed[int, Layer]):
    """A mutant: drops nothing, ever."""

    __slots__ = ()

    def _see_to_room(self, key: int, *_: object) -> None:
        if key not in self._asleep and len(self._asleep) + len(self._awake) >= self.max_keys:
            raise KeysExhaustedError("timid")


class _Impatient(Keyed[int, Layer]):
    """A mutant: drops a sleeper before its time."""

    __slots__ = ()

    def _see_to_room(self, key: int, queues: list[object]) -> None:  # type: ignore[override]
        try:
            super()._see_to_room(key, queues)  # type: ignore[arg-type]
        except KeysExhaustedError:
            if not self._asleep:
                raise
            self._asleep.popitem(last=False)


class _Amnesiac(Keyed[int, Layer]):
    """A mutant: makes a new guard for a key whose guard it has."""

    __slots__ = ()

    def __getitem__(self, key: int) -> Layer:
        guard = super().__getitem__(key)
        if len(self._awake) > 1:
            self._awake[key] = self._make(key)
        return guard


@pytest.mark.parametrize("mutant", [_Careless, _Grasping, _Blind, _Boundless, _Timid, _Impatient, _Amnesiac])
def test_law_of_the_keys_catches_mutants(mutant: type[Keyed[int, Layer]]) -> None:
    """A debt that is forgotten, a holder that is passed over, a bound that is none and a needless refusal are seen."""
    assert_caught(law_of_the_keys(mutant, limiter))


@pytest.mark.parametrize("max_awake", [1, 10])
def test_fresh_ones_go_first_and_the_longest_unused_of_them(max_awake: int) -> None:
    """Room is made by the fresh key that has gone longest without use; what is not fresh is passed over."""
    clock = ManualClock()
    keyed: Keyed[str, RateLimiter] = Keyed(lambda _: limiter(clock), max_keys=4, max_awake=max_awake, clock=clock)
    for key in "abcd":
        use(keyed[key])
    clock.advance(1.0)
    use(keyed["a"])
    use(keyed["b"])
    clock.advance(1.5)
    # Now c and d are fresh.
    keyed["e"]
    assert [key for key in "abcde" if key in keyed] == ["a", "b", "d", "e"]
    clock.advance(1.5)
    # Now all are.
    keyed["f"]
    assert [key for key in "abcdef" if key in keyed and key != "e"] == ["a", "b", "f"]
    assert keyed.statistics().evicted == 2


def test_when_all_are_busy_a_new_key_is_refused() -> None:
    """The refusal is explicit, says when to come back if that is known, is counted and announced; known keys go on."""
    clock = ManualClock()
    keyed: Keyed[str, RateLimiter] = Keyed(
        lambda _: limiter(clock), max_keys=2, max_awake=1, name="tenants", clock=clock
    )
    heard: list[Event] = []
    unsubscribe = subscribe(heard.append)
    use(keyed["a"])
    clock.advance(0.5)
    use(keyed["b"])
    with pytest.raises(KeysExhaustedError, match=r"^tenants has no room for another key; ask again in 1.5 s$"):
        keyed["c"]
    assert "c" not in keyed
    assert heard == [Rejected(guard="tenants", retry_after=1.5)]
    unsubscribe()
    assert use(keyed["a"]) == "done"
    clock.advance(2.0)
    held = keyed["b"]
    assert use(held) == "done"
    assert use(keyed["a"]) == "done"
    clock.advance(10.0)
    assert use(keyed["c"]) == "done"
    assert (held.available, keyed["b"] is held, "a" in keyed) == (2.0, True, False)
    assert keyed.statistics() == KeyedStatistics(keys=2, awake=2, made=6, evicted=1, rejected=1)
    full: Keyed[str, Bulkhead] = Keyed(lambda _: bulkhead(clock), max_keys=1, clock=clock)
    with full["a"], pytest.raises(KeysExhaustedError) as caught:
        full["b"]
    assert (caught.value.guard, caught.value.retry_after) == ("Keyed", None)


def test_room_is_looked_for_in_bounded_time() -> None:
    """Each refusal looks at a few, and at others than the one before; so who has become free is found."""
    clock = ManualClock()
    looked: list[int] = []

    class Counting(Bulkhead):
        def remains(self) -> Everything | None:
            looked.append(1)
            return super().remains()

    keyed: Keyed[object, Bulkhead] = Keyed(lambda _: Counting(1, clock=clock), max_keys=200, clock=clock)
    permits = [keyed[key].admit() for key in range(200)]
    looked.clear()
    freed = permits.pop(150)
    assert isinstance(freed, Permit)
    freed.success()
    del freed
    refused = 0
    while "new" not in keyed:
        try:
            keyed["new"]
        except KeysExhaustedError:
            refused += 1
            assert len(looked) == 64 * refused
    assert refused == 2
    assert 150 not in keyed


@pytest.mark.parametrize("hold", ["decorated", "policy", "permit"])
def test_who_holds_a_guard_may_hold_it_in_many_ways(hold: str) -> None:
    """A function it decorates and a permit hold it just as a variable does."""
    clock = ManualClock()
    keyed: Keyed[str, Layer] = Keyed(lambda _: Policy(breaker(clock)), max_keys=1, clock=clock)
    if hold == "permit":
        keyed = Keyed(lambda _: breaker(clock), max_keys=1, clock=clock)

    def work() -> None:
        """Do nothing."""

    found = keyed["a"]
    use(found)
    kept: object = found
    if hold == "decorated":
        kept = found(work)
    elif isinstance(found, CircuitBreaker):
        kept = found.try_admit()
    del found
    with pytest.raises(KeysExhaustedError):
        keyed["b"]
    # A circuit must not have a call under way; so a permit is settled first, but still there.
    if isinstance(kept, Permit):
        kept.success()
        with pytest.raises(KeysExhaustedError):
            keyed["b"]
    del kept
    assert keyed["b"].is_fresh()


def test_a_guard_in_the_middle_of_something_stays() -> None:
    """Whose lock is taken is in use, and nobody waits for it."""
    clock = ManualClock()
    keyed: Keyed[str, RateLimiter] = Keyed(lambda _: limiter(clock), max_keys=1, clock=clock)
    # Not held by this thread: the lock is, as another thread might that is in a critical section.
    lock = keyed["a"]._lock
    with lock, pytest.raises(KeysExhaustedError):
        keyed["b"]
    assert keyed["b"].available == 2.0


def test_listeners_hear_what_looking_brings_up_when_the_lock_is_free() -> None:
    """A circuit found half-open says so, and a listener may use the registry."""
    clock = ManualClock()
    keyed: Keyed[str, CircuitBreaker] = Keyed(
        lambda key: CircuitBreaker(1, 3.0, name=key, clock=clock), max_keys=1, clock=clock
    )
    use(keyed["a"], fails=True)
    clock.advance(3.0)
    heard: list[tuple[Event, int]] = []
    unsubscribe = subscribe(lambda event: heard.append((event, len(keyed))))
    with pytest.raises(KeysExhaustedError):
        keyed["b"]
    unsubscribe()
    changed = StateChanged(guard="a", old="open", new="half_open", at_ns=clock.monotonic_ns())
    assert heard == [(changed, 1), (Rejected(guard="Keyed", retry_after=None), 1)]


def test_the_factory_runs_under_no_lock_and_one_of_several_wins() -> None:
    """Two threads that ask for a new key at once get one guard, though each has made one."""
    barrier = threading.Barrier(2)
    made: list[RateLimiter] = []

    def make(key: str) -> RateLimiter:
        barrier.wait()
        made.append(RateLimiter(1.0, 1, name=key))
        return made[-1]

    keyed = Keyed(make)
    found: list[RateLimiter] = []
    threads = [threading.Thread(target=lambda: found.append(keyed["a"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert found[0] is found[1] is keyed["a"]
    assert keyed.statistics().made == 1


def test_a_key_that_another_thread_has_woken_meanwhile_needs_no_room() -> None:
    """A known key is found whoever has come in between, also when there is room for no other."""
    clock = ManualClock()

    class Interrupted(Keyed[str, RateLimiter]):
        meanwhile: Callable[[], object] | None = None

        def _locked(self) -> AbstractContextManager[list[EventQueue]]:  # type: ignore[override]
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return super()._locked()

    keyed = Interrupted(lambda _: limiter(clock), max_keys=2, max_awake=1, clock=clock)
    use(keyed["a"])
    use(keyed["b"])
    assert list(keyed._asleep) == ["a"]
    found: list[RateLimiter] = []
    keyed.meanwhile = lambda: found.append(keyed["a"])
    assert keyed["a"] is found[0]


def test_threads_share_the_keys() -> None:
    """With many threads, few places and guards that come and go, no token is given out twice."""
    clock = ManualClock()
    keyed: Keyed[int, RateLimiter] = Keyed(
        lambda _: RateLimiter(rate=0.001, capacity=20, clock=clock), max_keys=8, max_awake=1, clock=clock
    )
    barrier = threading.Barrier(4)
    admitted: list[int] = []

    def work(start: int) -> None:
        barrier.wait()
        admitted.extend(key for turn in range(240) if keyed[key := (start + turn * 5) % 8].try_acquire())

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key: admitted.count(key) for key in range(8)} == dict.fromkeys(range(8), 20)


def test_a_factory_that_changes_its_mind_is_told() -> None:
    """What remains of one guard cannot be given to a guard of other parts; nothing is lost by that."""
    clock = ManualClock()
    grown = False

    def make(_: str) -> Layer:
        return several(clock) if grown else limiter(clock)

    keyed = Keyed(make, max_awake=1, clock=clock)
    use(keyed["a"])
    keyed["b"]
    grown = True
    with pytest.raises(ValueError, match="factory must make the same guard for the same key each time, not Policy"):
        keyed["a"]
    grown = False
    assert keyed["a"].retry_after() == 0.0  # type: ignore[attr-defined]
    assert keyed["a"].available == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "touch", "limit"),
    [
        (lambda key: RateLimiter(0.001, 2, name=key), lambda guard: guard.try_acquire(), 200),
        (lambda key: StormGuard(3600.0, 5, name=key), lambda guard: guard.try_admit(), 200),
        (lambda key: CircuitBreaker(name=key), lambda guard: guard.try_admit().success(), 0),
        (lambda key: Bulkhead(1, name=key), lambda guard: guard.admit().success(), 0),
        (
            lambda key: Policy(CircuitBreaker(name=key), RateLimiter(0.001, 2, name=key)),
            use,
            300,
        ),
    ],
    ids=["limiter", "storm guard", "breaker", "bulkhead", "policy"],
)
def test_an_idle_key_costs_next_to_nothing(
    make: Callable[[str], Layer], touch: Callable[[Layer], object], limit: int
) -> None:
    """A key that was used once takes at most 200 bytes over the key itself, or none where its guard is fresh again."""
    # Just past a growth of the dict, where it is emptiest.
    count = 5_500
    keyed = Keyed(make, max_keys=count, max_awake=1)
    keys = [f"tenant-{number}" for number in range(count)]
    touch(keyed[keys[0]])
    gc.collect()
    tracemalloc.start(1)
    try:
        for key in keys:
            touch(keyed[key])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # What is awake is a thing of its own.
    assert (taken - 10_000) / count <= limit
    assert len(keyed) == (count if limit else 1)


# -- as a layer -------------------------------------------------------------------------------------------------------


def one_each(**arguments: object) -> Keyed[str, RateLimiter]:
    """Return limiters that admit one call each."""
    return Keyed(lambda key: RateLimiter(0.001, 1, name=key))


@every_loop
async def test_calls_of_every_kind_are_guarded_by_their_key() -> None:
    """A coroutine function, a stream, a context manager, a plain function and a single call."""
    keyed = one_each()
    guard = keyed.layer(key="host")
    ran: list[str] = []

    @guard
    async def fetch(path: str, host: str = "a") -> str:
        ran.append(path)
        return host

    @guard
    async def stream(host: str) -> AsyncIterator[str]:
        ran.append("stream")
        yield host

    @guard
    @asynccontextmanager
    async def connect(*, host: str) -> AsyncIterator[str]:
        ran.append("connect")
        yield host

    @guard
    def plain(host: str) -> str:
        ran.append("plain")
        return host

    assert await fetch("/") == "a"
    assert [item async for item in stream("b")] == ["b"]
    async with connect(host="c") as host:
        assert host == "c"
    assert plain("d") == "d"
    assert await guard.call(fetch.__wrapped__, "/", host="e") == "e"  # type: ignore[attr-defined]
    assert ran == ["/", "stream", "connect", "plain", "/"]
    for name in "abcde":
        with pytest.raises(RateLimitedError, match=f"^{name} has no token left"):
            await fetch("/again", name)
    with pytest.raises(RateLimitedError, match=r"^b "):
        assert [item async for item in stream("b")] == []
    with pytest.raises(RateLimitedError, match=r"^c "):
        async with connect(host="c"):
            raise AssertionError
    with pytest.raises(RateLimitedError, match=r"^d "):
        plain(host="d")
    assert len(ran) == 5
    assert fetch.__name__ == "fetch"
    assert str(guard.describe()) == "_KeyedLayer(key='host')"


@every_loop
async def test_key_may_be_a_function_of_the_arguments() -> None:
    """It is called with the call's arguments, bound ones left out as everywhere."""
    keyed = one_each()

    class Client:
        @keyed.layer(key=lambda _, url, **__: url.partition("/")[0])
        async def get(self, url: str, *, retries: int = 1) -> str:
            return f"{url} {retries}"

    client = Client()
    assert await client.get("a.example/1", retries=2) == "a.example/1 2"
    assert await client.get("b.example/1") == "b.example/1 1"
    with pytest.raises(RateLimitedError, match=r"^a\.example "):
        await client.get("a.example/2")


@every_loop
async def test_an_argument_is_found_by_its_name() -> None:
    """Wherever it stands in the signature, and in a partial, a bound method and a callable object too."""
    keyed = one_each()
    guard = keyed.layer(key="host")

    class Client:
        async def get(self, host: str) -> str:
            return host

        async def __call__(self, path: str, *, host: str) -> str:
            return host + path

    assert await guard(Client().get)("a") == "a"
    assert await guard(Client())("/", host="b") == "b/"
    assert await guard(functools.partial(Client().get, host="d"))() == "d"
    assert sorted(keyed._awake) == ["a", "b", "d"]

    async def without(path: str, *hosts: str, **others: str) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="has no argument 'host' by which"):
        guard(without)
    with pytest.raises(TypeError, match="has no argument 'host' by which"):
        await guard.call(without, "/")
    with pytest.raises(TypeError, match=" was called without its argument 'host'"):
        await guard(Client().get)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="can only decorate a callable, not 3"):
        guard(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, "", 3])
def test_refuses_a_key_that_is_none(bad: object) -> None:
    """A key is a name or a function."""
    with pytest.raises(ValueError, match="key must be the name of an argument or a function of the arguments, not"):
        one_each().layer(key=bad)  # type: ignore[arg-type]


@every_loop
async def test_what_a_key_s_guard_cannot_guard_is_a_type_error() -> None:
    """Never silence: what cannot be known at decoration is refused at the call."""
    keyed: Keyed[str, Layer] = Keyed(lambda _: Policy(Hedge(1.0)))
    guard = keyed.layer(key="host")

    @guard
    def plain(host: str) -> None:
        raise AssertionError

    @guard
    async def stream(host: str) -> AsyncIterator[str]:
        raise AssertionError
        yield host

    @asynccontextmanager
    async def connect(host: str) -> AsyncIterator[str]:
        raise AssertionError
        yield host

    with pytest.raises(TypeError, match="cannot guard the plain function"):
        plain("a")
    with pytest.raises(TypeError, match="cannot guard the async generator"):
        await anext(stream("a").__aiter__())
    with pytest.raises(TypeError, match="cannot guard the async context manager"):
        await guard.around(connect, "a").__aenter__()


@every_loop
async def test_a_call_under_way_keeps_its_guard() -> None:
    """The guard of a running call is found by all others with the key, and a new key cannot have its place (PO5)."""
    clock = ManualClock()
    keyed: Keyed[str, Bulkhead] = Keyed(lambda _: bulkhead(clock), max_keys=1, clock=clock)

    @keyed.layer(key="host")
    async def work(host: str) -> None:
        await clock.sleep(1.0)

    async with Crew() as crew:
        job = crew.start(lambda: work("a"))
        await settle()
        with pytest.raises(RejectedError, match="is full"):
            await work("a")
        with pytest.raises(KeysExhaustedError):
            await work("b")
        job.cancel()
        await settle()
        assert job.cancelled
        other = crew.start(lambda: work("b"))
        await settle()
        clock.advance(1.0)
        await settle()
        assert other.finished
    assert "a" not in keyed


@every_loop
async def test_composes_with_other_layers() -> None:
    """Inside a Retry a key's refusal is one like any other; no key is the next one's business."""
    clock = ManualClock(autojump=True)
    keyed: Keyed[str, RateLimiter] = Keyed(lambda key: RateLimiter(1.0, 1, name=key, clock=clock), clock=clock)
    ran: list[tuple[str, float]] = []

    @Policy(Retry(3, on=RateLimitedError, clock=clock), keyed.layer(key="host"))
    async def work(host: str) -> None:
        ran.append((host, clock.monotonic_ns() / 10**9))

    for host in "aba":
        await work(host)
    assert ran == [("a", 0.0), ("b", 0.0), ("a", 1.0)]
