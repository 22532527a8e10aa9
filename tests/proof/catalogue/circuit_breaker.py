"""CircuitBreaker: CB1 to CB10."""

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
    CountWindow,
    FailureRate,
    Permit,
    RejectedError,
    Verdict,
)
from resilience import circuit_breaker as breaker_module
from resilience import circuits as circuits_module
from resilience.machines import breaker as machine_module
from resilience.machines import tripwires as tripwires_module
from resilience.machines.breaker import TRANSITIONS
from resilience.testing import Faults, History, ManualClock, Model, Operation, assert_linearizable
from tests.proof.programs import Program, cancelled, explored, interleaved, once, seeded
from tests.proof.rows import Row
from tests.proof.threaded import unlocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.proof.programs import Kind, Tasks

__all__ = ["ROWS"]

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState
RECOVERY = 10.0
RECOVERY_NS = 10 * 10**9
FAILS, PASSES = True, False


class DownError(Exception):
    """The callee is down."""


class TellsNothingError(Exception):
    """An error that says nothing about the callee."""


class KilledError(BaseException):
    """Ends a call as nothing should."""


class Circuit(Program):
    """A circuit that opens at the first failure, and lets one probe through."""

    failures: ClassVar[int] = 1

    def build(self, kind: Kind) -> None:
        """Make the breaker, and the list of the calls that run."""
        self.breaker: Any = kind(
            self.failures,
            RECOVERY,
            is_failure=is_failure,
            on_state_change=self.changed,
            clock=self.clock,
        )
        self.changes: list[tuple[CircuitState, CircuitState]] = []
        self.running: list[tuple[int, int]] = []

    def changed(self, _: object, old: CircuitState, new: CircuitState) -> None:
        """Note a change."""
        self.changes.append((old, new))

    @property
    def machine(self) -> Any:  # noqa: ANN401 - of the real one or of a mutant
        """The breaker's rules."""
        return self.breaker._machine

    async def work(self, end: BaseException | None = None) -> None:
        """Run, for a while, and end in some way."""
        me = (self.machine.generation, self.breaker._line.last_ns)
        self.running.append(me)
        try:
            await self.stage.pause()
            if end is not None:
                raise end
        finally:
            self.running.remove(me)

    async def call(self, end: BaseException | None = None) -> None:
        """Call through the breaker."""
        with suppress(DownError, CircuitOpenError, TellsNothingError, KilledError):
            await self.breaker.call(self.work, end)

    async def fail(self) -> None:
        """Open the circuit, and probe it when it is time."""
        await self.call(DownError())
        await self.clock.sleep(RECOVERY)
        await self.call()

    async def probe(self) -> None:
        """Wait until the circuit may be open no longer, and probe it."""
        await self.clock.sleep(RECOVERY)
        await self.call()

    async def kill(self) -> None:
        """Probe it by a call that is killed."""
        await self.clock.sleep(RECOVERY)
        await self.call(KilledError())

    tasks: ClassVar[Tasks] = (fail, probe, probe)


def is_failure(error: Exception) -> bool:
    """Tell whether an error counts."""
    return not isinstance(error, TellsNothingError)


class OneProbe(Circuit):
    """CB1: at most one probe at a time, unless its lease has run out."""

    def invariant(self) -> None:
        """Count the probes of this half-open period whose leases go on."""
        machine = self.machine
        if machine.state is HALF_OPEN:
            now_ns = self.breaker._line.last_ns
            probes = [
                started for generation, started in self.running
                if generation == machine.generation and now_ns - started < RECOVERY_NS
            ]  # fmt: skip
            assert len(probes) <= 1, "CB1: two probes at a time"


