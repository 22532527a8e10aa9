"""StormGuard: SG1 to SG6."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar

from resilience import Sample, StormGuard
from resilience import storm_guard as guard_module
from resilience.machines import sliding_window as window_module
from resilience.machines.fairness import KeyShares
from resilience.machines.sliding_window import Change, SlidingWindow
from resilience.testing import Faults, ManualClock
from tests.proof.programs import Program, cancelled, explored, interleaved, seeded
from tests.proof.rows import Row
from tests.proof.threaded import unlocked

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tests.proof.programs import Kind, Tasks

__all__ = ["ROWS"]

WINDOW = 10.0
WINDOW_NS = 10 * 10**9


class Storm(Program):
    """Events that come at once, a window apart and a nanosecond more, and a log of those that were let through."""

    limit: ClassVar[int] = 2
    options: ClassVar[dict[str, Any]] = {}

    def build(self, kind: Kind) -> None:
        """Make the guard."""
        self.guard: Any = kind(WINDOW, self.limit, clock=self.clock, **self.options)
        self.log: list[int] = []
        self.came = 0

    def now_ns(self) -> int:
        """Return the instant, on the guard's own line."""
        now_ns: int = self.guard._line.at(self.clock.monotonic_ns())
        return now_ns

    async def event(self) -> bool:
        """Let an event come."""
        passed: bool = await self.guard.should_process_event()
        self.came += 1
        if passed:
            self.log.append(self.guard._line.last_ns)
        return passed

    def within(self, now_ns: int) -> int:
        """Count what the log has in the window that ends now; both its ends belong to it."""
        return sum(now_ns - WINDOW_NS <= at_ns <= now_ns for at_ns in self.log)

    async def twice(self) -> None:
        """Let two come, one after the other."""
        await self.event()
        await self.stage.pause()
        await self.event()

    async def old(self) -> None:
        """Let one come, and another when the first is exactly a window old, and when it is older than that."""
        await self.event()
        await self.clock.sleep(WINDOW)
        await self.event()
        await self.clock.sleep(1e-9)
        await self.event()

    tasks: ClassVar[Tasks] = (twice, old, twice)


class Exact(Storm):
    """SG1: what is counted is what the log has, and never more than is allowed in any window."""

    def invariant(self) -> None:
        """Compare the two, and look at every window that ends with an event."""
        now_ns = self.now_ns()
        assert self.guard.count == self.within(now_ns), "SG1: not what the log has"
        assert all(self.within(at_ns) <= self.limit for at_ns in self.log), "SG1: more than the window holds"

    check = invariant


class Counted(Storm):
    """SG2: every event has passed, been sampled or been rejected, and was counted once."""

    def build(self, kind: Kind) -> None:
        """Make the guard let one of every two pass that are too much."""
        self.options = {"surplus": Sample(2, random=random.Random(1))}  # type: ignore[misc] # one for each run
        super().build(kind)

    def invariant(self) -> None:
        """Compare the counts."""
        seen = self.guard.statistics()
        assert seen.admitted + seen.sampled == len(self.log), "SG2: not what has passed"
        assert seen.admitted + seen.sampled + seen.rejected == self.came, "SG2: an event is not counted, or twice"

    check = invariant


class Calm(Storm):
    """SG3: a storm begins with a refusal, and is over when it has been calm for long enough; so says the log."""

    HOLD_NS: ClassVar[int] = 5 * 10**9
    options: ClassVar[dict[str, Any]] = {"calm_ratio": 1.0, "hold_for": 5.0}

    def build(self, kind: Kind) -> None:
        """Note since when there is a storm, and how many there were."""
        super().build(kind)
        self.storm = False
        self.storms = 0

    def over_at(self) -> int:
        """Return when it is over: since when fewer than the limit are in the window, and the time that it must last."""
        return max(sorted(self.log)[-self.limit :][:1]) + WINDOW_NS + 1 + self.HOLD_NS

    async def event(self) -> bool:
        """Let an event come, and note whether it begins a storm."""
        now_ns = self.now_ns()
        self.storm = self.storm and now_ns < self.over_at()
        passed = await super().event()
        if not passed and not self.storm:
            self.storm = True
            self.storms += 1
        return passed

    def invariant(self) -> None:
        """Compare."""
        storm = self.storm and self.now_ns() < self.over_at()
        assert self.guard.in_storm is storm, "SG3: a storm where there is none, or none where there is one"
        assert self.guard.statistics().storms == self.storms, "SG3: not as many storms"

    async def again(self) -> None:
        """Come again when the window is calm, and when it has been so for long enough."""
        await self.clock.sleep(WINDOW + 1)
        await self.event()
        await self.clock.sleep(5.0)
        await self.twice()

    check = invariant
    tasks = (Storm.twice, again, Storm.twice)


