"""Retry: try again, a bounded number of times, later each time, and only while it can still help.

Rules of this module: what follows a failed attempt is decided by `machines.retrying`; the state of a call is in its
own frame, so one Retry serves any number of calls at once. What is not an `Exception` is never retried. The exception
that ends the retries is the callee's own, with a note of the attempts.
"""

from __future__ import annotations

import math
import random as random_module
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from resilience.clock import MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.events import RetryScheduled, announce
from resilience.fusing import END, step
from resilience.layer import LayerKind, Strategy
from resilience.machines.backoff import Backoff, ExponentialBackoff, is_backoff
from resilience.machines.budget import Budget
from resilience.machines.checks import positive, positive_int, string
from resilience.machines.retrying import GiveUp, RetryAfter, decide
from resilience.timers import remaining_ns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from resilience.clock import Clock
    from resilience.fusing import BlockingRunner, Runner, StreamRunner

__all__ = ["Retry", "RetryBudget"]

On: TypeAlias = "type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]"


class RetryBudget:
    """A limit on retries as a share of first attempts, shared by all the Retry layers that are given it.

    In any t seconds there are at most `ratio * first attempts + min_per_second * (t + reserve_for)` retries.

    Args:
        ratio: retries per first attempt.
        min_per_second: retries a second that are always allowed, so that a quiet client may retry too.
        reserve_for: for how many seconds that allowance may be saved up.
        clock: where time comes from.

    """

    __slots__ = ("_budget", "_line", "_lock", "clock")

    def __init__(
        self, ratio: float = 0.1, min_per_second: float = 1.0, reserve_for: float = 10.0, *, clock: Clock | None = None
    ) -> None:
        positive("ratio", ratio)
        positive("min_per_second", min_per_second)
        positive("reserve_for", reserve_for)
        self.clock: Clock = SystemClock() if clock is None else clock
        now_ns = self.clock.monotonic_ns()
        self._lock = threading.Lock()
        self._line = MonotoneLine(now_ns)
        self._budget = Budget(ratio, min_per_second, reserve_for, now_ns)

    def first_attempt(self) -> None:
        """Note a first attempt. Any thread."""
        with self._lock:
            self._budget.first_attempt(self._line.at(self.clock.monotonic_ns()))

    def try_spend(self) -> bool:
        """Pay for one retry, or return False. Any thread."""
        with self._lock:
            return self._budget.spend(self._line.at(self.clock.monotonic_ns()))

    @property
    def available(self) -> float:
        """The retries that could be paid for now."""
        with self._lock:
            return self._budget.available(self._line.at(self.clock.monotonic_ns()))