class ProbesEnd(Circuit):
    """CB2: however a probe ends, its place is free again; one that never ends gives way to others."""

    async def stream(self) -> None:
        """Probe it by a stream that is closed in the middle."""
        await self.clock.sleep(RECOVERY)

        @self.breaker  # type: ignore[untyped-decorator]
        async def numbers() -> AsyncIterator[int]:
            while True:
                yield 1
                await self.stage.pause()

        made = numbers()
        with suppress(CircuitOpenError):
            async for _ in made:
                break
        await made.aclose()

    async def forget(self) -> None:
        """Take a permit, and never settle it; then the circuit must not be half-open for ever."""
        await self.clock.sleep(RECOVERY)
        permit = self.breaker.try_admit()
        if permit is None or self.breaker.state is not HALF_OPEN:
            return
        generation = permit.generation
        await self.clock.sleep(RECOVERY)
        assert self.breaker.state is not HALF_OPEN or self.machine.generation != generation, "CB2: half-open for ever"

    def check(self) -> None:
        """Judge whether a probe is let through, now that none runs."""
        forgotten = self.forget.__func__ in self.tasks  # type: ignore[attr-defined]
        assert forgotten or self.breaker.statistics().in_use == 0, "CB2: the place of a probe is lost"


class Killed(ProbesEnd):
    """Probes that are killed, cancelled and closed."""

    tasks = (Circuit.fail, Circuit.kill, ProbesEnd.stream)


class Forgotten(ProbesEnd):
    """A probe that nobody settles."""

    tasks = (Circuit.fail, ProbesEnd.forget, Circuit.probe)


# -- beside a book ---------------------------------------------------------------------------------------------------


@attrs.define
class Page:
    """What happens between two changes of the state."""

    state: CircuitState
    reopens_at: int = 0
    failures: int = 0
    leases: list[int] = attrs.Factory(list)


class Book:
    """What a circuit is that opens after so many failures in a row, and lets one probe through, which closes it."""

    def __init__(self, failures: int) -> None:
        self.threshold = failures
        self.page = Page(CLOSED)

    def look(self, now: int) -> CircuitState:
        """Turn the page, if it is time."""
        while True:
            if self.page.state is OPEN and self.page.reopens_at <= now:
                self.page = Page(HALF_OPEN)
            elif self.page.leases and self.page.leases[0] <= now:
                self.page = Page(OPEN, self.page.leases[0] + RECOVERY_NS)
            else:
                return self.page.state

    def admit(self, now: int) -> Page | None:
        """Return the page that a call begins on; None if it is refused."""
        state = self.look(now)
        if state is HALF_OPEN and not self.page.leases:
            self.page.leases = [now + RECOVERY_NS]
            return self.page
        return self.page if state is CLOSED else None

    def settle(self, page: Page, now: int, *, failed: bool) -> None:
        """Count how a call ended, if its page is still open."""
        self.look(now)
        if page is not self.page:
            return
        if failed and (page.state is HALF_OPEN or page.failures + 1 == self.threshold):
            self.page = Page(OPEN, now + RECOVERY_NS)
        elif failed:
            page.failures += 1
        elif page.state is HALF_OPEN:
            self.page = Page(CLOSED)
        else:
            page.failures = 0


class Beside(Circuit):
    """CB3, CB5, CB8: the breaker is what the book says, whenever anybody looks."""

    failures = 2

    def build(self, kind: Kind) -> None:
        """Open the book, too."""
        super().build(kind)
        self.book = Book(self.failures)

    def now_ns(self) -> int:
        """Return the instant, by the breaker's own line."""
        line: int = self.breaker._line.at(self.clock.monotonic_ns())
        return line

    async def admitted(self, *ends: bool) -> None:
        """Let calls be admitted, and settle them after others had their turn."""
        for failed in ends:
            page = self.book.admit(self.now_ns())
            permit = self.breaker.try_admit()
            assert (permit is None) == (page is None), "CB5: admitted against the book"
            await self.stage.pause()
            if permit is not None and page is not None:
                self.book.settle(page, self.now_ns(), failed=failed)
                (permit.failure if failed else permit.success)()
                self.same()

    def same(self) -> None:
        """Compare the two."""
        state = self.book.look(self.now_ns())
        assert self.breaker.state is state, "CB3: not the state that the book has"
        assert state is not CLOSED or self.breaker.failure_count == self.book.page.failures, "CB3: not the book's count"

    async def failing(self) -> None:
        """Fail twice, and once more at the very instant at which a probe may fail."""
        await self.admitted(FAILS, FAILS)
        await self.clock.sleep(RECOVERY)
        await self.admitted(FAILS)

    async def late(self) -> None:
        """Have a call under way while the state changes, which then succeeds."""
        await self.admitted(PASSES)
        await self.stage.pause()
        await self.admitted(PASSES)

    async def hasty(self) -> None:
        """Come a nanosecond before it is time, and again when it is."""
        await self.admitted(FAILS)
        await self.clock.sleep(RECOVERY - 1e-9)
        await self.admitted(PASSES)
        await self.clock.sleep(1e-9)
        await self.admitted(PASSES)

    def invariant(self) -> None:
        """Compare them after every step."""
        self.same()

    check = invariant
    tasks: ClassVar[Tasks] = (failing, hasty, late)


