"""RateLimiter: RL1 to RL11. RL12 is about guards that share their state through a server."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import anyio

from resilience import RateLimiter
from resilience import rate_limiter as limiter_module
from resilience import turns as turns_module
from resilience.machines import token_bucket as bucket_module
from resilience.machines.token_bucket import TokenBucket
from resilience.testing import Faults, History, ManualClock, Model, Operation, assert_linearizable
from tests.proof.programs import Program, cancelled, explored, interleaved, seeded
from tests.proof.rows import Row
from tests.proof.threaded import unlocked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilience.clock import Clock, MonotoneLine
    from resilience.parking import TaskWaiter, Waiter
    from resilience.turns import Reserved
    from tests.proof.programs import Kind, Tasks

__all__ = ["ROWS"]

RATE, CAPACITY = 1, 2


class Ledger:
    """A bucket behind a counter: it notes what is taken from it and what comes back, and does what the bucket does."""

    #: So that the limiter's short cut is not taken, which would pass the counter by.
    plain = False

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        # Worked out anew, so that a bucket with a mistake in it is not believed.
        self.burst = CAPACITY * bucket.per_token
        self.taken: list[tuple[int, int]] = []
        """What was taken and is not given back: instants and units."""
        self.level = Fraction(self.burst)
        self.last_ns = bucket.tat // bucket.per_nanosecond

    def __getattr__(self, name: str) -> object:
        return getattr(self.bucket, name)

    @property
    def tat(self) -> int:
        """The bucket's own."""
        return self.bucket.tat

    @tat.setter
    def tat(self, value: int) -> None:
        self.bucket.tat = value

    def take(self, now_ns: int, units: int) -> bool:
        """Take, and note it if there was enough."""
        admitted = self.bucket.take(now_ns, units)
        if admitted:
            self.flow(now_ns)
            self.level -= units
            self.taken.append((now_ns, units))
        return admitted

    def give_back(self, units: int) -> int:
        """Give back, and note it."""
        returned = self.bucket.give_back(units)
        self.level += returned
        self.taken.remove(next(entry for entry in reversed(self.taken) if entry[1] == units))
        return returned

    def flow(self, now_ns: int) -> None:
        """Let flow in what has come by now."""
        self.level = min(Fraction(self.burst), self.level + (now_ns - self.last_ns) * self.bucket.per_nanosecond)
        self.last_ns = now_ns

    def excess(self) -> int:
        """Return how much more than the capacity and what flowed in was taken in the worst interval: O(n)."""
        worst = held = previous = 0
        for now_ns, units in self.taken:
            held = max(0, held - (now_ns - previous) * self.bucket.per_nanosecond) + units
            previous = now_ns
            worst = max(worst, held - self.burst)
        return worst


class Crowd(Program):
    """Three tasks that want more than there is, and time that passes."""

    def build(self, kind: Kind) -> None:
        """Make the limiter and put its ledger in."""
        self.limiter: Any = kind(RATE, CAPACITY, clock=self.clock)
        self.ledger = Ledger(self.limiter._bucket)
        self.limiter._bucket = self.ledger
        self.had: list[float] = []

    async def acquire(self, cost: float, max_wait: float = math.inf) -> bool:
        """Acquire, and note what was had."""
        had: bool = await self.limiter.acquire(cost, max_wait=max_wait)
        if had:
            self.had.append(cost)
        assert had or max_wait < math.inf, "RL7: who waits for ever is refused"
        return had

    async def two(self) -> None:
        """Want it all."""
        await self.acquire(2)

    async def one_and_more(self) -> None:
        """Want half, and half again if it is there."""
        await self.acquire(1)
        await self.stage.pause()
        if self.limiter.try_acquire(1):
            self.had.append(1)

    async def one_and_a_half(self) -> None:
        """Want most of it, having let others go first."""
        await self.stage.pause()
        await self.acquire(1.5)

    tasks: ClassVar[Tasks] = (two, one_and_more, one_and_a_half)


class Bound(Crowd):
    """RL1: no interval admits more than the capacity and what flows in, to the unit."""

    def invariant(self) -> None:
        """Judge every interval."""
        assert self.ledger.excess() == 0, "RL1: more was admitted than there can be"

    check = invariant


