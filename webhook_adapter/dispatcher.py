"""The dispatcher: due deliveries -> guards -> sender -> recorded outcome.

Rules of this module:

* It claims only what it has room for, and what no guard would refuse; a refusal by a guard gives the lease back and
  uses up no attempt. Some room always stays free for endpoints that have none yet, however many others are slow.
* One outcome is judged once for the breaker and once for the delivery, by the same table (`lifecycle`), and recorded in
  one fenced transaction. An outcome that cannot be recorded stops the claiming until it can: nothing is sent blindly.
* An attempt starts only under a lease that outlives it, and only while fewer than `max_concurrent` have begun whose
  outcomes are not recorded: so many may come twice after a crash (WH15).
* It sleeps until the next delivery is due or somebody wakes it; the one thing it looks for unasked, now and then, is
  what other processes have written.
* Stopped, it claims no more and begins no more, lets what is in flight end within the grace period, and gives the
  rest back.
* Now and then it deletes what is older than it is to be kept.

It knows the store and the sender, which do not know each other.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import random as random_module
import traceback
from typing import TYPE_CHECKING

import anyio
import attrs

from resilience import CircuitState, RejectedError
from resilience.parking import Waiter, async_waiter
from webhook_adapter import lifecycle
from webhook_adapter.crew import Crew
from webhook_adapter.guards import EndpointGuards, Guards, fair_room
from webhook_adapter.model import AttemptOutcome, FailureKind
from webhook_adapter.recorder import Recorder
from webhook_adapter.store import Claim, Release, Settlement, Store, StoreClosedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from resilience import Clock
    from webhook_adapter.sender import Sender
    from webhook_adapter.settings import Settings

__all__ = ["AnchoredWall", "Dispatcher", "DispatcherStatistics"]

logger = logging.getLogger("webhook_adapter")

_NANOSECONDS = 1_000_000_000
_GONE, _TOO_MANY_REQUESTS = 410, 429
# How long at most until it looks for work that another process may have written, in seconds.
_LOOK_AROUND = 1.0
# How many due deliveries are leased at a time at the most; more would only make the first of them wait.
_BATCH = 200
# How long the leases of what a stop has interrupted may take to be given back, in seconds.
_RELEASE_WITHIN = 2.0
# How long to wait at least for a limiter or a breaker, in seconds: one pass for many tokens, not one for each.
_SOON = 0.01
# How often messages that are older than they are to be kept are looked for, in seconds.
_PRUNE_EVERY = 60.0


class AnchoredWall:
    """Unix time that goes at the pace of the monotonic clock, from what the wall clock showed at the start.

    So a wall clock that jumps while the process runs neither makes attempts due in bulk nor parks them.
    """

    __slots__ = ("_anchor_ns", "_clock")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._anchor_ns = clock.time_ns() - clock.monotonic_ns()

    def __call__(self) -> float:
        """Return Unix time in seconds."""
        return (self._anchor_ns + self._clock.monotonic_ns()) / _NANOSECONDS


@attrs.frozen(kw_only=True)
class DispatcherStatistics:
    """What this process has done since it started.

    `attempts` were made, of which `succeeded` and `failed`; `rejected` times a guard refused after the claim;
    `stale` outcomes came after their lease was lost; `transitions` of circuits, by (old, new); `limited` times an
    endpoint's limiter left it out of a claim; `in_flight` now; `store_trouble` is true while outcomes wait for the
    database to take them.
    """

    attempts: int
    succeeded: int
    failed: int
    rejected: int
    stale: int
    limited: int
    transitions: dict[tuple[str, str], int]
    in_flight: int
    store_trouble: bool


@attrs.frozen
class _Room:
    """How much the endpoints that are not at rest have room for.

    Attributes:
        capacities: by endpoint id; the others have as much as anyone at rest.
        ahead: how many more to claim for those that are full, by endpoint id.
        limited: how many have none for want of a token.
    """

    capacities: dict[str, int]
    ahead: dict[str, int]
    limited: int


class _NotNowError(RejectedError):
    """The attempt was not begun: we stop, the endpoint asked to be left alone, or (`alone`) its lease is too short."""

    def __init__(self, after: float, *, alone: bool = False) -> None:
        super().__init__("the dispatcher", after)
        self.after = after
        self.alone = alone


class Dispatcher:
    """Delivers what is due in one process. `run` does it until `stop`.

    Args:
        store: where deliveries come from and outcomes go.
        sender: makes the attempts.
        settings: limits and durations.
        clock: measures everything.
        wall: Unix time for the store.
        random: where the jitter comes from.
    """

    def __init__(
        self,
        store: Store,
        sender: Sender,
        settings: Settings,
        *,
        clock: Clock,
        wall: AnchoredWall,
        random: random_module.Random | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._random = random_module.Random() if random is None else random  # noqa: S311 - jitter is no secret
        self.guards = Guards(settings, clock=clock, on_transition=self._on_transition)
        # Before a send the lease must have the attempt's time left, and as much again as it has to spare.
        self._lease_margin = settings.attempt_timeout + min(1.0, (settings.lease_for - settings.attempt_timeout) / 2)
        self._sleeper: Waiter | None = None
        self._woken = False
        self._stopping = False
        self._done: anyio.Event | None = None
        self._recorder = Recorder(store, clock=clock, wall=wall, recovered=self.wake, done=self._recorded)
        # Attempts that have begun, and whose outcomes are not recorded; and who waits for one of them to be.
        self._exposed = 0
        self._less_exposed: anyio.Event | None = None
        # How many are leased, but for those that wait for their endpoint's turn: what is or may be in flight.
        self._sending = 0
        self._active = 0
        self._idle: list[Waiter] = []
        self._next_recovery = 0.0
        self._next_pruning = 0.0
        self._attempts = self._succeeded = self._failed = self._rejected = self._limited = 0
        self._transitions: collections.Counter[tuple[str, str]] = collections.Counter()

    # -- from outside -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for work now: something was accepted, or changed. Any thread; not a checkpoint."""
        if self._woken:
            return  # whoever was first has woken it
        self._woken = True
        sleeper = self._sleeper
        if sleeper is not None:
            sleeper.wake()

    def stop(self) -> None:
        """Claim no more. Any thread; `run` returns when what is in flight has ended, or the grace period has."""
        self._stopping = True
        self.wake()

    async def wait_until_idle(self) -> None:
        """Wait until no delivery is pending or in flight, but those held for disabled and paused endpoints.

        Raises:
            RuntimeError: it stops before.
        """
        waiter = async_waiter()
        self._idle.append(waiter)
        self.wake()
        try:
            while not waiter.granted and not self._stopping:
                await waiter.wait(self._clock, None)
        finally:
            self._idle.remove(waiter)
        if not waiter.granted:
            raise RuntimeError("the service is ending, and not everything has been delivered")

    @property
    def healthy(self) -> bool:
        """Whether it runs, and the database takes its outcomes."""
        return self._sleeper is not None and not self._stopping and not self._recorder.in_trouble

    def statistics(self) -> DispatcherStatistics:
        """Return a frozen snapshot. Any thread."""
        return DispatcherStatistics(
            attempts=self._attempts,
            succeeded=self._succeeded,
            failed=self._failed,
            rejected=self._rejected,
            stale=self._recorder.stale,
            limited=self._limited,
            transitions=dict(self._transitions),
            in_flight=self._active,
            store_trouble=self._recorder.in_trouble,
        )

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until stopped. A checkpoint; a cancellation gives back what is in flight and goes on."""
        self._sleeper = async_waiter()
        try:
            async with anyio.create_task_group() as tasks:
                self._crew = Crew(tasks, self._clock)
                while not self._stopping:
                    self._woken = False
                    # Who asks while a pass is under way may have accepted something that it has not seen.
                    idle = list(self._idle)
                    try:
                        pause = await self._pass(idle)
                    except StoreUnavailableError as error:
                        logger.warning("nothing can be claimed: %s", error)
                        pause = error.retry_after
                    if pause > 0 and not self._woken and not self._stopping:
                        await self._sleeper.wait(self._clock, int(pause * _NANOSECONDS))
                await self._give_back_ready()
                await self._drain(tasks)
                self._crew.dismiss()
        except* StoreClosedError:
            logger.warning("the store was closed under the dispatcher")
        finally:
            # A cancellation may have come between outcomes and the transaction that was to record them.
            with anyio.move_on_after(_RELEASE_WITHIN, shield=True):
                await self._recorder.flush()
            self._sleeper = None
            self._stopping = True
            for waiter in list(self._idle):
                waiter.wake()

    async def _pass(self, idle: list[Waiter]) -> float:
        """Claim what there is room for and start on it; return for how many seconds there is nothing more to do."""
        now = self._wall()
        if now >= self._next_recovery:
            self._next_recovery = now + self._settings.lease_for / 3
            await self._store.recover_leases(now=now)
        if self._recorder.in_trouble:
            # The database does not take outcomes: whoever waits to record one wakes us when it has.
            return _LOOK_AROUND
        if now >= self._next_pruning:
            await self._prune(now)
        free = max(0, self._settings.max_concurrent - self._sending)
        room = self._room(now, free)
        self._limited += room.limited
        if not free and not room.ahead:
            return _LOOK_AROUND
        claimed = await self._store.claim(
            now=now,
            # Not all that is free: as much as one endpoint may have depends on what is left when others have some.
            limit=min(free - free // 4, _BATCH),
            lease_for=self._settings.lease_for,
            endpoint_limit=max(1, fair_room(0, self._settings.endpoint_max_concurrent, free)),
            capacities=room.capacities,
            ahead=room.ahead,
        )
        for claim in claimed.claims:
            self._begin(claim)
        due_at = claimed.next_due_at
        left = math.inf if due_at is None else due_at - self._wall()
        if left <= 0 and claimed.claims:
            return 0.0
        if due_at is None and idle and not self._active:
            await self._tell_if_idle(idle)
        # What is due and was not to be had was written a moment ago, or is behind what is in flight, which wakes us.
        return min(_LOOK_AROUND, self._opens_in(), left if left > 0 else 2 * _SOON)

    def _begin(self, claim: Claim) -> None:
        """Put a claim behind the others of its endpoint, with one more to send them while there may be more."""
        guards = self.guards.of(claim.endpoint)
        self._sending += guards.leased < guards.bulkhead.max_concurrent
        guards.leased += 1
        self._active += 1
        guards.ready.append(claim)
        if guards.senders < guards.bulkhead.max_concurrent:
            guards.senders += 1
            self._crew.start(functools.partial(self._send_to, guards))

    async def _tell_if_idle(self, idle: list[Waiter]) -> None:
        """Wake those who wait for it if nothing is pending behind a guard, and no other process has anything."""
        # Due is asked last, and of all: what was leased a moment ago may have been given back since.
        if (await self._store.statistics()).leased or await self._store.next_due_at() is not None:
            return
        for waiter in idle:
            waiter.granted = True
            waiter.wake()

    def _room(self, now: float, free: int) -> _Room:
        """Return how much each endpoint that is not at rest has room for."""
        capacities: dict[str, int] = {}
        ahead: dict[str, int] = {}
        limited = 0
        for endpoint_id, guards in self.guards.restless(now):
            capacities[endpoint_id] = capacity = guards.capacity(now, free=free)
            if capacity:
                continue
            if more := guards.ahead(now):
                ahead[endpoint_id] = more
            else:
                limited += guards.spent
        return _Room(capacities, ahead, limited)

    def _opens_in(self) -> float:
        """Return in how many seconds the first guard of those that let nothing through may do so again."""
        now = self._wall()
        opens_in = math.inf
        for _, guards in self.guards.restless(now):
            ready_in = guards.ready_in(now, behind=guards.waiting)
            if ready_in > 0:
                opens_in = min(opens_in, max(ready_in, _SOON))
        return opens_in

    async def _prune(self, now: float) -> None:
        """Delete some of what is older than it is to be kept; what is left comes with the next pass."""
        if not await self._store.prune(before=now - self._settings.retention_for):
            self._next_pruning = now + _PRUNE_EVERY

    async def _drain(self, tasks: TaskGroup) -> None:
        """Let what is in flight end; cancel it when the grace period is over."""
        if not self._active:
            return
        self._done = anyio.Event()
        try:
            with self._clock.fail_after(self._settings.drain_timeout):
                await self._done.wait()
        except TimeoutError:
            logger.warning("%d attempts did not end within the grace period and are given back", self._active)
            tasks.cancel_scope.cancel()

    async def _send_to(self, guards: EndpointGuards) -> None:
        """Make one delivery after the other while there are any: the next one costs no new task, and no waiting."""
        try:
            while guards.ready:
                if self._exposed >= self._settings.max_concurrent:
                    if self._less_exposed is None:
                        self._less_exposed = anyio.Event()
                    await self._less_exposed.wait()
                    continue
                claim = guards.ready.popleft()
                if len(guards.ready) == guards.lookahead // 2:
                    self.wake()
                await self._deliver(claim, guards)
        finally:
            guards.senders -= 1

    # -- one delivery -----------------------------------------------------------------------------------------------

    async def _deliver(self, claim: Claim, guards: EndpointGuards) -> None:
        refused = [claim]
        try:
            outcome = await guards.policy.call(self._attempt, claim, guards)
        except _NotNowError as refusal:
            after = refusal.after
            if not refusal.alone:
                refused += guards.take_ready()
        except RejectedError as rejected:
            self._rejected += 1
            after = max(rejected.retry_after or 0.0, guards.ready_in(self._wall()))
            # What waits behind it would fare no better.
            refused += guards.take_ready()
        except Exception as error:  # noqa: BLE001 - a transport may be anybody's; it is logged and costs an attempt
            self._ended(guards, claim, self._broken(error))
            return
        except BaseException:
            # Given back at once rather than when the lease ends; only this is shielded, and briefly.
            with anyio.move_on_after(_RELEASE_WITHIN, shield=True):
                await self._give_back(refused, guards, after=0.0)
            raise
        else:
            self._ended(guards, claim, outcome)
            if outcome.status_code != _GONE:
                return
            # Given back before the outcome is recorded, they end with all else that is pending for the endpoint. Until
            # that has happened none of it is to be claimed again.
            guards.held_until = max(guards.held_until, self._wall() + _RELEASE_WITHIN)
            refused, after = guards.take_ready(), 0.0
        await self._give_back(refused, guards, after=after)

    async def _attempt(self, claim: Claim, guards: EndpointGuards) -> AttemptOutcome:
        now = self._wall()
        if self._stopping:
            raise _NotNowError(0.0)
        if now < guards.held_until:
            raise _NotNowError(guards.held_until - now)
        lease_until = claim.delivery.lease_until
        if lease_until is None or lease_until - now < self._lease_margin:
            raise _NotNowError(0.0, alone=True)
        self._attempts += 1
        self._exposed += 1
        guards.begun += 1
        try:
            return await self._sender.send(claim.endpoint, claim.message)
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, RejectedError):
                self._expose_less(1)  # it has no outcome, and is given back
            raise
        finally:
            guards.begun -= 1

    def _settled(self, guards: EndpointGuards) -> None:
        """Note that an attempt no longer takes room, and look for more work when half the room is free."""
        guards.leased -= 1
        most, most_of_all = guards.bulkhead.max_concurrent, self._settings.max_concurrent
        self._sending -= guards.leased < most
        if guards.leased in {0, most} or self._sending in {most_of_all - 1, most_of_all // 2}:
            self.wake()

    def _broken(self, error: Exception) -> AttemptOutcome:
        # Without the error's own words: whoever wrote the transport may have put a header or a URL into them.
        trace = "".join(traceback.format_tb(error.__traceback__))
        logger.error("the attempt itself failed with %s, and counts as one:\n%s", type(error).__name__, trace)
        return AttemptOutcome(
            started_at=self._wall(),
            duration=0.0,
            status_code=None,
            failure=FailureKind.PROTOCOL,
            error=f"the attempt itself failed ({type(error).__name__})",
            retry_after=None,
            response_body=b"",
        )

    def _ended(self, guards: EndpointGuards, claim: Claim, outcome: AttemptOutcome) -> None:
        """Judge an outcome, and have it recorded."""
        self._settled(guards)
        guards.lasted(outcome.duration)
        if outcome.succeeded:
            self._succeeded += 1
        else:
            self._failed += 1
        now = self._wall()
        judgement = lifecycle.judge(
            outcome,
            round_attempt=claim.delivery.round_attempts + 1,
            schedule=self._settings.retry_schedule,
            jitter=self._settings.retry_jitter,
            retry_after_max=self._settings.retry_after_max,
            now=now,
            u=self._random.random(),
            expires_at=claim.delivery.expires_at,
        )
        settlement = Settlement(claim, outcome, judgement, now, self._blocked_until(guards, outcome, now))
        if self._recorder.add(settlement):
            self._crew.start(self._recorder.flush)

    def _recorded(self, count: int) -> None:
        """Note that so many outcomes need no more be recorded."""
        self._expose_less(count)
        self._over(count)

    def _expose_less(self, count: int) -> None:
        self._exposed -= count
        if self._less_exposed is not None:
            self._less_exposed.set()
            self._less_exposed = None

    def _over(self, count: int) -> None:
        """Note that this process has nothing more to do with so many deliveries."""
        self._active -= count
        if not self._active:
            self.wake()
            if self._done is not None:
                self._done.set()

    def _blocked_until(self, guards: EndpointGuards, outcome: AttemptOutcome, now: float) -> float | None:
        """Return until when the endpoint is to be left alone, if at all."""
        if outcome.status_code == _TOO_MANY_REQUESTS and outcome.retry_after is not None:
            guards.held_until = max(guards.held_until, now + min(outcome.retry_after, self._settings.retry_after_max))
            return guards.held_until
        if guards.breaker.state is CircuitState.OPEN:
            return now + guards.breaker.retry_after()
        return None

    async def _give_back(self, claims: Sequence[Claim], guards: EndpointGuards, *, after: float) -> None:
        """Give leases of an endpoint back, due again after so many seconds."""
        if not claims:
            return
        now = self._wall()
        try:
            await self._store.release([Release(claim, now + after) for claim in claims], now=now)
        except StoreUnavailableError as error:
            logger.warning("%d leases could not be given back, and end by themselves: %s", len(claims), error)
        except StoreClosedError:
            logger.warning("%d leases were not given back before the store was closed", len(claims))
        finally:
            for _ in claims:
                self._settled(guards)
            self._over(len(claims))

    async def _give_back_ready(self) -> None:
        """Give back what has been claimed and not begun."""
        for _, guards in self.guards.restless(self._wall()):
            await self._give_back(guards.take_ready(), guards, after=0.0)

    def _on_transition(self, endpoint_id: str, old: CircuitState, new: CircuitState) -> None:
        self._transitions[old.value, new.value] += 1
        logger.info("the circuit of %s went from %s to %s", endpoint_id, old.value, new.value)
