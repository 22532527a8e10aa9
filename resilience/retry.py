"""Retry: try again, a bounded number of times, later each time, and only while it can still help.

Rules of this module: what follows a failed attempt is decided by `machines.retrying`; the state of a call is in its
own frame, so one Retry serves any number of calls at once. What is not an `Exception` is never retried. The exception
that ends the retries is the callee's own, with a note of the attempts.
"""

from __future__ import annotations

import copy
import functools
import math
import random as random_module
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from resilience.attempts import Attempts
from resilience.clock import MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.counting import Tally
from resilience.events import RetryScheduled, announce
from resilience.fusing import passing_on
from resilience.layer import LayerKind, Strategy
from resilience.machines.backoff import Backoff, ExponentialBackoff, as_backoff
from resilience.machines.checks import callable_or_none, instance, positive, positive_int, string
from resilience.machines.retrying import GiveUp, RetryAfter, decide
from resilience.outcome import matcher
from resilience.remains import EVERYTHING, Everything
from resilience.retry_budget import RetryBudget, earned_by
from resilience.streaming import Relay, relaying
from resilience.timers import remaining_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from resilience.clock import Clock
    from resilience.fusing import BlockingRunner, Runner
    from resilience.layer import Guard
    from resilience.outcome import On
    from resilience.streaming import StreamRunner

__all__ = ["Retry", "RetryStatistics"]

_CENTURY = 3_155_760_000.0


@attrs.frozen(kw_only=True)
class RetryStatistics:
    """A snapshot of one Retry.

    `retried` counts the attempts that were followed by another one; `given_up` the calls whose last attempt would have
    been worth another, had they not used them up. A call that goes well at once counts nowhere, and costs nothing.
    """

    retried: int
    given_up: int