class ForwardJump(Crowd):
    """RL4: a leap of time fills the bucket and no more."""

    def invariant(self) -> None:
        """Judge the level, and every interval."""
        assert self.ledger.excess() == 0, "RL4: more was admitted than there can be"
        assert self.limiter.available <= CAPACITY, "RL4: a leap of time overfills the bucket"

    def leap(self) -> None:
        """Let a long time pass at once."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(10**6)

    tasks = (Crowd.two, Crowd.one_and_more)
    check = invariant


class TooLarge(Crowd):
    """RL2: costs add up, and one that can never fit is refused at once, whoever waits."""

    async def never(self) -> None:
        """Want more than there can be."""
        for _ in range(2):
            coroutine = self.limiter.acquire(CAPACITY + 0.5, max_wait=math.inf)
            try:
                coroutine.send(None)
            except ValueError:
                pass
            except StopIteration:
                raise AssertionError("RL2: what can never fit was admitted") from None
            else:
                coroutine.close()
                raise AssertionError("RL2: what can never fit waits")
            await self.stage.pause()

    def invariant(self) -> None:
        """Judge every interval, in units."""
        assert self.ledger.excess() == 0, "RL2: the costs add up to more than there can be"

    tasks = (Crowd.two, never, Crowd.one_and_a_half)
    check = invariant


class BackwardClock(Crowd):
    """RL3: a clock that falls back mints nothing and strands nobody."""

    def build(self, kind: Kind) -> None:
        """Start to measure the time that has really passed."""
        super().build(kind)
        self.back_ns = 0
        self.begun_ns = self.elapsed_ns()

    def elapsed_ns(self) -> int:
        """Return an instant of a time that never goes wrong."""
        if isinstance(self.clock, ManualClock):
            return self.clock.monotonic_ns() + self.back_ns
        return round(anyio.current_time() * 10**9)

    def fall_back(self) -> None:
        """Let the clock fall back far."""
        assert isinstance(self.clock, ManualClock)
        # It has been seen before, or the step would hide some time that has passed.
        assert self.limiter.available >= 0
        self.clock.step_back(1000)
        self.back_ns += 1000 * 10**9

    def invariant(self) -> None:
        """Judge what was admitted, and how long that took, by the time that has passed."""
        passed_ns = self.elapsed_ns() - self.begun_ns
        admitted = sum(units for _, units in self.ledger.taken)
        assert admitted <= self.ledger.burst + passed_ns * self.ledger.bucket.per_nanosecond, "RL3: minted"
        assert passed_ns < 500 * 10**9, "RL3: stranded"

    tasks = (Crowd.two, Crowd.one_and_more)
    check = invariant


class Fifo(Crowd):
    """RL5: nobody is served while somebody waits who came before."""

    def build(self, kind: Kind) -> None:
        """Begin the list of those who came."""
        super().build(kind)
        self.came: list[float] = []

    async def acquire(self, cost: float, max_wait: float = math.inf) -> bool:
        """Note who came, and look at the queue when served. Costs differ, so they tell who is who."""
        self.came.append(cost)
        had = await super().acquire(cost, max_wait)
        waiting = [waiter.value for waiter in self.limiter._queue]
        earlier = self.came[: self.came.index(cost)]
        assert not set(waiting) & set(earlier), "RL5: overtaken"
        return had

    async def barge(self) -> None:
        """Try one's luck, while others wait."""
        for _ in range(2):
            await self.stage.pause()
            if self.limiter.try_acquire(0.5):
                assert not len(self.limiter._queue), "RL5: overtaken by a newcomer"

    async def one(self) -> None:
        """Want half."""
        await self.acquire(1)

    tasks: ClassVar[Tasks] = (Crowd.two, one, barge)


class FifoOfThree(Fifo):
    """The same with more of them, for schedules that are drawn."""

    tasks = (Crowd.two, Crowd.one_and_a_half, Fifo.one, Fifo.barge)


class Quiescence(Crowd):
    """RL6, RL7: whoever waits is served in the end; a cancelled one takes nothing, and the others go on."""

    def check(self) -> None:
        """Judge what is left: nobody waits, and what was taken is what was had."""
        assert self.limiter.statistics().waiting == 0, "RL6: somebody still waits"
        units = sorted(self.ledger.bucket.units(cost) for cost in self.had)
        assert sorted(units for _, units in self.ledger.taken) == units, "RL7: tokens of a cancelled one are gone"


