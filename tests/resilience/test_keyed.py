"""Keyed: a guard for each key, in bounded memory, and nobody the wiser."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    EVERYTHING,
    Keyed,
    KeyedStatistics,
    KeysExhaustedError,
    Layer,
    Policy,
    RateLimiter,
    SystemClock,
)
from resilience.testing import ManualClock
from tests.resilience.sleepers import Open, every_kind, limiter, several, use
from tests.resilience.support import NOT_A_COUNT, assert_caught, assert_refuses, brief

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.resilience.sleepers import Make


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
