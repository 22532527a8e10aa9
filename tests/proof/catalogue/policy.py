"""Policy, and the layers that it composes: PO1 to PO7."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs

from resilience import (
    Bulkhead,
    CircuitBreaker,
    ExponentialBackoff,
    Policy,
    RateLimiter,
    RejectedError,
    Retry,
    RetryBudget,
    Timeout,
    TimeoutExceededError,
    Verdict,
)
from resilience import retry_budget as budget_module
from resilience.machines import budget as budget_machine
from resilience.testing import Faults, ManualClock, Report
from tests.proof.programs import Program, Trial, cancelled, explored, interleaved, once, seeded
from tests.proof.rows import Row
from tests.proof.threaded import NoLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Clock, Permit
    from resilience.layer import Layer
    from tests.proof.programs import Budget, Kind, Tasks

__all__ = ["ROWS"]


@attrs.frozen(kw_only=True)
class Kit:
    """The classes that are composed; in a mutant, one of them has a bug."""

    policy: type[Policy] = Policy
    retry: type[Retry] = Retry
    timeout: type[Timeout] = Timeout
    bulkhead: type[Bulkhead] = Bulkhead
    budget: type[RetryBudget] = RetryBudget
    backoff: Any = ExponentialBackoff

    def __call__(self) -> Kit:
        """Return itself: it is what makes the layers of a program."""
        return self

    @property
    def __name__(self) -> str:
        """What the mutant is called."""
        changed: type[object] = next(value for value in attrs.astuple(self, recurse=False) if value not in _REAL)
        return changed.__name__


class DownError(Exception):
    """The callee is down."""


def steady(delay: float) -> ExponentialBackoff:
    """Return delays that are all the same."""
    return ExponentialBackoff(delay, 1.0, delay, jitter="none")


def retrying(kit: Kit, attempts: int, delay: float, clock: Clock, budget: RetryBudget | None = None) -> Retry:
    """Return a Retry whose delays are all the same, and whose dice are not the machine's."""
    return kit.retry(attempts, backoff=steady(delay), budget=budget, clock=clock, random=random.Random(0))


# -- PO1: how layers are nested does not matter ----------------------------------------------------------------------


class Nested(Program):
    """Calls through the same layers, nested in some way, and the trace of what becomes of them."""

    nest: ClassVar[Callable[[Kit, Layer, Layer, Layer], Policy]]
    traces: ClassVar[set[tuple[object, ...]]]

    def build(self, kind: Kind) -> None:
        """Make the layers, and nest them."""
        self.trace: list[object] = []
        layers = (
            Bulkhead(2, max_queue=1, clock=self.clock),
            RateLimiter(1, 1, max_wait=1.0, clock=self.clock),
            CircuitBreaker(1, 2.0, clock=self.clock),
        )
        self.call = type(self).nest(kind(), *layers).call

    async def work(self, name: str, error: Exception | None) -> None:
        """Note that it runs."""
        self.trace.append(("runs", name, self.clock.monotonic_ns()))
        await self.stage.pause()
        if error is not None:
            raise error

    async def ask(self, name: str, error: Exception | None = None) -> None:
        """Note how a call ends."""
        try:
            await self.call(self.work, name, error)
        except (DownError, RejectedError) as end:
            self.trace.append((type(end).__name__, name, self.clock.monotonic_ns()))
        else:
            self.trace.append(("ended", name, self.clock.monotonic_ns()))

    async def fails(self) -> None:
        """Fail, and come back."""
        await self.ask("a", DownError())
        await self.clock.sleep(2.0)
        await self.ask("b")

    async def succeeds(self) -> None:
        """Succeed, if it is let through."""
        await self.ask("c")

    def check(self) -> None:
        """Keep the trace."""
        type(self).traces.add(tuple(self.trace))

    tasks: ClassVar[Tasks] = (fails, succeeds, succeeds)


NESTS: dict[str, Callable[[Kit, Layer, Layer, Layer], Policy]] = {
    "flat": lambda kit, a, b, c: kit.policy(a, b, c),
    "left": lambda kit, a, b, c: kit.policy(kit.policy(a, b), c),
    "right": lambda kit, a, b, c: kit.policy(a, kit.policy(b, c)),
    "with the identity": lambda kit, a, b, c: kit.policy(kit.policy(), a, kit.policy(b), kit.policy(), c),
}