class Balance(Crowd):
    """RL8: what is in the bucket is what was in it, plus what flowed in, less what was taken and not given back."""

    def invariant(self) -> None:
        """Judge the balance as of now."""
        now_ns = self.limiter._line.at(self.clock.monotonic_ns())
        self.ledger.flow(now_ns)
        bucket = self.ledger.bucket
        assert self.ledger.burst - bucket._debt(now_ns) == self.ledger.level, "RL8: the ledger does not balance"

    check = invariant


class Threads(Program):
    """RL9: trying and acquiring from three threads at once comes to what one after the other could."""

    def build(self, kind: Kind) -> None:
        """Make a limiter that gets nothing more while this lasts."""
        self.limiter: Any = kind(1e-9, 4, clock=self.clock)
        self.history = History()

    async def tries(self) -> None:
        """Try for one, and for two."""
        for cost in (1, 2):
            with self.history.operation("try", cost) as call:
                call.result = self.limiter.try_acquire(cost)
            await self.stage.pause()

    async def acquires(self) -> None:
        """Acquire without waiting."""
        for cost in (2, 1):
            with self.history.operation("acquire", cost) as call:
                call.result = await self.limiter.acquire(cost, max_wait=0.0)
            await self.stage.pause()

    def check(self) -> None:
        """Judge the history."""
        assert_linearizable(self.history, Tokens())

    tasks: ClassVar[Tasks] = (tries, acquires, tries)


class Tokens(Model[int]):
    """So many tokens, and no more come."""

    def initial(self) -> int:
        """Four."""
        return 4

    def apply(self, state: int, operation: Operation) -> Iterable[int]:
        """Take what there is, or nothing."""
        (cost,) = operation.arguments
        assert isinstance(cost, int)
        enough = state >= cost
        if not operation.known:
            return [state - cost] if enough else [state]
        return [state - cost if enough else state] if operation.result is enough else []


class OnTime(Crowd):
    """RL10, RL11: everybody is told at once, or served at the very instant that the queue before them makes it."""

    def build(self, kind: Kind) -> None:
        """Begin the sum of what is wanted."""
        super().build(kind)
        self.wanted = Fraction(0)
        self.begun_ns = self.clock.monotonic_ns()

    async def acquire(self, cost: float, max_wait: float = math.inf) -> bool:
        """Acquire, knowing when that must end."""
        due_in = max(Fraction(0), self.wanted + Fraction(cost) - CAPACITY) / RATE
        if due_in > max_wait:
            had = bool(await self.limiter.acquire(cost, max_wait=max_wait))
            # Somebody before may have been cancelled meanwhile.
            assert self.cancelled or (not had and self._passed() == 0), "RL10: not refused at once"
            return had
        self.wanted += Fraction(cost)
        had = await super().acquire(cost, max_wait)
        assert had, "RL10: refused, although it would have been in time"
        assert self._passed() <= due_in, "RL10, RL11: later than predicted"
        assert self.cancelled or self._passed() == due_in, "RL11: not when the tokens were there"
        return had

    def _passed(self) -> Fraction:
        return Fraction(self.clock.monotonic_ns() - self.begun_ns, 10**9)

    async def impatient(self) -> None:
        """Want it soon."""
        await self.acquire(1, 1.0)

    async def patient(self) -> None:
        """Want it within four seconds."""
        await self.acquire(2, 4.0)

    tasks = (Crowd.two, impatient, patient, Crowd.two)


# -- mutants ---------------------------------------------------------------------------------------------------------


class _WithBucket(RateLimiter):
    bucket: type[TokenBucket]

    def __init__(self, rate: float, capacity: float, *, clock: Clock) -> None:
        super().__init__(rate, capacity, clock=clock)
        self._bucket = self.bucket(rate, capacity, self._line.last_ns)


class OneUnitMore(_WithBucket):
    """Admits what is one unit too much."""

    class bucket(TokenBucket):  # noqa: N801 - it stands for an attribute
        def _configure(self, rate: float, capacity: float) -> None:
            super()._configure(rate, capacity)
            self.burst += 1


class RefundsAll(_WithBucket):
    """Gives back all of a grant, also what others could have had only because of it."""

    class bucket(TokenBucket):  # noqa: N801 - as above
        def give_back(self, units: int) -> int:
            self._outstanding -= 1
            self.tat -= units
            return units


