"""Room in a Keyed: who is dropped, who sleeps, who stays, and what a sleeper takes."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Everything,
    Keyed,
    KeyedStatistics,
    KeysExhaustedError,
    Layer,
    Permit,
    Policy,
    RateLimiter,
    Remains,
    StormGuard,
    Timeout,
    fusing,
)
from resilience.telemetry import Rejected, StateChanged, subscribe
from resilience.testing import ManualClock
from tests.resilience.sleepers import breaker, bulkhead, limiter, several, use
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractContextManager

    from resilience.events import EventQueue
    from resilience.telemetry import Event


def law_of_who_goes_first(kind: type[Keyed[str, RateLimiter]], max_awake: int) -> None:
    """Room is made by the fresh key that has gone longest without use; what is not fresh is passed over."""
    clock = ManualClock()
    keyed = kind(lambda _: limiter(clock), max_keys=4, max_awake=max_awake, clock=clock)
    for key in "aabc":
        use(keyed[key])
    clock.advance(1.0)
    use(keyed["d"])
    use(keyed["d"])
    clock.advance(1.5)
    # Now b and c are fresh, and a is not, which has gone longest without use.
    keyed["e"]
    assert [key for key in "abcde" if key in keyed] == ["a", "c", "d", "e"]
    clock.advance(2.0)
    # Now a is, too; but it was busy when it was last looked at, which is as good as being used.
    keyed["f"]
    assert [key for key in "abcdef" if key in keyed and key != "e"] == ["a", "d", "f"]
    assert keyed.statistics().evicted == 2


@pytest.mark.parametrize("max_awake", [1, 10])
def test_fresh_ones_go_first_and_the_longest_unused_of_them(max_awake: int) -> None:
    """Whether they are asleep or awake."""
    law_of_who_goes_first(Keyed, max_awake)


class _Backwards(Keyed[str, RateLimiter]):
    """A mutant: looks at those first that were used last."""

    __slots__ = ()

    def _see_to_room(self, key: str, queues: list[EventQueue]) -> None:
        for keys in (self._awake, self._asleep):
            for known in reversed(tuple(keys)):
                keys.move_to_end(known)
        super()._see_to_room(key, queues)


class _Oldest(Keyed[str, RateLimiter]):
    """A mutant: drops whoever was used first, fresh or not."""

    __slots__ = ()

    def _see_to_room(self, key: str, _: list[EventQueue]) -> None:
        if not self._has_room(key):
            (self._asleep or self._awake).popitem(last=False)
            self._evicted += 1


@pytest.mark.parametrize("mutant", [_Backwards, _Oldest])
@pytest.mark.parametrize("max_awake", [1, 10])
def test_law_of_who_goes_first_catches_mutants(mutant: type[Keyed[str, RateLimiter]], max_awake: int) -> None:
    """Another order, and no regard for what is not fresh, are seen."""
    assert_caught(lambda: law_of_who_goes_first(mutant, max_awake))


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


def test_a_lookup_is_a_use() -> None:
    """Who is only looked up again stays awake for longer, and is dropped later."""
    clock = ManualClock()
    fresh: Keyed[str, Bulkhead] = Keyed(lambda _: bulkhead(clock), max_keys=3, clock=clock)
    busy: Keyed[str, RateLimiter] = Keyed(lambda _: limiter(clock), max_awake=3, clock=clock)
    for key in "abc":
        fresh[key]
        use(busy[key])
    for key in "ad":
        fresh[key]
        busy[key]
    assert [key for key in "abcd" if key in fresh] == ["a", "c", "d"]
    assert list(busy._asleep) == ["b"]


def test_who_asks_again_when_told_finds_room() -> None:
    """Not a nanosecond earlier: at that instant the first of the sleepers is fresh."""
    clock = ManualClock()
    keyed: Keyed[str, RateLimiter] = Keyed(lambda _: limiter(clock), max_keys=2, max_awake=1, clock=clock)
    use(keyed["a"])
    clock.advance(1.0)
    use(keyed["b"])
    with pytest.raises(KeysExhaustedError) as caught:
        keyed["c"]
    assert caught.value.retry_after == 1.0
    clock.advance(1.0 - 1e-9)
    with pytest.raises(KeysExhaustedError):
        keyed["c"]
    clock.advance(1e-9)
    assert keyed["c"].available == 2.0


def test_room_that_is_gone_when_the_factory_is_done_is_no_room() -> None:
    """Whoever made a guard and finds that others have taken the places meanwhile is refused; the bound holds."""
    clock = ManualClock()

    def make(key: str) -> Bulkhead:
        if key == "slow":
            held.append(keyed["fast"].admit())
        return bulkhead(clock)

    held: list[object] = []
    keyed: Keyed[str, Bulkhead] = Keyed(make, max_keys=1, clock=clock)
    with pytest.raises(KeysExhaustedError):
        keyed["slow"]
    assert ("fast" in keyed, "slow" in keyed, len(keyed)) == (True, False, 1)


def test_guards_that_were_held_go_to_sleep_two_at_a_time() -> None:
    """However many stayed awake because they were held: a lookup never has to pay for all of them."""
    clock = ManualClock()
    keyed: Keyed[object, RateLimiter] = Keyed(lambda _: limiter(clock), max_awake=1, clock=clock)
    held = [keyed[key] for key in range(6)]
    for each in held:
        use(each)
    del each
    held.clear()
    awake = []
    for key in "abcdefg":
        use(keyed[key])
        awake.append(keyed.statistics().awake)
    assert awake == [5, 4, 3, 2, 1, 1, 1]


def test_sleepers_are_looked_through_in_bounded_time() -> None:
    """Each refusal looks at others than the one before; so who has become fresh is found."""
    clock = ManualClock()
    keyed: Keyed[object, RateLimiter] = Keyed(lambda _: limiter(clock), max_keys=200, max_awake=1, clock=clock)
    for key in range(200):
        keyed[key].try_acquire(1 if key == 150 else 2)
    clock.advance(2.0)
    for _ in range(2):
        with pytest.raises(KeysExhaustedError):
            keyed["new"]
    keyed["new"]
    assert 150 not in keyed


def test_room_is_looked_for_in_bounded_time() -> None:
    """Each refusal looks at a few, and at others than the one before; so who has become free is found."""
    clock = ManualClock()
    looked: list[int] = []

    class Counting(Bulkhead):
        def remains(self) -> Remains | Everything | None:
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


async def _work(*_: object) -> None:
    """Do nothing."""


async def _stream(*_: object) -> AsyncIterator[None]:
    yield  # pragma: no cover - never begun


_manager = asynccontextmanager(_stream)

CALLS: dict[str, Callable[[Keyed[str, Layer]], object]] = {
    "call": lambda keyed: keyed["a"].call(_work),
    "decorated": lambda keyed: keyed["a"](_work)(),
    "manager": lambda keyed: keyed["a"].around(_manager),
    "decorated stream": lambda keyed: keyed["a"](_stream)(),
    "decorated manager": lambda keyed: keyed["a"](_manager)(),
}
LAYERS: dict[str, Callable[[ManualClock], Layer]] = {
    "one guard": lambda clock: Policy(bulkhead(clock)),
    "guards": lambda clock: Policy(bulkhead(clock), breaker(clock)),
    "around a strategy": lambda clock: Policy(bulkhead(clock), Timeout(1.0, clock=clock)),
    "inside a strategy": lambda clock: Policy(Timeout(1.0, clock=clock), bulkhead(clock)),
    "no policy": bulkhead,
}


def law_of_calls_to_come(call: str, make: Callable[[ManualClock], Layer]) -> None:
    """A call that has not begun holds its guard, as one under way does: no other gets a guard of its own meanwhile."""
    clock = ManualClock()
    keyed: Keyed[str, Layer] = Keyed(lambda _: make(clock), max_keys=1, clock=clock)
    begun = CALLS[call](keyed)
    refused = False
    try:
        keyed["b"]
    except KeysExhaustedError:
        refused = True
    if isinstance(begun, Coroutine):
        begun.close()
    assert refused
    del begun
    assert "b" not in keyed
    assert keyed["b"].is_fresh()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_has_not_begun_holds_its_guard(call: str, layer: str) -> None:
    """However it is to be made, and wherever in a policy the guard stands."""
    law_of_calls_to_come(call, LAYERS[layer])


@pytest.mark.parametrize("call", ["call", "manager"])
def test_law_of_calls_to_come_catches_runners_that_hold_the_parts_alone(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that holds no more than the parts of a Policy is seen: the Policy is dropped, and made anew."""
    monkeypatch.setattr(fusing, "holding", lambda _, run: run)
    assert_caught(lambda: law_of_calls_to_come(call, LAYERS["guards"]))


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