def nested(instrument: Callable[[type[Program]], Trial]) -> Trial:
    """Return the trial that runs the same calls through each nest, and compares what can become of them."""
    sample = instrument(Nested)

    def run(kind: Kind, budget: Budget) -> Report:
        reports: list[Report] = []
        found: dict[str, set[tuple[object, ...]]] = {}
        for name, nest in NESTS.items():
            found[name] = set()
            program = type(f"Nested, {name}", (Nested,), {"nest": staticmethod(nest), "traces": found[name]})
            reports.append(instrument(program).run(kind, budget))
            assert found[name] == found["flat"], f"PO1: nested {name}, other things can happen"
        return Report.total("Nested", reports)

    return Trial(sample.instrument, run, sample.draws * len(NESTS))


# -- PO2: how many attempts there are --------------------------------------------------------------------------------


class Attempts(Program):
    """PO2: Retry outside a breaker: each attempt counts; a breaker outside Retry: one outcome for all of them."""

    def build(self, kind: Kind) -> None:
        """Compose both orders."""
        kit = kind()
        self.inner = CircuitBreaker(100, clock=self.clock)
        self.outer = CircuitBreaker(100, clock=self.clock)
        self.each = kit.policy(retrying(kit, 3, 1.0, self.clock), self.inner)
        self.all = kit.policy(self.outer, kit.policy(retrying(kit, 2, 1.0, self.clock)))
        self.begun = {"each": 0, "all": 0}
        self.ended = {"each": 0, "all": 0}
        with suppress(ValueError):
            kit.policy(kit.retry(2), kit.retry(2))
            raise AssertionError("PO2: two Retry in one policy")

    async def work(self, name: str) -> None:
        """Fail."""
        self.begun[name] += 1
        await self.stage.pause()
        raise DownError

    async def ask_each(self) -> None:
        """Have each attempt counted."""
        with suppress(DownError):
            await self.each.call(self.work, "each")
        self.ended["each"] += 1

    async def ask_all(self) -> None:
        """Have all attempts counted as one."""
        with suppress(DownError):
            await self.all.call(self.work, "all")
        self.ended["all"] += 1

    def check(self) -> None:
        """Compare the attempts, and what the breakers heard of them."""
        each, both = self.inner.statistics(), self.outer.statistics()
        assert each.failed + each.cancelled == self.begun["each"], (
            "PO2: an attempt that the inner breaker did not hear of"
        )
        assert both.failed == self.ended["all"], "PO2: not one outcome for all the attempts"
        if not self.cancelled:
            assert self.begun["each"] == 3 * self.ended["each"], "PO2: not as many attempts as were asked for"
            assert self.begun["all"] == 2 * self.ended["all"], "PO2: not as many attempts as were asked for"

    tasks: ClassVar[Tasks] = (ask_each, ask_all, ask_each)


# -- PO3, PO5: timeouts and cancellations go through everything ------------------------------------------------------