class Overfills(_WithBucket):
    """Lets flow in what there is no room for."""

    class bucket(TokenBucket):  # noqa: N801 - as above
        def take(self, now_ns: int, units: int) -> bool:
            if self.tat + units - now_ns * self.per_nanosecond > self.burst:
                return False
            self.tat += units
            return True


class Clamps(RateLimiter):
    """Takes what is too large for as much as there can be."""

    def _units(self, cost: float) -> int:
        return min(self._checked_units(cost), self._bucket.burst)

    _take = RateLimiter._take


class NeverTooLarge(RateLimiter):
    """Lets wait what can never fit."""

    def _units(self, cost: float) -> int:
        return self._checked_units(cost)


class _WithLine(RateLimiter):
    def __init__(self, rate: float, capacity: float, *, clock: Clock) -> None:
        super().__init__(rate, capacity, clock=clock)
        self._line = self.line(self._line)  # type: ignore[assignment]

    class line:  # noqa: N801 - as above
        """A line of time with a bug."""

        offset_ns = 0

        def __init__(self, line: MonotoneLine) -> None:
            self.last_ns = line.last_ns

        def at(self, clock_ns: int) -> int:
            """Return the instant for a reading."""
            return self.stand_still(clock_ns) if clock_ns < self.last_ns else self.go_on(clock_ns)

        def go_on(self, clock_ns: int) -> int:
            """Return the instant for a reading that is no step back."""
            self.last_ns = clock_ns
            return clock_ns

        def stand_still(self, clock_ns: int) -> int:
            """Return the instant for one that is."""
            raise NotImplementedError


class CatchesUp(_WithLine):
    """Waits until a clock that fell back has caught up."""

    class line(_WithLine.line):  # noqa: N801 - as above
        def stand_still(self, clock_ns: int) -> int:  # noqa: ARG002 - that is the bug
            return self.last_ns


class Mints(_WithLine):
    """Takes a step back for one ahead."""

    class line(_WithLine.line):  # noqa: N801 - as above
        def __init__(self, line: MonotoneLine) -> None:
            super().__init__(line)
            self.reading_ns = line.last_ns

        def at(self, clock_ns: int) -> int:
            self.last_ns += abs(clock_ns - self.reading_ns)
            self.reading_ns = clock_ns
            return self.last_ns

        def stand_still(self, behind_ns: int) -> int:  # noqa: ARG002 - it is asked by the short cut alone
            return self.at(self.reading_ns - 1)


class Barges(RateLimiter):
    """Lets newcomers have what is there, whoever waits."""

    def _take(self, cost: float, reading_ns: int | None = None) -> int | None:  # noqa: ARG002 - nobody gives one
        with self._section:
            admitted = self._bucket.take(self._line.at(self.clock.monotonic_ns()), self._checked_units(cost))
            self._admitted += admitted
            return self._bucket.tat if admitted else None


class SmallestFirst(RateLimiter):
    """Serves whoever can be served, rather than who came first."""

    def _grant(self, now_ns: int) -> None:
        super()._grant(now_ns)
        for waiter in sorted(self._queue, key=lambda each: each.units):
            if self._bucket.take(now_ns, waiter.units):
                self._queued_units -= waiter.units
                self._queue.leave(waiter)
                self._bucket.hold()
                waiter.granted = True
                waiter.wake()


class Silent(RateLimiter):
    """Tells nobody when a waiter gives up."""

    def _abandon(self, waiter: Waiter) -> None:
        if waiter in self._queue:
            here = self._queue._places[waiter.place]
            del self._queue.waiters[waiter], here[waiter]
            if not here:
                del self._queue._places[waiter.place]
            self._queued_units -= waiter.units
            return
        super()._abandon(waiter)


class Leaks(RateLimiter):
    """Forgets the tokens of a waiter that was granted and cancelled."""

    def _abandon(self, waiter: Waiter) -> None:
        if waiter.granted:
            waiter.granted = False
            return
        super()._abandon(waiter)


class Swallows(RateLimiter):
    """Makes a refusal of a cancellation."""

    async def _park(self, waiter: TaskWaiter | Reserved) -> bool:
        try:
            return await super()._park(waiter)
        except GeneratorExit:
            raise
        except BaseException:  # noqa: BLE001 - the bug
            return False