class Backward(Beside):
    """CB8: the book goes by the time that has passed, whatever the clock shows."""

    failures = 1
    back_ns = 0

    def now_ns(self) -> int:
        """Return an instant of a time that never goes wrong."""
        return self.clock.monotonic_ns() + self.back_ns

    def fall_back(self) -> None:
        """Let the clock fall back far. The breaker has seen it before, or the step would hide some time."""
        assert isinstance(self.clock, ManualClock)
        self.same()
        self.clock.step_back(1000)
        self.back_ns += 1000 * 10**9
        self.same()

    def leap(self) -> None:
        """Let a long time pass at once."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(10**6)

    tasks = (Beside.hasty,)


class Changes(Circuit):
    """CB4: only legal changes, each told once and in order."""

    def invariant(self) -> None:
        """Follow what was told from the beginning."""
        state = CLOSED
        for old, new in self.changes:
            assert old is state, "CB4: told out of order, twice, or not at all"
            assert (old, new) in TRANSITIONS, "CB4: there is no such change"
            state = new

    def check(self) -> None:
        """Judge whether everything was told, and nothing else."""
        self.invariant()
        statistics = self.breaker.statistics()
        assert Counter(self.changes) == statistics.transitions, "CB4: counted otherwise than told"
        assert ([CLOSED, *(new for _, new in self.changes)])[-1] is statistics.state, "CB4: not told of the last one"


class Rude(Changes):
    """CB9: a listener that uses the breaker and then raises; told all the same, and in order."""

    def changed(self, _: object, old: CircuitState, new: CircuitState) -> None:
        """Note a change, use the breaker, and raise."""
        super().changed(_, old, new)
        if new is OPEN and len(self.changes) < 5:
            self.breaker.reset()
        assert self.breaker.state in CircuitState
        raise DownError


class Counted(Circuit):
    """CB7: failures are what counts as failures, and nothing else."""

    failures = 100

    def build(self, kind: Kind) -> None:
        """Begin to count."""
        super().build(kind)
        self.ended: Counter[str] = Counter()

    async def ending(self, *ends: BaseException | None) -> None:
        """Call, with these ends."""
        for end in ends:
            name = type(end).__name__
            try:
                await self.breaker.call(self.work, end)
            except (DownError, RejectedError, TellsNothingError):
                pass
            except BaseException:
                name = "cancelled"
                raise
            finally:
                self.ended[name] += 1

    async def fails(self) -> None:
        """Fail, and be excluded."""
        await self.ending(DownError(), TellsNothingError())

    async def rejected(self) -> None:
        """Be refused further inside, and fail."""
        await self.ending(RejectedError("inner"), DownError())

    async def succeeds(self) -> None:
        """Succeed."""
        await self.ending(None, None)

    def invariant(self) -> None:
        """Compare the counts."""
        seen = self.breaker.statistics()
        ended = self.ended
        assert seen.failed == ended["DownError"], "CB7: not the failures that there were"
        assert seen.succeeded == ended["NoneType"], "CB7: not the successes that there were"
        assert seen.ignored == ended["RejectedError"] + ended["TellsNothingError"], "CB7: not what says nothing"
        assert seen.cancelled == ended["cancelled"], "CB7: not the cancellations that there were"

    check = invariant
    tasks = (fails, rejected, succeeds)


# -- threads ---------------------------------------------------------------------------------------------------------


class Threads(Program):
    """CB6: permits, outcomes, resets and looks from three threads come to what one after the other could."""

    def build(self, kind: Kind) -> None:
        """Make a breaker that stays open while this lasts."""
        self.breaker: Any = kind(2, 1e6, clock=self.clock)
        self.history = History()

    async def fail(self, name: str) -> None:
        """Let a call fail."""
        with self.history.operation("admit", name) as call:
            permit = self.breaker.try_admit()
            call.result = permit is not None
        await self.stage.pause()
        if permit is not None:
            with self.history.operation("fail", name):
                permit.failure()
        with self.history.operation("look") as call:
            call.result = self.breaker.state

    async def first(self) -> None:
        """Fail."""
        await self.fail("first")

    async def second(self) -> None:
        """Fail."""
        await self.fail("second")

    async def resets(self) -> None:
        """Close the circuit by hand."""
        await self.stage.pause()
        with self.history.operation("reset"):
            self.breaker.reset()
        with self.history.operation("look") as call:
            call.result = self.breaker.state

    def check(self) -> None:
        """Judge the history."""
        assert_linearizable(self.history, Calls())

    tasks: ClassVar[Tasks] = (first, second, resets)


#: The failures in a row, the generation, and the generations of the calls under way.
Under: TypeAlias = "tuple[int, int, frozenset[tuple[object, int]]]"


class Calls(Model[Under]):
    """A circuit that opens at the second failure in a row, and stays open until it is reset."""

    def initial(self) -> Under:
        """Nothing has happened."""
        return 0, 0, frozenset()

    def apply(self, state: Under, operation: Operation) -> Iterable[Under]:
        """Do one operation."""
        failures, generation, calls = state
        if operation.name == "admit":
            admitted = failures < 2
            if not admitted:
                return [state] if operation.result is False else []
            under = calls | {(operation.arguments[0], generation)}
            return [(failures, generation, under)] if operation.result is True else []
        if operation.name == "fail":
            ((name, since),) = {call for call in calls if call[0] == operation.arguments[0]}
            left = calls - {(name, since)}
            if since != generation:
                return [(failures, generation, left)]
            return [(failures + 1, generation + (failures == 1), left)]
        if operation.name == "reset":
            return [(0, generation + 1, calls)]
        return [state] if operation.result is (OPEN if failures == 2 else CLOSED) else []


# -- by chance -------------------------------------------------------------------------------------------------------

RATE, WINDOW, CALLS = 0.2, 20, 30


def seldom_opens(kind: Kind, seed: int) -> int:
    """CB10: calls that fail at random, well below the threshold, open the circuit no more often than the bound says."""
    dice = random.Random(seed)
    breaker: Any = kind(trip=FailureRate(0.5, CountWindow(WINDOW), min_calls=WINDOW), clock=ManualClock())
    opened = 0
    circuits = 2_000
    for _ in range(circuits):
        breaker.reset()
        for _ in range(CALLS):
            permit = breaker.try_admit()
            if permit is None:
                opened += 1
                break
            (permit.failure if dice.random() < RATE else permit.success)()
    # Chernoff: a window holds half failures with a probability of at most exp(-n D(1/2 || p)).
    divergence = 0.5 * math.log(0.5 / RATE) + 0.5 * math.log(0.5 / (1 - RATE))
    bound = math.exp(-WINDOW * divergence) * (CALLS - WINDOW + 1) * circuits
    assert opened <= bound, f"CB10: {opened} of {circuits} circuits opened, {bound:.0f} at most"
    return circuits


# -- mutants ---------------------------------------------------------------------------------------------------------


class _Altered(CircuitBreaker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a breaker takes
        super().__init__(*args, **kwargs)
        self.alter()

    def alter(self) -> None:
        """Put the bug in."""
        raise NotImplementedError


class Floods(_Altered):
    """Lets everybody probe a circuit that is half-open."""

    def alter(self) -> None:
        self._machine.probe_limit = 100


class KeepsProbes(CircuitBreaker):
    """Forgets that a cancelled probe has to give back its place."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict is not Verdict.CANCELLED:
            super().settle(permit, verdict)