class Whole(Program):
    """Every layer there is, around a callee that is slow, fails, or answers."""

    def build(self, kind: Kind) -> None:
        """Compose all of them."""
        kit = kind()
        self.bulkhead = kit.bulkhead(1, max_queue=2, clock=self.clock)
        self.limiter = RateLimiter(1, 1, max_wait=math.inf, clock=self.clock)
        self.breaker = CircuitBreaker(1, 2.0, clock=self.clock)
        self.policy = kit.policy(
            kit.timeout(5.0, clock=self.clock),
            retrying(kit, 4, 2.0, self.clock),
            self.bulkhead,
            self.limiter,
            self.breaker,
        )
        self.longest = 0.0
        self.running = 0

    async def work(self, seconds: float, error: Exception | None) -> None:
        """Take as long as that, and end like this."""
        self.running += 1
        try:
            await self.clock.sleep(seconds)
            if error is not None:
                raise error
        finally:
            self.running -= 1

    async def ask(self, seconds: float, error: Exception | None = None) -> None:
        """Call, and measure how long that takes."""
        begun = anyio.current_time()
        with suppress(DownError, RejectedError, TimeoutExceededError):
            await self.policy.call(self.work, seconds, error)
        self.longest = max(self.longest, anyio.current_time() - begun)

    async def hangs(self) -> None:
        """Hang."""
        await self.ask(100.0)

    async def fails(self) -> None:
        """Fail, again and again."""
        await self.ask(1.0, DownError())

    async def answers(self) -> None:
        """Answer in time, if it is let through."""
        await self.ask(0.5)

    def check(self) -> None:
        """Judge the time that a call took, and what is left of the calls."""
        assert self.longest < 5.0 + 1e-6, "PO3: a call took longer than its timeout"
        left = (self.running, self.bulkhead.statistics().in_use, self.bulkhead.statistics().waiting)
        assert left == (0, 0, 0), "PO5: a permit did not come back"
        assert self.limiter.statistics().waiting == self.breaker.statistics().in_use == 0, (
            "PO5: a permit did not come back"
        )

    tasks: ClassVar[Tasks] = (hangs, fails, answers)


# -- PO4: the budget -------------------------------------------------------------------------------------------------

RATIO, PER_SECOND, RESERVE_FOR = 0.5, 0.5, 2.0


class Budgeted(Program):
    """PO4: no more retries than the budget says, in any window, whoever shares it."""

    def build(self, kind: Kind) -> None:
        """Share a budget between those who call."""
        kit = kind()
        self.budget = kit.budget(RATIO, PER_SECOND, RESERVE_FOR, clock=self.clock)
        self.policy = kit.policy(retrying(kit, 4, 0.5, self.clock, self.budget))
        self.log: list[tuple[int, bool]] = []

    async def ask(self) -> None:
        """Fail, and be retried as far as that is paid for."""
        attempts = itertools.count()

        async def work() -> None:
            self.log.append((self.now_ns(), next(attempts) > 0))
            await self.stage.pause()
            raise DownError

        with suppress(DownError):
            await self.policy.call(work)

    def now_ns(self) -> int:
        """Return the instant, on the budget's own line."""
        now_ns: int = self.budget._line.at(self.clock.monotonic_ns())
        return now_ns

    def check(self) -> None:
        """Judge every window. A retry is paid for before its delay, which is therefore a part of it."""
        for first, last in itertools.combinations_with_replacement(range(len(self.log)), 2):
            window = self.log[first : last + 1]
            retries = sum(retry for _, retry in window)
            seconds = (window[-1][0] - window[0][0]) / 10**9 + 0.5
            # Those who wait for their delay just now have earned theirs before.
            earned = RATIO * (len(window) - retries + len(self.tasks)) + PER_SECOND * (seconds + RESERVE_FOR)
            assert retries <= earned + 1e-9, "PO4: more retries than the budget pays for"

    tasks: ClassVar[Tasks] = (ask, ask, ask)


class Spenders(Program):
    """PO4: three threads spend what is there, and no more."""

    def build(self, kind: Kind) -> None:
        """Make a budget that pays for two."""
        self.budget = kind().budget(1e-6, 1.0, 2.0, clock=self.clock)
        self.paid: list[bool] = []

    async def spend(self) -> None:
        """Spend twice."""
        for _ in range(2):
            self.paid.append(self.budget.try_spend())
            await self.stage.pause()

    def check(self) -> None:
        """Count."""
        assert sum(self.paid) == 2, "PO4: more was spent than there was, or less"

    tasks: ClassVar[Tasks] = (spend, spend, spend)


# -- PO6: plain code, asyncio and trio -------------------------------------------------------------------------------


CALLS = 8