class GivesTwice(RateLimiter):
    """Gives back what was never granted, too."""

    def _abandon(self, waiter: Waiter) -> None:
        never_granted = waiter in self._queue
        super()._abandon(waiter)
        if never_granted:
            self._bucket.tat -= waiter.units


class Optimistic(RateLimiter):
    """Does not count those who wait when it says whether a turn will come in time."""

    def _join(self, waiter: Waiter, cost: float, max_wait_ns: int | None) -> bool:
        queued, self._queued_units = self._queued_units, 0
        joined = super()._join(waiter, cost, max_wait_ns)
        self._queued_units += queued
        return joined


class Sluggish(RateLimiter):
    """Wakes a nanosecond late."""

    def _turn(self, waiter: Waiter) -> tuple[bool | None, int | None]:
        through, delay_ns = super()._turn(waiter)
        return through, delay_ns and delay_ns + 1


# -- the rows --------------------------------------------------------------------------------------------------------

#: Those in which the machine may read what it will, but time itself is on time.
_BACK = (Faults(back=1.0, odds=4), Faults(stall=1.0, odds=3), Faults())
_WATCHED = (limiter_module, turns_module, bucket_module)


def _row(number: str, says: str, trials: Any, *mutants: Kind) -> Row:  # noqa: ANN401 - one or several
    return Row(
        number=number,
        says=says,
        kind=RateLimiter,
        trials=tuple(trials) if isinstance(trials, list) else (trials,),
        mutants=mutants,
    )


ROWS: tuple[Row, ...] = (
    _row(
        "RL1",
        "no interval admits more than capacity + rate × its length, exactly",
        [explored(Bound), seeded(Bound), seeded(Bound, backend="trio"), cancelled(Bound)],
        OneUnitMore,
        RefundsAll,
    ),
    _row(
        "RL2",
        "costs add up; one that can never fit is refused at once",
        [explored(TooLarge), seeded(TooLarge), seeded(TooLarge, backend="trio")],
        NeverTooLarge,
        Clamps,
    ),
    _row(
        "RL3",
        "a clock that falls back or stands still mints nothing and strands nobody",
        [
            explored(BackwardClock, beside=[BackwardClock.fall_back]),
            seeded(BackwardClock, faults=_BACK),
            seeded(BackwardClock, faults=_BACK, backend="trio"),
        ],
        CatchesUp,
        Mints,
    ),
    _row(
        "RL4",
        "a leap of the clock fills the bucket and no more",
        [explored(ForwardJump, beside=[ForwardJump.leap]), seeded(ForwardJump, faults=[Faults(forward=1e6, odds=3)])],
        Overfills,
    ),
    _row(
        "RL5",
        "first come, first served, whatever the cost",
        [explored(Fifo), seeded(FifoOfThree), seeded(FifoOfThree, backend="trio"), cancelled(FifoOfThree)],
        Barges,
        SmallestFirst,
    ),
    _row(
        "RL6",
        "nobody waits for what is there",
        [explored(Quiescence), seeded(Quiescence), cancelled(Quiescence), cancelled(Quiescence, backend="trio")],
        Silent,
    ),
    _row(
        "RL7",
        "a cancelled call takes nothing, and its cancellation goes on",
        [explored(Quiescence), seeded(Quiescence), cancelled(Quiescence), cancelled(Quiescence, backend="trio")],
        Leaks,
        Swallows,
    ),
    _row(
        "RL8",
        "the ledger balances after every step",
        [explored(Balance), seeded(Balance), seeded(Balance, backend="trio"), cancelled(Balance)],
        GivesTwice,
    ),
    _row(
        "RL9",
        "trying and acquiring from several threads is linearizable",
        [interleaved(Threads, _WATCHED)],
        unlocked(RateLimiter),
    ),
    _row(
        "RL10",
        "told at once, or served by when it was predicted",
        [seeded(OnTime, faults=[Faults()]), seeded(OnTime, faults=[Faults()], backend="trio")],
        Optimistic,
    ),
    _row(
        "RL11",
        "served at the very instant when the tokens are there",
        [seeded(OnTime, faults=[Faults()]), seeded(OnTime, faults=[Faults()], backend="trio"), cancelled(OnTime)],
        Sluggish,
    ),
)
