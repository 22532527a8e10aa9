"""StormGuard between threads, one instruction at a time: SG1, SG2 and SG3, and mutants."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest

from resilience import Permit, StormGuard, events, storm_guard
from resilience.testing import Model, Operation
from tests.proof.threaded import World, linearizable, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

WATCHED = [storm_guard, events]
WINDOW = 10
MOST = 2


class Storm(World):
    """A guard that admits two events in ten seconds."""

    def __init__(self, kind: type[StormGuard]) -> None:
        super().__init__()
        self.guard = kind(WINDOW, MOST, clock=self.clock)

    def come(self) -> None:
        """Have an event come."""
        with self.history.operation("come") as call:
            call.result = self.guard.try_admit() is not None

    def count(self) -> None:
        """Count what is in the window."""
        with self.history.operation("count") as call:
            call.result = self.guard.count

    def look(self) -> None:
        """Look whether there is a storm."""
        with self.history.operation("storm") as call:
            call.result = self.guard.in_storm

    def wait(self) -> None:
        """Let more than the window pass, so that nothing is left in it."""
        with self.history.operation("eleven seconds"):
            self.clock.advance(WINDOW + 1)

    def everything_is_counted(self) -> None:
        """SG2: every event is among those admitted or those rejected."""
        came = [bool(each.result) for each in self.history.operations if each.name == "come"]
        seen = self.guard.statistics()
        assert (seen.admitted, seen.rejected) == (sum(came), len(came) - sum(came))


@attrs.frozen
class Weather:
    """How many events are in the window, and whether there is a storm."""

    count: int = 0
    storm: bool = False


class WindowModel(Model[Weather]):
    """A window to which one event comes at a time."""

    def initial(self) -> Weather:
        return Weather()

    def apply(self, state: Weather, operation: Operation) -> Iterable[Weather]:
        match operation.name:
            case "eleven seconds":
                return [Weather()]
            case "count":
                return [state] if operation.result == state.count else []
            case "storm":
                return [state] if operation.result == state.storm else []
            case _ if operation.result != (state.count < MOST):
                return []
            case _:
                after = attrs.evolve(state, count=state.count + 1)
                return [after] if operation.result else [attrs.evolve(state, storm=True)]


Act: TypeAlias = "Callable[[Storm], object]"
ACTS: list[Act] = [Storm.come, Storm.come, Storm.count, Storm.look, Storm.wait]
FIXED: list[list[list[Act]]] = [
    [[Storm.come, Storm.look], [Storm.come, Storm.come], [Storm.come, Storm.count]],
    [[Storm.come, Storm.wait, Storm.come], [Storm.come, Storm.come]],
]


def is_a_window(kind: type[StormGuard]) -> Callable[[], None]:
    """Make the property that threads see a window to which one event comes at a time, and that all are counted."""

    def law() -> None:
        linearizable(
            lambda: Storm(kind),
            WindowModel(),
            acts=ACTS,
            fixed=FIXED,
            watch=[*WATCHED, kind],
            also=Storm.everything_is_counted,
        )

    return law


def test_threads_see_one_window() -> None:
    """SG1, SG2: whatever events come in threads, they could have come one after the other."""
    is_a_window(StormGuard)()


class CountsFirst(StormGuard):
    """A mutant: what is in the window is counted before the lock is taken to put the event in."""

    def try_admit(self, key: Hashable = None, priority: int = 0) -> Permit | None:
        if self.count >= MOST:
            return super().try_admit(key, priority)
        with self._section:
            self._window.take(self._now())
            self._admitted += 1
        return Permit(self)


class CountsOutside(StormGuard):
    """A mutant: what was refused is counted when the lock is free again."""

    def try_admit(self, key: Hashable = None, priority: int = 0) -> Permit | None:  # noqa: ARG002 - it has none of them
        decision = self.admit()
        if isinstance(decision, Permit):
            return decision
        self._rejected += 1
        return None


@pytest.mark.parametrize("mutant", [unlocked(StormGuard), CountsFirst, CountsOutside])
def test_a_storm_guard_that_races_is_caught(mutant: type[StormGuard]) -> None:
    """Without its lock, or with anything done outside of it, some schedule shows it."""
    assert_caught(is_a_window(mutant))