class Script:
    """Outcomes that were written down, and the trace of what became of them, on a clock that moves by itself."""

    def __init__(self, kit: Kit, outcomes: list[bool]) -> None:
        self.clock = ManualClock(autojump=True)
        self.left = [*outcomes]
        self.trace: list[object] = []
        self.policy = kit.policy(
            kit.retry(3, backoff=ExponentialBackoff(1.0, jitter="none"), clock=self.clock),
            RateLimiter(1, 2, clock=self.clock),
            CircuitBreaker(3, 4.0, clock=self.clock),
        )

    def work(self) -> None:
        """Fail, or not."""
        self.note("runs")
        if not self.left.pop(0):
            raise DownError

    async def work_async(self) -> None:
        """Do the same."""
        self.work()

    def note(self, what: str) -> None:
        """Write down what happens, and when."""
        self.trace.append((what, self.clock.monotonic_ns()))

    def run_plain(self) -> list[object]:
        """Run it in plain code."""
        guarded = self.policy(self.work)
        for _ in range(CALLS):
            try:
                guarded()
            except (DownError, RejectedError) as error:
                self.note(type(error).__name__)
            else:
                self.note("ended")
        return self.trace

    async def run_async(self) -> list[object]:
        """Run it in an event loop."""
        guarded = self.policy(self.work_async)
        for _ in range(CALLS):
            try:
                await guarded()
            except (DownError, RejectedError) as error:
                self.note(type(error).__name__)
            else:
                self.note("ended")
        return self.trace


def is_the_same_everywhere(kind: Kind, seed: int) -> int:
    """PO6: the same outcomes on the same clock leave the same trace in plain code, on asyncio and on trio."""
    scripts = 20
    for number in range(scripts):
        dice = random.Random(seed + number)
        outcomes = [dice.random() < 0.4 for _ in range(3 * CALLS)]
        plain = Script(kind(), outcomes).run_plain()
        for backend in ("asyncio", "trio"):
            trace = anyio.run(Script(kind(), outcomes).run_async, backend=backend)
            assert trace == plain, f"PO6: plain code and {backend} differ"
    return 3 * scripts


# -- PO7: delays -----------------------------------------------------------------------------------------------------


def waits_as_it_should(kind: Kind, seed: int) -> int:
    """PO7: delays lie between 0 and the cap, after any number of attempts; full jitter is uniform, by Kolmogorov."""
    backoff = kind().backoff(0.1, 2.0, 30.0, jitter="full")
    dice = random.Random(seed)
    attempts = [*range(1, 60), 1_000, 10_000]
    for attempt in attempts:
        longest = min(30 * 10**9, 10**8 * 2 ** (min(attempt, 60) - 1))
        for u in (0.0, 0.5, 1 - 2**-53):
            try:
                delay_ns = backoff.delay_ns(attempt, u, 0)
            except OverflowError:
                raise AssertionError(f"PO7: no delay after attempt {attempt}") from None
            assert 0 <= delay_ns <= longest, f"PO7: {delay_ns} ns after attempt {attempt}"
    count = 2_000
    delays = sorted(backoff.delay_ns(20, dice.random(), 0) / (30 * 10**9) for _ in range(count))
    distance = max(max((place + 1) / count - share, share - place / count) for place, share in enumerate(delays))
    # Exceeded by chance once in a million.
    assert distance < math.sqrt(math.log(2 / 1e-6) / (2 * count)), f"PO7: not uniform, by {distance:.3f}"
    return 3 * len(attempts) + count


# -- mutants ---------------------------------------------------------------------------------------------------------


class TurnsNested(Policy):
    """Takes the layers of a nested policy in the other order."""

    def __init__(self, *layers: Layer, name: str = "") -> None:
        super().__init__(*layers, name=name)
        self._parts = tuple(part for layer in layers for part in reversed(layer.parts))


class LastIsOutermost(Policy):
    """Puts the last layer outermost."""

    def __init__(self, *layers: Layer, name: str = "") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(*reversed(layers), name=name)


class TakesTwo(Policy):
    """Lets two Retry multiply each other."""

    def __init__(self, *layers: Layer, name: str = "") -> None:
        first, *others = layers
        super().__init__(first, *(Policy(other) if isinstance(other, Retry) else other for other in others), name=name)


class OnceMore(Retry):
    """Makes one attempt more than it was told."""

    def __init__(self, attempts: int, **options: Any) -> None:  # noqa: ANN401 - whatever Retry takes
        super().__init__(attempts + 1, **options)


