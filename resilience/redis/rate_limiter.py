"""RedisRateLimiter: one token bucket for all processes, on the server's time.

Rules of this module: the bucket is in `lua/rate_limiter.lua`, which obeys the laws of `machines.token_bucket`; here are
its terms in whole numbers, and the waiting. Who waits has taken a turn: its instant is the server's answer, in the
order in which it was asked, by whatever process. So a wait is one round trip too, and nobody polls or overtakes.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from typing import TYPE_CHECKING, ClassVar

import attrs

from resilience import LayerKind, NeverFits, NotUntil, Permit, RateLimitedError, RateLimiter, RejectedError
from resilience.clock import nanoseconds, seconds
from resilience.machines.checks import instance, non_negative, positive, positive_int
from resilience.outcome import Verdict
from resilience.redis.batching import Stash
from resilience.redis.link import Request, StoreError
from resilience.redis.scripts import script
from resilience.redis.shared import SharedGuard, SharedStatistics
from resilience.redis.store import RedisStore
from resilience.redis.terms import Terms

if TYPE_CHECKING:
    from resilience.redis.link import Reply, Script
    from resilience.redis.shared import OnStoreError

__all__ = ["RedisRateLimiter"]

_MICROSECONDS = 1_000_000
#: For who waits as long as it takes, in microseconds: as far as the units can count.
FOREVER = 2**50


class _Take(Request):
    """What asks for tokens, and in which terms."""

    __slots__ = ("cost", "limiter", "more", "terms", "units")

    def __init__(self, limiter: RedisRateLimiter, cost: float, max_wait_ns: int | None) -> None:
        terms = limiter._terms  # noqa: SLF001 - one class in parts
        units = terms.units(cost)
        more = limiter._more()  # noqa: SLF001
        self.limiter = limiter
        self.cost = cost
        self.terms = terms
        self.units = units
        self.more = more
        max_wait_us = FOREVER if max_wait_ns is None else max_wait_ns // 1_000
        super().__init__(
            limiter.script,
            limiter._keys,  # noqa: SLF001
            ("take", terms.scale, terms.burst, units, max_wait_us, more * terms.token, terms.token),
            undo=self._take_back,
        )

    def _take_back(self, reply: Reply | None) -> None:
        self.limiter._keep(self, 0 if reply is None else int(reply[5]))  # noqa: SLF001
        if reply is not None and int(reply[0]):
            self.limiter._give_back(_Turn(self.limiter, self, reply))  # noqa: SLF001


class _Turn(Permit):
    """A permit that knows what it took, when its turn comes, and the instant to which that brought the bucket."""

    __slots__ = ("stamp", "terms", "units", "wait_ns")

    def __init__(self, limiter: RedisRateLimiter, request: _Take, reply: Reply) -> None:
        super().__init__(limiter)
        self.terms = request.terms
        self.units = request.units
        _, wait_us, *stamp, _, _ = map(int, reply)
        self.wait_ns = wait_us * 1_000
        self.stamp = stamp


class RedisRateLimiter(SharedGuard[RateLimiter]):
    """Admit at most `capacity` at once and `rate` a second in the long run, in all processes together.

    For any interval of t seconds, no more than `capacity + rate * t` is admitted, by the server's clock. Limiters of
    one name and store share their tokens; all of them should have the same terms.

    Args:
        store: where the bucket is.
        rate: tokens a second; the decimal that you write is what counts.
        capacity: the most tokens that the bucket holds, so the largest burst and the largest cost. It starts full.
        name: what the limiters have in common that share this bucket, and what errors and events call it.
        max_wait: for how many seconds a call may wait for its turn. Who waits has a turn already, whatever comes later;
            who gives up leaves it unused, unless nobody has queued behind.
        batch: the most tokens that a busy process takes at once, to spend them without asking; 1 asks for each call.
            With n processes, up to `n * (batch - 1)` more than the bound above may then be admitted in an interval.
        batch_for: for how many seconds a process may keep such tokens; what it has not spent by then goes back.
        on_store_error: "local": without the server, a limiter of the same terms in each process takes over; "admit":
            everything passes; "reject": nothing does.

    Example:
        >>> from resilience.redis import RedisRateLimiter, RedisStore
        >>> limiter = RedisRateLimiter(RedisStore("redis://localhost"), rate=100.0, capacity=200, name="api")
        >>> limiter.available
        200.0

    """

    __slots__ = (
        "_ignored",
        "_known",
        "_max_wait_ns",
        "_reminded",
        "_stash",
        "_terms",
        "_waiting",
        "batch",
        "batch_for",
        "max_wait",
    )

    kind = LayerKind.RATE_LIMITER
    hears_success = False
    error: ClassVar[type[RejectedError]] = RateLimitedError
    script: ClassVar[Script] = script("rate_limiter")

    def __init__(
        self,
        store: RedisStore,
        rate: float,
        capacity: float,
        *,
        name: str,
        max_wait: float = 0.0,
        batch: int = 1,
        batch_for: float = 0.5,
        on_store_error: OnStoreError = "local",
    ) -> None:
        if positive_int("batch", batch) > positive("capacity", capacity):
            msg = f"batch must be at most the capacity of {capacity!r}, not {batch!r}"
            raise ValueError(msg)
        self._max_wait_ns = _wait_ns(max_wait)
        self._terms = Terms.of(positive("rate", rate), positive("capacity", capacity))
        instance("store", store, RedisStore)
        local = RateLimiter(rate, capacity, name=name, max_wait=max_wait, clock=store.clock)
        super().__init__(store, name, on_store_error, "rate", local)
        self.max_wait: float = max_wait
        self.batch: int = batch
        self.batch_for: float = batch_for
        self._stash = Stash(self._terms, batch, nanoseconds(positive("batch_for", batch_for)))
        self._reminded = False
        self._ignored = 0
        self._waiting: deque[_Turn] = deque()
        # What was missing to a full bucket, in the units of these terms, and when that was heard.
        self._known = (self._terms, 0, self.clock.monotonic_ns())

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._terms.rate

    @property
    def capacity(self) -> float:
        """The most tokens that the bucket holds."""
        return self._terms.capacity

    @property
    def available(self) -> float:
        """The tokens in the bucket now, as far as this process knows."""
        terms = self._known[0]
        return max(0.0, terms.burst - self._missing()) / terms.token

    def retry_after(self, cost: float = 1) -> float:
        """Return in how many seconds a call of this cost would be admitted, as far as this process knows."""
        terms = self._known[0]
        return max(0.0, self._missing() + terms.units(cost) - terms.burst) / terms.scale / _MICROSECONDS

    def _missing(self) -> float:
        terms, missing, at_ns = self._known
        return max(0.0, missing - (self.clock.monotonic_ns() - at_ns) * terms.scale / 1_000)

    def update(self, *, rate: float | None = None, capacity: float | None = None) -> None:
        """Ask in other terms from now on; limiters in other processes have to be told, too. Not a checkpoint.

        The instant at which the bucket will be full stays what it is. Turns that are taken stay taken.
        """
        new_rate = self.rate if rate is None else positive("rate", rate)
        new_capacity = self.capacity if capacity is None else positive("capacity", capacity)
        terms = Terms.of(new_rate, new_capacity)
        with self._section:
            _, missing, at_ns = self._known
            self._known = (terms, missing * terms.scale // self._terms.scale, at_ns)
            self._terms = terms
        self._local.update(rate=rate, capacity=capacity)

    async def acquire(self, cost: float = 1, *, max_wait: float | None = None) -> bool:
        """Take `cost` tokens; return whether they were had within `max_wait` seconds (by default the limiter's own).

        A checkpoint: one round trip, and then the wait for a turn that is known. A cancellation meanwhile gives the
        tokens back, if nobody was admitted after them, and goes on.

        Raises:
            ValueError: `cost` is not positive, or more than the capacity, or `max_wait` is negative or NaN.

        """
        try:
            await self._admit(cost, self._max_wait_ns if max_wait is None else _wait_ns(max_wait))
        except RateLimitedError:
            return False
        return True

    async def admit_waiting(self, cost: float = 1) -> Permit:
        """Admit within `max_wait`, or raise RateLimitedError. A checkpoint, as `acquire` is."""
        return await self._admit(cost, self._max_wait_ns)

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:
        """Admit by tokens that were taken in advance, if there are any; else it has to be asked."""
        stash = self._stash
        if stash.units:
            terms = self._terms
            units = terms.units(cost)
            with self._section:
                if stash.spend(terms, units, self.clock.monotonic_ns()):
                    self._admitted += 1
                    return Permit(self)
        return super().admit(now_ns, cost)

    async def _admit(self, cost: float, max_wait_ns: int | None) -> Permit:
        permit = self.admit(None, cost)
        if isinstance(permit, Permit):
            return permit
        request = _Take(self, cost, max_wait_ns)
        try:
            reply = await self.store.ask(request)
        except StoreError as error:
            if self.on_store_error != "local" or max_wait_ns == 0:
                return self._admit_alone(error, request)
            self._announce_unshared(error)
            max_wait = math.inf if max_wait_ns is None else seconds(max_wait_ns)
            if await self._local.acquire(cost, max_wait=max_wait):
                return Permit(self._local)
            raise self.error(self.label, self._local.retry_after(cost)) from error
        turn = self._read(request, reply)
        if turn.wait_ns:
            await self._wait(turn)
        return self._count(turn)

    async def _wait(self, turn: _Turn) -> None:
        until_ns = self.clock.monotonic_ns() + turn.wait_ns
        self._waiting.append(turn)
        try:
            while (left_ns := until_ns - self.clock.monotonic_ns()) > 0:
                await self.clock.sleep(seconds(left_ns))
        except GeneratorExit:
            self._from_finalizer(functools.partial(self._give_back, turn))
            raise
        except BaseException:
            self._give_back(turn)
            raise
        finally:
            self._waiting.remove(turn)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code, blocking the thread; RuntimeError where an event loop runs in it."""
        permit = self.admit(None, cost)
        if isinstance(permit, Permit):
            return permit
        request = _Take(self, cost, self._max_wait_ns)
        try:
            reply = self.store.ask_blocking(request)
        except StoreError as error:
            if self.on_store_error != "local":
                return self._admit_alone(error, request)
            self._announce_unshared(error)
            return self._local.admit_blocking(cost)
        turn = self._read(request, reply)
        until_ns = self.clock.monotonic_ns() + turn.wait_ns
        try:
            while (left_ns := until_ns - self.clock.monotonic_ns()) > 0:
                self.clock.sleep_blocking(seconds(left_ns))
        except BaseException:
            self._give_back(turn)
            raise
        return self._count(turn)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Give the tokens of a call that did not run back, if nobody was admitted after it: only then is that exact."""
        if not isinstance(permit, _Turn):
            super().settle(permit, verdict)
            return
        with self._section:
            ignored = permit.use_up() and verdict is Verdict.IGNORED
            self._ignored += ignored
        if ignored:
            self._give_back(permit)

    def statistics(self) -> SharedStatistics:
        """Return a frozen snapshot of what was decided in this process. Not a checkpoint; any thread."""
        # In this order, so that no snapshot has more calls that ended than calls that began.
        ignored, waiting = self._ignored, len(self._waiting)
        shared = super().statistics()
        return attrs.evolve(shared, ignored=ignored + shared.ignored, waiting=waiting + shared.waiting)

    def _holds(self) -> bool:
        return bool(self._waiting) or self._stash.units > 0 or self._reminded

    def _request(self, cost: float) -> _Take:
        return _Take(self, cost, self._max_wait_ns)

    def _admit_locally(self, request: Request) -> Permit:
        decision = self._local.admit(None, _of_ours(request).cost)
        if isinstance(decision, Permit):
            return decision
        raise self._local.refuse(decision)

    def _read(self, request: Request, reply: Reply) -> _Turn:
        request = _of_ours(request)
        granted, wait_us, _, _, missing, more = map(int, reply)
        self._known = (request.terms, missing, self.clock.monotonic_ns())
        self._keep(request, more)
        if not granted:
            raise self._refusal_in(wait_us * 1_000)
        return _Turn(self, request, reply)

    # -- tokens that are taken in advance -----------------------------------------------------------------------------

    def _more(self) -> int:
        """Return how many tokens more to ask for, having put back what is there of those of before."""
        if self.batch == 1:
            return 0
        with self._section:
            more = self._stash.want(self.clock.monotonic_ns())
            rest = self._stash.empty() if more else None
        self._put_back(rest)
        return more

    def _keep(self, request: _Take, more: int) -> None:
        """Keep what was had of what was asked for beyond what was needed, until it is not spent in its time."""
        if not request.more:
            return
        with self._section:
            self._stash.fill(request.terms, more, self.clock.monotonic_ns())
            reminds = more > 0 and not self._reminded
            self._reminded |= reminds
        if reminds:
            self.store.remind(self._stash.kept_for_ns, self._put_back_what_is_due)

    def _put_back_what_is_due(self, closing: bool) -> None:  # noqa: FBT001 - the store calls it
        with self._section:
            stash = self._stash
            rest = stash.empty() if closing or stash.due(self.clock.monotonic_ns()) else None
            self._reminded = stash.units > 0
        self._put_back(rest)
        if self._reminded:
            self.store.remind(self._stash.kept_for_ns, self._put_back_what_is_due)

    def _put_back(self, rest: tuple[Terms, int] | None) -> None:
        if rest is not None:
            terms, units = rest
            self._tell(self._keys, "put_back", terms.scale, terms.burst, units)

    def _count(self, turn: _Turn) -> _Turn:
        with self._section:
            self._admitted += 1
        return turn

    def _give_back(self, turn: _Turn) -> None:
        terms = turn.terms
        self._tell(self._keys, "give_back", terms.scale, terms.burst, turn.units, *turn.stamp)

    def __repr__(self) -> str:
        return f"<RedisRateLimiter {self.name!r} on {self.store!r}>"


def _of_ours(request: Request) -> _Take:
    assert isinstance(request, _Take)  # noqa: S101 - a limiter asks for nothing else
    return request


def _wait_ns(max_wait: float) -> int | None:
    """Return nanoseconds; None for as long as it takes."""
    non_negative("max_wait", max_wait, infinite=True)
    return None if math.isinf(max_wait) else nanoseconds(max_wait)