class Retry(Strategy):
    """Run a call again when it fails, up to `attempts` times in all.

    Retries end early when the next one would begin too late for `max_elapsed`, for the deadline that the call is under,
    or when what the failure asks for (`retry_after`) is longer than the backoff's cap. Then, and when the attempts are
    used up, the callee's own exception goes on, with a note.

    Args:
        attempts: executions in all, the first one included; None for no limit but the others.
        on: the exceptions that are worth another attempt: types, or a predicate.
        on_result: tells whether a result is worth another attempt; the last one is returned.
        backoff: the schedule of delays; an iterable of seconds is a ScheduleBackoff.
        max_elapsed: seconds from the start of the first attempt after which no attempt begins.
        budget: a RetryBudget that many Retry layers may share.
        honor_retry_after: wait for as long as a numeric `retry_after` on the exception says, instead of the backoff.
        retry_after: reads that wait, in seconds, from the exception or result that is to be retried; where it returns
            no number, the exception's attribute and the backoff hold.
        name: what events call it.
        clock: where time comes from.
        random: where the jitter comes from.

    Example:
        >>> retry = Retry(3, on=ConnectionError, backoff=ExponentialBackoff(base=0.1))
        >>> @retry
        ... async def fetch() -> str:
        ...     return "fetched"

    An async generator is opened again only while it has not given its first item. A plain `def` blocks its thread
    during the delays. `attempts()` retries a block.

    """

    __slots__ = (
        "_earns",
        "_given_up",
        "_matches",
        "_max_elapsed_ns",
        "_retried",
        "backoff",
        "budget",
        "clock",
        "honor_retry_after",
        "max_attempts",
        "max_elapsed",
        "name",
        "on",
        "on_result",
        "random",
        "retry_after",
    )

    kind = LayerKind.RETRY

    def __init__(
        self,
        attempts: int | None = 3,
        *,
        on: On = (Exception,),
        on_result: Callable[[Any], bool] | None = None,
        backoff: Backoff | Iterable[float] | None = None,
        max_elapsed: float | None = None,
        budget: RetryBudget | None = None,
        honor_retry_after: bool = True,
        retry_after: Callable[[Any], float | None] | None = None,
        name: str = "",
        clock: Clock | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        self.max_attempts: int | None = None if attempts is None else positive_int("attempts", attempts)
        self._matches = matcher(on)
        self.on: On = on
        self.on_result: Callable[[Any], bool] | None = callable_or_none("on_result", on_result)
        self.backoff: Backoff = ExponentialBackoff() if backoff is None else as_backoff("backoff", backoff)
        self.max_elapsed: float | None = max_elapsed
        self._max_elapsed_ns = None if max_elapsed is None else nanoseconds(positive("max_elapsed", max_elapsed))
        self.budget: RetryBudget | None = None if budget is None else instance("budget", budget, RetryBudget)
        self._earns = True
        if not isinstance(honor_retry_after, bool):
            msg = f"honor_retry_after must be True or False, not {honor_retry_after!r}"
            raise ValueError(msg)
        self.honor_retry_after: bool = honor_retry_after
        self.retry_after: Callable[[Any], float | None] | None = callable_or_none("retry_after", retry_after)
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.random: random_module.Random = (
            random_module.Random() if random is None else instance("random", random, random_module.Random)
        )
        self._retried = Tally()
        self._given_up = Tally()

    def statistics(self) -> RetryStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        return RetryStatistics(retried=self._retried.value, given_up=self._given_up.value)

    def remains(self) -> Everything | None:
        """Return None, since nothing is left of a call that is over, unless its budget is not what it was at first."""
        return None if self.budget is None or self.budget.is_fresh() else EVERYTHING

    def settings(self) -> dict[str, object]:
        """Return the attempts in all, and what else differs from the defaults."""
        settings = {"attempts": self.max_attempts, **super().settings()}
        if self.backoff == ExponentialBackoff():
            del settings["backoff"]
        return settings

    def attempts(self) -> Attempts:
        """Return the attempts at a block, by the same rules as those at a call. Not a checkpoint; the delays are.

        Each attempt is a context manager, entered in the loop's body. It keeps back an exception that is worth another
        attempt, and lets any other through. The loop ends after the first block that ends well, or that `on_result`
        finds no fault with if the block has set its `attempt.result`. In plain code a `for` does the same and blocks
        the thread during the delays.

        Example:
            >>> async def fetch_both() -> None:
            ...     async for attempt in Retry(3, on=ConnectionError).attempts():
            ...         with attempt:
            ...             attempt.result = "fetched"

        """
        return Attempts(lambda: _Rounds(self, self._start()), self.clock)

    def inside(self, outer: tuple[Guard | Strategy, ...]) -> Strategy:
        """Return one that leaves it to a layer outside, if that has the same budget, to note the first attempt."""
        if not earned_by(outer, self.budget):
            return self
        inner = copy.copy(self)
        inner._earns = False  # noqa: SLF001 - its own copy
        return inner

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that tries again. A cancellation ends it at once, during a delay too."""
        # Looked up once: most calls need only one attempt.
        budget = self.budget if self._earns else None
        monotonic_ns, on_result = self.clock.monotonic_ns, self.on_result

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if budget is not None:
                budget.first_attempt()
            started_ns = monotonic_ns()
            rounds: _Rounds | None = None
            while True:
                try:
                    result = await call_next(*args, **kwargs)
                except Exception as error:
                    rounds = rounds or _Rounds(self, started_ns)
                    delay_ns = rounds.after_error(error)
                    if delay_ns is None:
                        raise
                else:
                    if on_result is None:
                        return result
                    rounds = rounds or _Rounds(self, started_ns)
                    delay_ns = rounds.after_result(result)
                    if delay_ns is None:
                        return result
                await self.clock.sleep(seconds(delay_ns))

        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions; delays block the thread."""

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            rounds = _Rounds(self, self._start())
            while True:
                try:
                    result = call_next(func, args, kwargs)
                except Exception as error:
                    delay_ns = rounds.after_error(error)
                    if delay_ns is None:
                        raise
                else:
                    delay_ns = rounds.after_result(result)
                    if delay_ns is None:
                        return result
                self.clock.sleep_blocking(seconds(delay_ns))

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return the same for async generators, until the first item is out."""
        return relaying(lambda *call: _Reopened(self, functools.partial(call_next, *call)))

    def _start(self) -> int:
        """Begin a call: earn its share of the budget, and return the instant."""
        if self.budget is not None and self._earns:
            self.budget.first_attempt()
        return self.clock.monotonic_ns()


class _Reopened(Relay):
    """A stream that is opened again while it fails before its first item."""

    __slots__ = ("_retry",)

    def __init__(self, retry: Retry, open_inner: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        super().__init__(open_inner)
        self._retry = retry

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        retry = self._retry
        rounds = _Rounds(retry, retry._start())  # noqa: SLF001 - one class in several parts
        while True:
            try:
                return await super().first()
            except Exception as error:
                delay_ns = rounds.after_error(error)
                if delay_ns is None:
                    raise
            await self.close()
            await retry.clock.sleep(seconds(delay_ns))


class _Rounds:
    """What one call or block knows of its attempts so far."""

    __slots__ = ("_line", "_previous_ns", "_retry", "_started_ns", "failed")

    def __init__(self, retry: Retry, started_ns: int) -> None:
        self._retry = retry
        self._previous_ns = 0
        self._started_ns = started_ns
        # Its own line, so that a clock that steps back gives no call more than its max_elapsed.
        self._line = MonotoneLine(started_ns)
        self.failed = 0

    def after_error(self, error: Exception) -> int | None:
        """Return the delay before the next attempt; None if there is none.

        Then a note on the error says why, unless nobody would have tried again in any case.
        """
        self.failed += 1
        retry = self._retry
        if not retry._matches(error):  # noqa: SLF001
            if self.failed > 1:
                self._note(error, "this is not retried")
            return None
        asked_ns = self._asked_ns(error)
        if asked_ns is None and retry.honor_retry_after:
            asked_ns = _wait_ns(getattr(error, "retry_after", None))
        decision = self._decide(asked_ns)
        if isinstance(decision, GiveUp):
            if retry.max_attempts != 1:
                self._note(error, decision.reason)
            return None
        return self._schedule(decision, type(error).__qualname__)

    def after_result(self, result: object) -> int | None:
        """Return the delay before the next attempt; None if the result stands."""
        retry = self._retry
        if retry.on_result is None or not retry.on_result(result):
            return None
        self.failed += 1
        decision = self._decide(self._asked_ns(result))
        return None if isinstance(decision, GiveUp) else self._schedule(decision, "the result")

    def _asked_ns(self, outcome: object) -> int | None:
        """Return the wait that the user reads from an exception or a result."""
        retry_after = self._retry.retry_after
        return None if retry_after is None else _wait_ns(retry_after(outcome))

    def _decide(self, asked_ns: int | None) -> RetryAfter | GiveUp:
        retry = self._retry
        decision: RetryAfter | GiveUp = decide(
            attempt=self.failed,
            attempts=retry.max_attempts,
            backoff_ns=retry.backoff.delay_ns(self.failed, retry.random.random(), self._previous_ns),
            cap_ns=nanoseconds(retry.backoff.cap),
            asked_ns=asked_ns,
            elapsed_ns=self._elapsed_ns(),
            max_elapsed_ns=retry._max_elapsed_ns,  # noqa: SLF001
            remaining_ns=remaining_ns(retry.clock),
        )
        if isinstance(decision, RetryAfter) and retry.budget is not None and not retry.budget.try_spend():
            decision = GiveUp("the retry budget is spent")
        if isinstance(decision, GiveUp):
            retry._given_up.add()  # noqa: SLF001
        else:
            retry._retried.add()  # noqa: SLF001
        return decision

    def _schedule(self, decision: RetryAfter, error: str) -> int:
        self._previous_ns = decision.delay_ns
        event = RetryScheduled(
            name=self._retry.name or "Retry", attempt=self.failed, delay=seconds(decision.delay_ns), error=error
        )
        announce(event)
        return decision.delay_ns

    def _note(self, error: Exception, reason: str) -> None:
        attempts = "1 attempt" if self.failed == 1 else f"{self.failed} attempts"
        # An exception that cannot carry a note (a frozen one) is still the one to be raised.
        with suppress(Exception):
            error.add_note(f"{attempts} in {seconds(self._elapsed_ns()):.3g} s; {reason}")

    def _elapsed_ns(self) -> int:
        return self._line.at(self._retry.clock.monotonic_ns()) - self._started_ns


def _wait_ns(asked: object) -> int | None:
    """Return the wait of `asked` seconds; None for what is no number."""
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return None
    # Capped at a century, so that infinity, and an int that no float holds, are comparable.
    wait = min(max(asked, 0.0), _CENTURY)
    return None if math.isnan(wait) else nanoseconds(wait)
