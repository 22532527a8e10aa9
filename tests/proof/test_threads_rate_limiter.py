"""RateLimiter between threads, one instruction at a time: RL1, RL8 and RL9 by linearizability, and its mutants."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest

from resilience import RateLimiter, events, rate_limiter, turns
from resilience.layer import Permit
from resilience.testing import Model, Operation
from tests.proof.threaded import World, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WATCHED = [rate_limiter, turns, events]
CAPACITY = 3


class Bucket(World):
    """A limiter of one token a second."""

    def __init__(self, kind: type[RateLimiter]) -> None:
        super().__init__()
        self.limiter = kind(1, CAPACITY, clock=self.clock)

    def take(self, cost: int) -> None:
        """Take tokens."""
        with self.history.operation("take", cost, "") as call:
            call.result = self.limiter.try_acquire(cost)

    def admit(self) -> None:
        """Have a permit."""
        name = self.name()
        with self.history.operation("take", 1, name) as call:
            decision = self.limiter.admit()
            call.result = isinstance(decision, Permit)
        if isinstance(decision, Permit):
            self.keep(name, decision)

    def give_back(self) -> None:
        """Give a permit back, if there is one: the call did not run."""
        if (kept := self.kept()) is not None:
            name, permit = kept
            with self.history.operation("give back", name):
                permit.ignored()

    def look(self) -> None:
        """Look how much there is."""
        with self.history.operation("available") as call:
            call.result = self.limiter.available

    def wait(self) -> None:
        """Let a second pass."""
        with self.history.operation("a second"):
            self.clock.advance(1)

    def everything_is_counted(self) -> None:
        """RL8: what was admitted and what was refused is what the statistics say."""
        asked = [each for each in self.history.operations if each.name == "take"]
        seen = self.limiter.statistics()
        assert seen.admitted == sum(bool(each.result) for each in asked)
        # Whoever asks for a permit counts the refusal, if it is one, later.
        assert seen.rejected == sum(not each.result for each in asked if not each.arguments[1])


@attrs.frozen
class Tokens:
    """What is in the bucket, and the admissions that could be given back, each behind the one before it."""

    left: int = CAPACITY
    taken: tuple[str, ...] = ()


class TokenModel(Model[Tokens]):
    """A bucket to which one comes at a time."""

    def initial(self) -> Tokens:
        return Tokens()

    def apply(self, state: Tokens, operation: Operation) -> Iterable[Tokens]:
        match operation.name, operation.arguments:
            case "a second", _:
                return [attrs.evolve(state, left=min(CAPACITY, state.left + 1))]
            case "available", _:
                return [state] if operation.result == state.left else []
            case "give back", (str(name),):
                # Exact only if nobody was admitted since; otherwise the token is spent.
                if state.taken[-1:] == (name,):
                    return [Tokens(min(CAPACITY, state.left + 1), state.taken[:-1])]
                return [state]
            case "take", (int(cost), str(name)):
                if operation.result != (state.left >= cost):
                    return []
                return [Tokens(state.left - cost, (*state.taken, name))] if operation.result else [state]
            case _:
                raise AssertionError(operation)


Act: TypeAlias = "Callable[[Bucket], object]"
ACTS: list[Act] = [
    lambda bucket: bucket.take(1),
    lambda bucket: bucket.take(2),
    Bucket.admit,
    Bucket.give_back,
    Bucket.look,
    Bucket.wait,
]
FIXED: list[list[list[Act]]] = [
    [
        [lambda bucket: bucket.take(2), Bucket.look],
        [Bucket.admit, Bucket.give_back, Bucket.wait],
        [lambda bucket: bucket.take(1)],
    ],
    [[lambda bucket: bucket.take(CAPACITY)]] * 3,
]


def admits_what_one_at_a_time_would(kind: type[RateLimiter]) -> Callable[[], None]:
    """Make the property that threads see a bucket to which one comes at a time, and that all is counted."""

    def law() -> None:
        linearizable(
            lambda: Bucket(kind),
            TokenModel(),
            acts=ACTS,
            fixed=FIXED,
            watch=[*WATCHED, kind],
            also=Bucket.everything_is_counted,
        )

    return law


def test_threads_see_one_bucket() -> None:
    """RL1, RL8, RL9: whatever threads do to a limiter, and whenever, could have been done one after the other."""
    admits_what_one_at_a_time_would(RateLimiter)()


class LooksFirst(RateLimiter):
    """A mutant: whether there are tokens is looked at before the lock is taken."""

    def try_acquire(self, cost: float = 1) -> bool:
        if self.available < cost:
            return self._refused(cost)
        with self._section:
            self._bucket.tat = max(self._bucket.tat, self.clock.monotonic_ns()) + self._bucket.units(cost)
            self._admitted += 1
        return True


class CountsOutside(RateLimiter):
    """A mutant: what is refused is counted without the lock."""

    def _refused(self, cost: float) -> bool:  # noqa: ARG002 - it does not look
        self._rejected += 1
        return False


@pytest.mark.parametrize("mutant", [unlocked(RateLimiter), LooksFirst, CountsOutside])
def test_a_limiter_that_races_is_caught(mutant: type[RateLimiter]) -> None:
    """Without its lock, or with the question asked outside of it, some schedule admits too much."""
    assert_caught(admits_what_one_at_a_time_would(mutant))
