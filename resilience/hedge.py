"""Hedge: a call that takes unusually long is begun a second time, and the first to succeed wins.

Rules of this module:

* Another attempt begins because the others are slow, never because one has failed: that is for a Retry, which has a
  backoff. (gRPC and Polly begin the next at once when one fails, and so double the load on what is failing.)
* A failure never hides a success that is still under way: it waits for the attempts that run. When the last of them
  fails, its exception, or its faulty result, is what the call ends with.
* No attempt outlives the call. The others are cancelled, and waited for, before the winner's result is returned;
  what they end with is nobody's concern. A cancellation from outside cancels every attempt, and goes on.
* The first attempt runs in the caller's own task, so that on asyncio with the system's clock a call that is not hedged
  costs a task group, and a timer where the delay is learnt; elsewhere it costs one task more. The price: of a cancel
  scope's cancellation all attempts hear at once, but of one by `Task.cancel` of asyncio the others only when the first
  has ended, if that takes its time to clean up. None begins in the meantime.

Source: Dean and Barroso, The Tail at Scale (2013).
"""

from __future__ import annotations

import copy
import functools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from resilience.clock import SystemClock, nanoseconds, seconds
from resilience.counting import Tally
from resilience.events import HedgeStarted, announce
from resilience.fusing import passing_on
from resilience.layer import LayerKind, Strategy
from resilience.machines.checks import callable_or_none, instance, non_negative, positive_int, string
from resilience.machines.quantile import WindowedQuantile
from resilience.outcome import matcher
from resilience.remains import EVERYTHING, Everything
from resilience.retry_budget import RetryBudget, earned_by
from resilience.timers import Alarms, alarm, asyncio_task, cancellations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from resilience.clock import Clock
    from resilience.fusing import Runner
    from resilience.layer import Guard
    from resilience.outcome import On
    from resilience.timers import Alarm

__all__ = ["Hedge", "HedgeStatistics"]


@attrs.frozen(kw_only=True)
class HedgeStatistics:
    """A snapshot of one Hedge.

    `hedged` counts the attempts that were begun besides the first of their calls, and `won` those of them that ended
    their calls well. `delay` is after how many seconds a call that began now would be hedged; None: it would not be.
    """

    hedged: int
    won: int
    delay: float | None