class Keys(Storm):
    """SG4, SG5: each key has its share, whatever others do; what is remembered is bounded, no share is lost."""

    limit = 4
    options: ClassVar[dict[str, Any]] = {"key_share": 0.25}

    def build(self, kind: Kind) -> None:
        """Keep a log for each key."""
        super().build(kind)
        self.logs: dict[Hashable, list[int]] = {}

    async def of(self, key: Hashable) -> None:
        """Let an event of a key come. It must pass if the window has room for it and the key has some of its share."""
        log = self.logs.setdefault(key, [])
        now_ns = self.now_ns()
        room = self.within(now_ns) < self.limit
        share = not any(now_ns - at_ns <= WINDOW_NS for at_ns in log)
        passed = await self.guard.should_process_event(key)
        assert passed == (room and share), "SG4: the verdict on a key is another's"
        if passed:
            log.append(self.guard._line.last_ns)
            self.log.append(self.guard._line.last_ns)

    async def noisy(self) -> None:
        """Come again and again."""
        for _ in range(2):
            await self.of("noisy")
            await self.stage.pause()
        await self.clock.sleep(WINDOW + 1e-9)
        await self.of("noisy")

    async def quiet(self) -> None:
        """Come now and then."""
        await self.of("quiet")
        await self.clock.sleep(WINDOW)
        await self.of("quiet")

    async def many(self) -> None:
        """Come by ever new names."""
        for name in range(3):
            await self.of(name)
            await self.clock.sleep(WINDOW / 4)

    def invariant(self) -> None:
        """Judge how much is remembered."""
        assert self.guard.statistics().keys <= self.limit, "SG5: it remembers more keys than the window holds"
        assert all(self.within(at_ns) <= self.limit for at_ns in self.log), "SG5: more than the window holds"

    check = invariant
    tasks = (noisy, quiet, many)


class Backward(Storm):
    """SG6: events of the same instant may come in any order, and a clock that falls back is taken to stand still."""

    def fall_back(self) -> None:
        """Let the clock fall back far. It has been seen before, or the step would hide some time."""
        assert isinstance(self.clock, ManualClock)
        before_ns = self.now_ns()
        self.clock.step_back(1000)
        assert self.now_ns() == before_ns, "SG6: the guard's line falls back"

    def invariant(self) -> None:
        """Judge the log, which is in the order of its instants."""
        assert self.log == sorted(self.log), "SG6: the guard's line falls back"
        now_ns = self.now_ns()
        assert self.guard.count == self.within(now_ns), "SG6: what a clock shows who falls back is believed"

    def check(self) -> None:
        """Judge how many have passed: whatever their order, the first that the window holds, and one a window later."""
        self.invariant()
        assert self.cancelled or len(self.log) >= min(self.limit, self.came), (
            "SG6: fewer have passed than there was room for"
        )


class Threads(Program):
    """SG2: events from three threads at once are all counted, and no more pass than the window holds."""

    def build(self, kind: Kind) -> None:
        """Make the guard."""
        self.guard: Any = kind(WINDOW, 3, clock=self.clock)
        self.passed: list[bool] = []

    async def events(self) -> None:
        """Let two come."""
        for _ in range(2):
            self.passed.append(await self.guard.should_process_event())
            await self.stage.pause()

    def check(self) -> None:
        """Compare the counts."""
        seen = self.guard.statistics()
        assert (sum(self.passed), len(self.passed)) == (3, 6), "SG2: more have passed than the window holds, or fewer"
        assert (seen.admitted, seen.rejected, seen.in_use) == (3, 3, 3), "SG2: an event is not counted, or twice"

    tasks: ClassVar[Tasks] = (events, events, events)


# -- mutants ---------------------------------------------------------------------------------------------------------


class _WithWindow(StormGuard):
    window: type[SlidingWindow]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a guard takes
        super().__init__(*args, **kwargs)
        made = self._window
        self._window = self.window(made.window_ns, made.limit, made.calm, made.hold_ns)


class HalfOpenWindow(_WithWindow):
    """Forgets an event when it is exactly a window old."""

    class window(SlidingWindow):  # noqa: N801 - it stands for an attribute
        def __init__(self, window_ns: int, limit: int, calm: int, hold_ns: int) -> None:
            super().__init__(window_ns - 1, limit, calm, hold_ns)


class FixedWindows(_WithWindow):
    """Counts anew in every window of the clock."""

    class window(SlidingWindow):  # noqa: N801 - as above
        def take(self, now_ns: int, within: int = 0) -> bool:
            beginning = now_ns - now_ns % self.window_ns
            self._ring = [at if at is not None and at >= beginning else None for at in self._ring]
            return super().take(now_ns, within)


class ForgetsRefusals(StormGuard):
    """Counts a refusal only if no storm goes on."""

    def _count_refusal(self, now_ns: int, ready_at: int | None) -> None:
        if self._window.refused <= 1:
            super()._count_refusal(now_ns, ready_at)


class CalmAtOnce(_WithWindow):
    """Takes a storm for over as soon as there is room."""

    class window(SlidingWindow):  # noqa: N801 - as above
        def over_at(self) -> int:
            return super().over_at() - self.hold_ns