class EternalProbes(_Altered):
    """Waits for ever for a probe that nobody settles."""

    def alter(self) -> None:
        self._machine.probe_for_ns = 10**30


class NoGenerations(CircuitBreaker):
    """Counts an outcome whenever it comes."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        permit.generation = self._machine.generation
        super().settle(permit, verdict)


class TellsTwice(CircuitBreaker):
    """Tells of every change twice."""

    def _announce(self) -> None:
        changes = list(self._machine.changes)
        super()._announce()
        self._machine.changes += changes
        super()._announce()


class Hasty(_Altered):
    """Lets a probe through a nanosecond too early."""

    def alter(self) -> None:
        self._machine.recovery_ns -= 1


class CountsAll(CircuitBreaker):
    """Takes whatever goes wrong for a failure."""

    def judge_exception(self, exception: BaseException) -> Verdict:  # noqa: ARG002 - that is the bug
        return Verdict.FAILURE


class BelievesTheClock(_Altered):
    """Waits until a clock that fell back has caught up."""

    class line:  # noqa: N801 - it stands for an attribute
        """A line of time that is the clock's."""

        last_ns = offset_ns = 0

        def at(self, clock_ns: int) -> int:
            """Return the reading."""
            self.last_ns = clock_ns
            return clock_ns

        def at_reading(self, clock_ns: int | None, read: Any) -> int:  # noqa: ANN401 - a clock's method
            """Return the reading, or a new one."""
            return self.at(read() if clock_ns is None else clock_ns)

    def alter(self) -> None:
        self._line = self.line()  # type: ignore[assignment]