class Generous(Timeout):
    """Lets calls run for twice as long."""

    def __init__(self, seconds: float, *, clock: Clock) -> None:
        super().__init__(2 * seconds, clock=clock)


class KeepsPermits(Bulkhead):
    """Keeps the permit of a call that was cancelled."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict is not Verdict.CANCELLED:
            super().settle(permit, verdict)


class Squanders(RetryBudget):
    """Pays for every retry."""

    def try_spend(self) -> bool:
        """Pay."""
        return True


class UnlockedBudget(RetryBudget):
    """Has no lock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever a budget takes
        super().__init__(*args, **kwargs)
        self._lock = NoLock()  # type: ignore[assignment]


class HastyInPlainCode(Retry):
    """Does not wait in plain code."""

    def wrap_blocking(self, call_next: Any) -> Any:  # noqa: ANN401 - what Retry takes and returns
        """Try again at once."""
        return Retry(3, backoff=steady(1e-9), clock=self.clock).wrap_blocking(call_next)


class Grows(ExponentialBackoff):
    """Computes the delay before it looks at the cap."""

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - as a backoff has it
        """Return the delay."""
        return int(u * min(self.cap, self.base * self.factor ** (attempt - 1)) * 10**9)


class Uncapped(ExponentialBackoff):
    """Knows no cap."""

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - as above
        """Return the delay."""
        return int(u * self.base * self.factor ** (min(attempt, 100) - 1) * 10**9)


class Skewed(ExponentialBackoff):
    """Comes back early rather than late."""

    def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:
        """Return the delay."""
        return super().delay_ns(attempt, u * u, previous_ns)


# -- the rows --------------------------------------------------------------------------------------------------------

_REAL = attrs.astuple(Kit(), recurse=False)


def _row(number: str, says: str, trials: Any, *mutants: Kind) -> Row:  # noqa: ANN401 - one or several
    return Row(number=number, says=says, kind=Kit(), trials=tuple(trials), mutants=mutants)


ROWS: tuple[Row, ...] = (
    _row(
        "PO1",
        "an empty policy changes nothing, and nesting does not matter",
        [nested(lambda program: explored(program, first=2, cancels=0))],
        Kit(policy=TurnsNested),
    ),
    _row(
        "PO2",
        "as many attempts as the formula says; two Retry are refused",
        [explored(Attempts, first=2), seeded(Attempts), seeded(Attempts, backend="trio"), cancelled(Attempts)],
        Kit(policy=LastIsOutermost),
        Kit(policy=TakesTwo),
        Kit(retry=OnceMore),
    ),
    _row(
        "PO3",
        "a timeout bounds everything inside it, waits and delays included",
        [seeded(Whole, faults=[Faults()]), seeded(Whole, faults=[Faults()], backend="trio")],
        Kit(timeout=Generous),
        Kit(policy=LastIsOutermost),
    ),
    _row(
        "PO4",
        "no more retries than the budget pays for, in any window",
        [
            explored(Budgeted, first=2),
            seeded(Budgeted, faults=[Faults()]),
            seeded(Budgeted, faults=[Faults()], backend="trio"),
            interleaved(Spenders, [budget_module, budget_machine]),
        ],
        Kit(budget=Squanders),
        Kit(budget=UnlockedBudget),
    ),
    _row(
        "PO5",
        "a cancellation goes through all layers, and every permit comes back",
        [
            cancelled(Whole),
            cancelled(Whole, backend="trio"),
            seeded(Whole, faults=[Faults()]),
            seeded(Whole, faults=[Faults()], backend="trio"),
        ],
        Kit(bulkhead=KeepsPermits),
    ),
    _row(
        "PO6",
        "plain code, asyncio and trio leave the same trace",
        [once("side by side", is_the_same_everywhere)],
        Kit(retry=HastyInPlainCode),
    ),
    _row(
        "PO7",
        "delays lie between 0 and the cap, uniformly with full jitter, after any number of attempts",
        [once("by chance", waits_as_it_should)],
        Kit(backoff=Grows),
        Kit(backoff=Uncapped),
        Kit(backoff=Skewed),
    ),
)