class Retry(Strategy):
    """Run a call again when it fails, up to `attempts` times in all.

    Retries end early when the next one would begin too late for `max_elapsed`, for the deadline that the call is under,
    or when what the failure asks for (`retry_after`) is longer than the backoff's cap. Then, and when the attempts are
    used up, the callee's own exception goes on, with a note.

    Args:
        attempts: executions in all, the first one included; None for no limit but the others.
        on: the exceptions that are worth another attempt: types, or a predicate.
        on_result: tells whether a result is worth another attempt; the last one is returned.
        backoff: the schedule of delays.
        max_elapsed: seconds from the start of the first attempt after which no attempt begins.
        budget: a RetryBudget that many Retry layers may share.
        honor_retry_after: wait for as long as a numeric `retry_after` on the exception says, instead of the backoff.
        name: what events call it.
        clock: where time comes from.
        random: where the jitter comes from.

    Example:
        >>> retry = Retry(3, on=ConnectionError, backoff=ExponentialBackoff(base=0.1))
        >>> @retry
        ... async def fetch() -> str:
        ...     return "fetched"

    An async generator is opened again only while it has not given its first item. A plain `def` blocks its thread
    during the delays.

    """

    __slots__ = (
        "_matches",
        "_max_elapsed_ns",
        "attempts",
        "backoff",
        "budget",
        "clock",
        "honor_retry_after",
        "name",
        "on_result",
        "random",
    )

    kind = LayerKind.RETRY

    def __init__(
        self,
        attempts: int | None = 3,
        *,
        on: On = (Exception,),
        on_result: Callable[[Any], bool] | None = None,
        backoff: Backoff | None = None,
        max_elapsed: float | None = None,
        budget: RetryBudget | None = None,
        honor_retry_after: bool = True,
        name: str = "",
        clock: Clock | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        self.attempts = None if attempts is None else positive_int("attempts", attempts)
        self._matches = _matcher(on)
        if on_result is not None and not callable(on_result):
            msg = f"on_result must be callable, not {on_result!r}"
            raise ValueError(msg)
        self.on_result = on_result
        self.backoff: Backoff = ExponentialBackoff() if backoff is None else backoff
        if not is_backoff(self.backoff):
            msg = f"backoff must be a backoff such as ExponentialBackoff(), not {backoff!r}"
            raise ValueError(msg)
        self._max_elapsed_ns = None if max_elapsed is None else nanoseconds(positive("max_elapsed", max_elapsed))
        if budget is not None and not isinstance(budget, RetryBudget):
            msg = f"budget must be a RetryBudget, not {budget!r}"
            raise ValueError(msg)
        self.budget = budget
        if not isinstance(honor_retry_after, bool):
            msg = f"honor_retry_after must be True or False, not {honor_retry_after!r}"
            raise ValueError(msg)
        self.honor_retry_after = honor_retry_after
        self.name = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.random = random_module.Random() if random is None else random

    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that tries again. A cancellation ends it at once, during a delay too."""

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            rounds = _Rounds(self)
            while True:
                try:
                    result = await call_next(func, args, kwargs)
                except Exception as error:
                    delay_ns = rounds.after_error(error)
                    if delay_ns is None:
                        raise
                else:
                    delay_ns = rounds.after_result(result)
                    if delay_ns is None:
                        return result
                await self.clock.sleep(seconds(delay_ns))

        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions; delays block the thread."""

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            rounds = _Rounds(self)
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

        async def run(
            func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> AsyncGenerator[Any, Any]:
            rounds = _Rounds(self)
            while True:
                stream = call_next(func, args, kwargs)
                begun = False
                try:
                    sent = thrown = None
                    while (item := await step(stream, sent, thrown)) is not END:
                        begun = True
                        sent = thrown = None
                        try:
                            sent = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as exception:  # noqa: BLE001 - thrown into the stream, whose business it is
                            thrown = exception
                except Exception as error:
                    delay_ns = None if begun else rounds.after_error(error)
                    if delay_ns is None:
                        raise
                else:
                    return
                finally:
                    await stream.aclose()
                await self.clock.sleep(seconds(delay_ns))

        return run


class _Rounds:
    """The attempts of one call."""

    __slots__ = ("_attempt", "_line", "_previous_ns", "_retry", "_started_ns")

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._attempt = 0
        self._previous_ns = 0
        # Its own line, so that a clock that steps back gives no call more than its max_elapsed.
        self._line = MonotoneLine(retry.clock.monotonic_ns())
        self._started_ns = self._line.last_ns
        if retry.budget is not None:
            retry.budget.first_attempt()

    def after_error(self, error: Exception) -> int | None:
        """Return the delay before the next attempt; None, and a note on the error, if there is none."""
        self._attempt += 1
        retry = self._retry
        if not retry._matches(error):  # noqa: SLF001 - one class in two parts
            self._note(error, "this is not retried")
            return None
        asked_ns = _asked_ns(error) if retry.honor_retry_after else None
        decision = self._decide(asked_ns)
        if isinstance(decision, GiveUp):
            self._note(error, decision.reason)
            return None
        return self._schedule(decision, type(error).__qualname__)

    def after_result(self, result: object) -> int | None:
        """Return the delay before the next attempt; None if the result stands."""
        self._attempt += 1
        retry = self._retry
        if retry.on_result is None or not retry.on_result(result):
            return None
        decision = self._decide(None)
        return None if isinstance(decision, GiveUp) else self._schedule(decision, "the result")

    def _decide(self, asked_ns: int | None) -> RetryAfter | GiveUp:
        retry = self._retry
        decision = decide(
            attempt=self._attempt,
            attempts=retry.attempts,
            backoff_ns=retry.backoff.delay_ns(self._attempt, retry.random.random(), self._previous_ns),
            cap_ns=nanoseconds(retry.backoff.cap),
            asked_ns=asked_ns,
            elapsed_ns=self._elapsed_ns(),
            max_elapsed_ns=retry._max_elapsed_ns,  # noqa: SLF001
            remaining_ns=remaining_ns(retry.clock),
        )
        if isinstance(decision, RetryAfter) and retry.budget is not None and not retry.budget.try_spend():
            return GiveUp("the retry budget is spent")
        return decision

    def _schedule(self, decision: RetryAfter, error: str) -> int:
        self._previous_ns = decision.delay_ns
        event = RetryScheduled(
            name=self._retry.name or "Retry", attempt=self._attempt, delay=seconds(decision.delay_ns), error=error
        )
        announce(event)
        return decision.delay_ns

    def _note(self, error: Exception, reason: str) -> None:
        if self._attempt > 1:
            # An exception that cannot carry a note (a frozen one) is still the one to be raised.
            with suppress(Exception):
                error.add_note(f"{self._attempt} attempts in {seconds(self._elapsed_ns()):.3g} s; {reason}")

    def _elapsed_ns(self) -> int:
        return self._line.at(self._retry.clock.monotonic_ns()) - self._started_ns


def _matcher(on: On) -> Callable[[Exception], bool]:
    types = on if isinstance(on, tuple) else (on,)
    if types and all(isinstance(each, type) and issubclass(each, Exception) for each in types):
        return lambda error: isinstance(error, types)  # type: ignore[arg-type]
    if isinstance(on, type | tuple) or not callable(on):
        msg = f"on must be exception types derived from Exception, or a predicate, not {on!r}"
        raise ValueError(msg)
    return on


def _asked_ns(error: Exception) -> int | None:
    """Return the wait that the exception itself asks for."""
    asked = getattr(error, "retry_after", None)
    if isinstance(asked, bool) or not isinstance(asked, int | float) or math.isnan(asked):
        return None
    # Capped at a century, so that infinity is comparable: it is longer than any backoff's cap.
    return nanoseconds(min(max(asked, 0.0), 3_155_760_000.0))