class TellsUnderTheLock(CircuitBreaker):
    """Tells listeners before the lock is free."""

    def _announce(self) -> None:
        super()._announce()
        self._events.drain()


class Jumpy(_Altered):
    """Judges by the first call."""

    def alter(self) -> None:
        self._machine.conditions = (FailureRate(0.5, CountWindow(WINDOW), min_calls=1),)
        self.reset()


# -- the rows --------------------------------------------------------------------------------------------------------

_RULES = (machine_module, tripwires_module)
_WATCHED = (breaker_module, circuits_module, *_RULES)


def _row(number: str, says: str, trials: Any, *mutants: Kind) -> Row:  # noqa: ANN401 - one or several
    return Row(number=number, says=says, kind=CircuitBreaker, trials=tuple(trials), mutants=mutants)


ROWS: tuple[Row, ...] = (
    _row(
        "CB1",
        "at most as many probes at a time as are allowed",
        [explored(OneProbe, first=2), seeded(OneProbe), seeded(OneProbe, backend="trio"), cancelled(OneProbe)],
        Floods,
    ),
    _row(
        "CB2",
        "a probe that ends in any way, or never, leaves the circuit usable",
        [
            explored(Killed, first=2),
            explored(Forgotten, first=2),
            seeded(Killed, faults=[Faults()]),
            cancelled(Killed),
            cancelled(Killed, backend="trio"),
        ],
        KeepsProbes,
        EternalProbes,
    ),
    _row(
        "CB3",
        "an outcome from before the last change changes nothing",
        [explored(Beside, first=2), seeded(Beside), seeded(Beside, backend="trio")],
        NoGenerations,
    ),
    _row(
        "CB4",
        "only legal changes, each told once and in order",
        [explored(Changes, first=2), seeded(Changes), cancelled(Changes)],
        TellsTwice,
    ),
    _row(
        "CB5",
        "nothing runs while the circuit is open, and a probe may as soon as it is time",
        [explored(Beside, first=2), seeded(Beside), seeded(Beside, backend="trio"), cancelled(Beside)],
        Hasty,
    ),
    _row(
        "CB6",
        "permits and outcomes from several threads are linearizable",
        [interleaved(Threads, _RULES)],
        unlocked(CircuitBreaker),
    ),
    _row(
        "CB7",
        "rejections, excluded errors and cancellations are no failures",
        [explored(Counted, first=2), seeded(Counted), cancelled(Counted), cancelled(Counted, backend="trio")],
        CountsAll,
    ),
    _row(
        "CB8",
        "a clock that falls back keeps no circuit open; a leap opens it to one probe",
        [
            explored(Backward, beside=[Backward.fall_back]),
            explored(Backward, beside=[Backward.leap]),
            seeded(OneProbe, faults=[Faults(forward=1e6, odds=3)]),
        ],
        BelievesTheClock,
    ),
    _row(
        "CB9",
        "a listener that raises or uses the breaker harms nobody",
        [interleaved(Rude, _WATCHED), explored(Rude, first=2), seeded(Rude)],
        TellsUnderTheLock,
    ),
    _row(
        "CB10",
        "failures well below the threshold open the circuit no more often than chance allows",
        [once("by chance", seldom_opens)],
        Jumpy,
    ),
)