def law_of_threads(kind: type[Keyed[int, RateLimiter]]) -> None:
    """With many threads, few places and guards that come and go, no token is given out twice, and none is lost."""
    clock = ManualClock()
    keyed = kind(lambda _: RateLimiter(rate=0.001, capacity=20, clock=clock), max_keys=8, max_awake=1, clock=clock)
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


def test_threads_share_the_keys() -> None:
    """However they come between one another."""
    law_of_threads(Keyed)


class _Forgetful(Keyed[int, RateLimiter]):
    """A mutant: a key that is woken begins anew."""

    __slots__ = ()

    def _wake(self, key: int, made: RateLimiter) -> RateLimiter:
        with self._lock:
            self._asleep.pop(key, None)
        return super()._wake(key, made)


def test_law_of_threads_catches_a_registry_that_forgets() -> None:
    """Tokens that are given out again are seen."""
    assert_caught(lambda: law_of_threads(_Forgetful))


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
            200,
        ),
        (
            lambda key: Policy(CircuitBreaker(name=key), RateLimiter(0.001, 2, name=key)),
            lambda guard: use(guard, fails=True),
            200,
        ),
        (lambda key: AdaptiveLimiter(name=key), use, 200),
    ],
    ids=["limiter", "storm guard", "breaker", "bulkhead", "policy", "policy with a failure", "adaptive limiter"],
)
def test_an_idle_key_costs_next_to_nothing(
    make: Callable[[str], Layer], touch: Callable[[Layer], object], limit: int
) -> None:
    """Over the key itself, one that was used takes at most 200 bytes, 300 in a Policy; none if it is fresh again."""
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
