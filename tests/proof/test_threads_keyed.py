"""Keyed between threads, one instruction at a time: one guard to a key, however it comes and goes; and mutants."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from resilience import Keyed, KeysExhaustedError, RateLimiter, events, keyed
from resilience.remains import EVERYTHING
from resilience.testing import Model, Operation, assert_linearizable
from tests.proof.threaded import World, acting, holds, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from resilience.events import EventQueue
    from resilience.remains import Everything, Packed

WATCHED = [keyed, events]
TOKENS = 2


class Registry(World):
    """Limiters of two tokens each, of which one is kept awake, for at most two keys."""

    def __init__(self, kind: type[Keyed[str, RateLimiter]]) -> None:
        super().__init__()
        self.keyed = kind(
            lambda key: RateLimiter(1, TOKENS, name=key, clock=self.clock), max_keys=2, max_awake=1, clock=self.clock
        )
        self.held: list[tuple[str, RateLimiter]] = []

    def take(self, key: str) -> None:
        """Take a token of a key's guard."""
        with self.history.operation("take", key) as call:
            try:
                call.result = self.keyed[key].try_acquire()
            except KeysExhaustedError as refusal:
                call.result = type(refusal)

    def hold(self, key: str) -> None:
        """Look a guard up, and hold it from then on."""
        try:
            self.held.append((key, self.keyed[key]))
        except KeysExhaustedError:
            return

    def know(self) -> None:
        """Ask for what is known; it is never more than may be."""
        assert len(self.keyed) <= 2

    def a_held_guard_stays(self) -> None:
        """What is held under one key is one guard, and that is what the key still has."""
        guards: dict[str, RateLimiter] = {}
        for key, guard in self.held:
            assert guards.setdefault(key, guard) is guard
        for key, guard in guards.items():
            assert self.keyed[key] is guard

    def gives_what_it_may(self) -> None:
        """RL1: no key has given more than its guard allows."""
        assert_linearizable(self.history, TokensModel())


class TokensModel(Model[int]):
    """The tokens of one key; each key is a matter of its own."""

    def initial(self) -> int:
        return TOKENS

    def partition(self, operation: Operation) -> Hashable:
        return operation.arguments

    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        if operation.result is KeysExhaustedError:
            return [state]
        if operation.result != (state > 0):
            return []
        return [state - 1] if operation.result else [state]


Act: TypeAlias = "Callable[[Registry], object]"


def take(key: str) -> Act:
    """Return the act that takes a token."""
    return lambda registry: registry.take(key)


def hold(key: str) -> Act:
    """Return the act that looks a guard up and keeps it."""
    return lambda registry: registry.hold(key)


ACTS: list[Act] = [*[take(key) for key in "aabbc"], hold("a"), Registry.know]
AWAY_AND_BACK: list[list[Act]] = [[take("a")], [take("b"), take("a"), take("a")]]
FIXED: list[list[list[Act]]] = [
    AWAY_AND_BACK,
    [[hold("a")], [take("b"), take("a")], [take("c")]],
]


def has_one_guard_to_a_key(kind: type[Keyed[str, RateLimiter]]) -> Callable[[], None]:
    """Make the property that a key's guard is one to all threads, whether it is held, asleep or made anew."""

    def law() -> None:
        linearizable(
            lambda: Registry(kind),
            TokensModel(),
            acts=ACTS,
            fixed=FIXED,
            watch=[*WATCHED, Registry, kind],
            also=Registry.a_held_guard_stays,
        )

    return law


def wakes_what_went_to_sleep(kind: type[Keyed[str, RateLimiter]]) -> Callable[[], None]:
    """Make the property that whoever uses a guard just as it is put to sleep has used the one that wakes."""
    # Preempted twice, but only between one operation and the next, and in what is a mutant's own.
    scenario = acting(lambda: Registry(kind), AWAY_AND_BACK, Registry.gives_what_it_may)
    return lambda: holds(scenario, watch=[Registry], deviations=2)


def test_threads_see_one_guard_to_a_key() -> None:
    """SG5: no key gets more than its guard allows, however often that is put to sleep; what is held stays."""
    has_one_guard_to_a_key(Keyed)()


def test_a_guard_sleeps_with_all_that_was_taken() -> None:
    """SG5: what is taken of a guard while it is put to sleep is not forgotten."""
    wakes_what_went_to_sleep(Keyed)()


class LastWins(Keyed[str, RateLimiter]):
    """A mutant: of two threads that make a guard for the same key at once, the second one takes its place."""

    def _wake(self, key: str, made: RateLimiter) -> RateLimiter:
        with self._locked() as queues:
            self._awake[key] = made
            self._put_to_sleep(queues)
        return made


class LetsGoOfWhatIsHeld(Keyed[str, RateLimiter]):
    """A mutant: whether anybody holds a guard is not tried."""

    def _let_go(self, key: str, queues: list[EventQueue], *, only_fresh: bool = False) -> Packed | Everything | None:
        del queues, only_fresh
        remains = keyed._remains(self._awake[key])
        del self._awake[key]
        return remains


class LooksWithoutTheirLocks(Keyed[str, RateLimiter]):
    """A mutant: what remains of a guard is read, and then nobody is kept from using it until it has been let go."""

    def _let_go(self, key: str, queues: list[EventQueue], *, only_fresh: bool = False) -> Packed | Everything | None:
        remains = keyed._remains(self._awake[key])
        found = super()._let_go(key, queues, only_fresh=only_fresh)
        return found if found is EVERYTHING else remains


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (has_one_guard_to_a_key, unlocked(Keyed)),
        (has_one_guard_to_a_key, LastWins),
        (has_one_guard_to_a_key, LetsGoOfWhatIsHeld),
        (wakes_what_went_to_sleep, LooksWithoutTheirLocks),
    ],
)
def test_a_registry_that_races_is_caught(
    law: Callable[[type[Keyed[str, RateLimiter]]], Callable[[], None]], mutant: type[Keyed[str, RateLimiter]]
) -> None:
    """Without its lock, or where a guard may be lost, some schedule gives a key more than its guard allows."""
    assert_caught(law(mutant))