class Hedge(Strategy):
    """Begin a call again while it is still running, when it takes longer than most; the first success wins.

    Use it only for what may be done twice: every attempt is the same call with the same arguments.

    Args:
        delay: seconds after which another attempt begins, and then another; 0 begins them all at once. None learns it:
            the `quantile` of how long the latest successful calls took. Until 1 / (1 - quantile) of them are known, no
            call is hedged.
        quantile: the share of calls that are not hedged, when the delay is learnt.
        max_hedges: attempts besides the first.
        budget: a RetryBudget, which Retry layers may share; a hedge costs what a retry costs.
        min_delay: seconds that a learnt delay has at least.
        window: the successful calls that a delay is learnt from: the latest ones.
        on: the exceptions after which the other attempts may still succeed: types, or a predicate. Any other ends
            the call at once.
        on_result: tells whether a result is to be treated as such a failure.
        name: what events call it.
        clock: where time comes from.

    Example:
        >>> @Hedge(0.05, max_hedges=2)
        ... async def look_up(key: str) -> str:
        ...     return "found"

    A plain `def` and an async generator cannot be hedged: a TypeError when they are decorated.

    """

    __slots__ = (
        "_alarms",
        "_delay_ns",
        "_earns",
        "_hedged",
        "_lock",
        "_matches",
        "_min_delay_ns",
        "_times",
        "_won",
        "budget",
        "clock",
        "delay",
        "max_hedges",
        "min_delay",
        "name",
        "on",
        "on_result",
        "quantile",
        "window",
    )

    kind = LayerKind.HEDGE

    def __init__(
        self,
        delay: float | None = None,
        *,
        quantile: float = 0.95,
        max_hedges: int = 1,
        budget: RetryBudget | None = None,
        min_delay: float = 0.001,
        window: int = 1000,
        on: On = (Exception,),
        on_result: Callable[[Any], bool] | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.delay: float | None = None if delay is None else non_negative("delay", delay)
        self.quantile: float = _between_0_and_1("quantile", quantile)
        self.max_hedges: int = positive_int("max_hedges", max_hedges)
        self.min_delay: float = non_negative("min_delay", min_delay)
        self.window: int = positive_int("window", window)
        self._times = WindowedQuantile(quantile, window)
        if window < self._times.least:
            msg = f"window must be at least {self._times.least} for a quantile of {quantile!r}, not {window!r}"
            raise ValueError(msg)
        self.on: On = on
        self._matches = matcher(on)
        self.on_result: Callable[[Any], bool] | None = callable_or_none("on_result", on_result)
        self.budget: RetryBudget | None = None if budget is None else instance("budget", budget, RetryBudget)
        self._earns = True
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._delay_ns = None if delay is None else nanoseconds(delay)
        # A delay that is learnt is not the same for all.
        self._alarms = None if self._delay_ns is None else Alarms(self._delay_ns, self.clock)
        self._min_delay_ns = nanoseconds(min_delay)
        self._lock = threading.Lock()
        self._hedged = Tally()
        self._won = Tally()

    def statistics(self) -> HedgeStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        # In this order, so that no snapshot has more winners than there were hedges.
        won = self._won.value
        return HedgeStatistics(hedged=self._hedged.value, won=won, delay=self.current_delay())

    def remains(self) -> Everything | None:
        """Return None unless it has learnt something, or its budget is not what it was at first."""
        learnt = self.delay is None and len(self._times)
        return EVERYTHING if learnt or (self.budget is not None and not self.budget.is_fresh()) else None

    def current_delay(self) -> float | None:
        """Return after how many seconds a call that began now would be hedged; None if it would not be. Any thread."""
        delay_ns = self._current_delay_ns()
        return None if delay_ns is None else seconds(delay_ns)

    def inside(self, outer: tuple[Guard | Strategy, ...]) -> Strategy:
        """Return one that leaves it to a layer outside, if that has the same budget, to note the first attempt."""
        if not earned_by(outer, self.budget):
            return self
        inner = copy.copy(self)
        inner._earns = False  # noqa: SLF001 - its own copy
        return inner

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that hedges. A checkpoint; a cancellation goes on once every attempt has ended."""

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self.budget is not None and self._earns:
                self.budget.first_attempt()
            delay_ns = self._current_delay_ns()
            if delay_ns is not None:
                return await _Race(self, functools.partial(call_next, *args, **kwargs), delay_ns).run()
            started_ns = self.clock.monotonic_ns()
            result = await call_next(*args, **kwargs)
            if not self._is_fault(result):
                self._learn(started_ns)
            return result

        return run

    def _is_fault(self, result: object) -> bool:
        """Tell whether a result is to be treated as a failure."""
        return self.on_result is not None and self.on_result(result)

    def _learn(self, started_ns: int) -> None:
        """Note that a call that began then has succeeded now."""
        if self._delay_ns is None:
            with self._lock:
                self._times.add(self.clock.monotonic_ns() - started_ns)

    def _current_delay_ns(self) -> int | None:
        if self._delay_ns is not None:
            return self._delay_ns
        with self._lock:
            learnt_ns = self._times.value()
        return None if learnt_ns is None else max(learnt_ns, self._min_delay_ns)


class _Race:
    """One call: its attempts, and how it ends. Only the event loop that it runs in comes here."""

    __slots__ = (
        "_alarm",
        "_begun",
        "_call",
        "_cancelled_before",
        "_delay_ns",
        "_error",
        "_group",
        "_has_company",
        "_hedge",
        "_host",
        "_over",
        "_result",
        "_running",
        "_started_ns",
    )

    _group: TaskGroup

    def __init__(self, hedge: Hedge, call: Callable[[], Awaitable[Any]], delay_ns: int) -> None:
        self._hedge = hedge
        self._call = call
        self._delay_ns = delay_ns
        self._host = asyncio_task()
        self._cancelled_before = cancellations(self._host)
        # When the first attempt began, unless it has failed.
        self._started_ns: int | None = hedge.clock.monotonic_ns()
        self._begun = 1
        self._running = 1
        self._over = False
        self._has_company = False
        self._error: BaseException | None = None
        self._result: object = None
        self._alarm: Alarm | None = None

    async def run(self) -> object:
        """Run the first attempt, and the others when it is time; return or raise what the call ends with."""
        try:
            async with anyio.create_task_group() as self._group:
                self._alarm = self._set_alarm()
                if self._alarm is None:
                    self._has_company = True
                    self._group.start_soon(self._keep_time)
                await self._attempt(1)
            if self._error is None:
                return self._result
            # Raised out here: from inside, the task group would wrap it in an ExceptionGroup.
            raise self._error
        finally:
            # Its traceback leads back here.
            self._error = None

    # -- the attempts -----------------------------------------------------------------------------------------------

    async def _attempt(self, number: int) -> None:
        """Run one attempt, and let the race know how it ends. Raises nothing but a cancellation."""
        try:
            try:
                result = await self._call()
            except Exception as error:
                if not self._hedge._matches(error):  # noqa: SLF001 - one class in two parts
                    raise
                self._lost(number, error, None)
            else:
                if self._hedge._is_fault(result):  # noqa: SLF001 - as above
                    self._lost(number, None, result)
                else:
                    if number > 1 and not self._over:
                        self._hedge._won.add()  # noqa: SLF001 - as above
                    self._won(result)
        except BaseException as error:
            self._end(error, None)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                # If it is not the race's own end that cancels it, nor anybody outside, it is kept all the same: the
                # callee gave up by itself, and the task group takes no notice of that.
                raise

    def _won(self, result: object) -> None:
        if not self._over and self._started_ns is not None:
            # How long the call took is how long its first attempt took, or at least that, if it was another that won.
            # Where that one's own time to be noted, the slow ones would be missing from what the delay is learnt from,
            # and the delay would become ever shorter. As it is, they count as what they are: longer than the delay.
            self._hedge._learn(self._started_ns)  # noqa: SLF001 - as above
        self._end(None, result)

    def _lost(self, number: int, error: Exception | None, result: object) -> None:
        if self._over:
            return
        self._running -= 1
        if number == 1:
            self._started_ns = None
        if not self._running:
            if error is not None and self._begun > 1:
                # An exception that cannot carry a note (a frozen one) is still the one to be raised.
                with suppress(Exception):
                    error.add_note(
                        f"{self._begun} attempts, begun {seconds(self._delay_ns):.3g} s apart; this is the last to fail"
                    )
            self._end(error, result)

    def _end(self, error: BaseException | None, result: object) -> None:
        """Let the call end so, unless its end is decided, and cancel whatever else runs."""
        if self._over:
            return
        self._over = True
        self._error, self._result = error, result
        if self._alarm is not None:
            self._alarm.stop()
        if self._has_company:
            self._group.cancel_scope.cancel()

    # -- when it is time for another ----------------------------------------------------------------------------------

    def _set_alarm(self) -> Alarm | None:
        alarms = self._hedge._alarms  # noqa: SLF001 - as above
        if alarms is not None:
            return alarms.set(self._host, self._begin_another)
        return alarm(self._host, self._hedge.clock, self._delay_ns, self._begin_another)

    async def _keep_time(self) -> None:
        while True:
            await self._hedge.clock.sleep(seconds(self._delay_ns))
            if not self._begin_another():
                return

    def _begin_another(self) -> bool:
        """Begin another attempt, if it may be; tell whether there may be one more after it."""
        hedge = self._hedge
        if cancellations(self._host) > self._cancelled_before:
            # On its way, while the first attempt takes its time to clean up.
            return False
        if hedge.budget is not None and not hedge.budget.try_spend():
            return False
        self._begun += 1
        self._running += 1
        self._has_company = True
        self._group.start_soon(self._hedged, self._begun)
        return self._begun <= hedge.max_hedges

    async def _hedged(self, number: int) -> None:
        if self._over:
            # The call has ended between the alarm and this task's first step.
            return
        self._hedge._hedged.add()  # noqa: SLF001 - as above
        announce(HedgeStarted(name=self._hedge.name or "Hedge", attempt=number, delay=seconds(self._delay_ns)))
        await self._attempt(number)


def _between_0_and_1(name: str, value: float) -> float:
    if not 0 < non_negative(name, value) < 1:
        msg = f"{name} must be a number between 0 and 1, not {value!r}"
        raise ValueError(msg)
    return value