class StormsAtTheLimit(_WithWindow):
    """Takes a window that is full for a storm, although nobody was refused."""

    class window(SlidingWindow):  # noqa: N801 - as above
        def take(self, now_ns: int, within: int = 0) -> bool:
            taken = super().take(now_ns, within)
            if taken and self.count(now_ns) == self.limit and not self.in_storm:
                self.in_storm = True
                self._watch(now_ns)
            return taken


class Restless(_WithWindow):
    """Begins a new storm with every refusal."""

    class window(SlidingWindow):  # noqa: N801 - as above
        def refuse(self) -> Change:
            self.in_storm = False
            return super().refuse()


class _WithShares(StormGuard):
    shares: type[KeyShares]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a guard takes
        super().__init__(*args, **kwargs)
        made = self._shares
        if made is not None:
            self._shares = self.shares(made.window_ns, made.limit, made.quota)


class OneShare(_WithShares):
    """Has one share for all keys."""

    class shares(KeyShares):  # noqa: N801 - as above
        def ready_at(self, key: Hashable) -> int | None:  # noqa: ARG002 - that is the bug
            return super().ready_at(None)

        def take(self, key: Hashable, now_ns: int) -> None:  # noqa: ARG002 - as above
            super().take(None, now_ns)


class Forgetful(_WithShares):
    """Forgets every other key when one is noted."""

    class shares(KeyShares):  # noqa: N801 - as above
        def take(self, key: Hashable, now_ns: int) -> None:
            super().take(key, now_ns)
            share = self._shares[key]
            self._shares = {key: share}
            self._owners = [owner if owner is share else None for owner in self._owners]


class Hoards(_WithShares):
    """Forgets no key."""

    class shares(KeyShares):  # noqa: N801 - as above
        def __init__(self, window_ns: int, limit: int, quota: int) -> None:
            super().__init__(window_ns, limit, quota)
            self.seen: set[Hashable] = set()

        def __len__(self) -> int:
            return len(self.seen)

        def take(self, key: Hashable, now_ns: int) -> None:
            self.seen.add(key)
            super().take(key, now_ns)


class BelievesTheClock(StormGuard):
    """Takes a clock that falls back at its word."""

    class line:  # noqa: N801 - as above
        """A line of time that is the clock's."""

        last_ns = offset_ns = 0

        def at(self, clock_ns: int) -> int:
            """Return the reading."""
            self.last_ns = clock_ns
            return clock_ns

        def stand_still(self, behind_ns: int) -> int:
            """Return the reading, although it is behind the last one."""
            return self.at(behind_ns)

        def at_reading(self, clock_ns: int | None, read: Any) -> int:  # noqa: ANN401 - a clock's method
            """Return the reading, or a new one."""
            return self.at(read() if clock_ns is None else clock_ns)

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a guard takes
        super().__init__(*args, **kwargs)
        self._line = self.line()  # type: ignore[assignment]


# -- the rows --------------------------------------------------------------------------------------------------------


def _row(number: str, says: str, trials: Any, *mutants: Kind) -> Row:  # noqa: ANN401 - one or several
    return Row(number=number, says=says, kind=StormGuard, trials=tuple(trials), mutants=mutants)


ROWS: tuple[Row, ...] = (
    _row(
        "SG1",
        "the window is exact, closed at both ends, and never holds too much",
        [explored(Exact), seeded(Exact), seeded(Exact, backend="trio"), cancelled(Exact)],
        HalfOpenWindow,
        FixedWindows,
    ),
    _row(
        "SG2",
        "each event has passed, been sampled or been rejected, and is counted once",
        [
            explored(Counted),
            seeded(Counted),
            seeded(Counted, backend="trio"),
            interleaved(Threads, (guard_module, window_module)),
        ],
        ForgetsRefusals,
        unlocked(StormGuard),
    ),
    _row(
        "SG3",
        "a storm begins with a refusal, and is over after it was calm for long enough",
        [explored(Calm), seeded(Calm), seeded(Calm, backend="trio"), cancelled(Calm)],
        CalmAtOnce,
        StormsAtTheLimit,
        Restless,
    ),
    _row(
        "SG4",
        "the verdict on a key is no other key's",
        [explored(Keys, first=2), seeded(Keys), seeded(Keys, backend="trio")],
        OneShare,
        Forgetful,
    ),
    _row(
        "SG5",
        "no more keys are remembered than the window holds, and forgetting grants nothing",
        [explored(Keys, first=2), seeded(Keys), seeded(Keys, backend="trio")],
        Hoards,
        Forgetful,
    ),
    _row(
        "SG6",
        "events of one instant come in any order; a clock that falls back stands still",
        [
            explored(Backward),
            explored(Backward, first=1, beside=[Backward.fall_back]),
            seeded(Backward, faults=[Faults(back=30.0, odds=3), Faults(stall=5.0, odds=3)]),
            seeded(Backward, faults=[Faults(back=30.0, odds=3)], backend="trio"),
        ],
        BelievesTheClock,
    ),
)
