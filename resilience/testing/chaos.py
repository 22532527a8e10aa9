"""Chaos: calls that go wrong on purpose, to see whether what is around them holds.

Rules of this module:

* What is injected comes before the call: it is late, and then it hangs, fails, or is answered by another, and the
  callee does not run; or it goes its own way. `injections` decides which.
* The nth call that comes while it is enabled has the nth lot of the seed, whatever the settings are. Lots are drawn
  under the lock; users' functions and listeners are called without it.
* A hang ends only by a cancellation. So it is never injected into a plain `def`, which cannot be cancelled.
* An injection is counted and told when it takes place, not when it is decided: a call that is cancelled while it is
  late has not failed.

The vocabulary (fault, latency, result, rate) is Simmy's and Polly's.
"""

from __future__ import annotations

import functools
import random as random_module
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
import attrs

from resilience.clock import SystemClock
from resilience.counting import Tally
from resilience.events import SUBSCRIBERS, ChaosInjected, announce
from resilience.fusing import passing_on
from resilience.layer import LayerKind, Strategy
from resilience.machines.checks import string
from resilience.remains import EVERYTHING
from resilience.streaming import Relay, relaying
from resilience.testing.injections import NO_RESULT, Ending, Fault, Latency, Lot, Rate, Settings, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager
    from typing import Unpack

    from resilience.clock import Clock
    from resilience.fusing import BlockingRunner, Runner
    from resilience.remains import Everything
    from resilience.streaming import StreamRunner
    from resilience.testing.injections import SettingsDict

__all__ = ["Chaos", "ChaosStatistics"]


@attrs.frozen(kw_only=True)
class ChaosStatistics:
    """A snapshot of one Chaos.

    `calls` came while it was enabled. Of these, `latencies` were made to wait, `hangs` never ended by themselves,
    `faults` raised, and `results` were answered, without their callees' doing.
    """

    calls: int = 0
    latencies: int = 0
    hangs: int = 0
    faults: int = 0
    results: int = 0


class Chaos(Strategy):
    """Make calls late, hang, fail or return something else, each at its rate; put it innermost in a Policy.

    A call may be late, and it ends in one way: `hang_rate`, `fault_rate` and `result_rate` are shares of all calls, and
    at most 1 together. A rate that is left out is 1 if there is something to inject, else 0.

    Args:
        latency: seconds before the call; or a pair of them, the shortest and the longest, evenly spread; or a function
            that says how many.
        latency_rate: the share of calls that are late. Each rate is a number from 0 to 1, or a function that is asked
            at each call, and may know whose call it is by a context variable.
        fault: what is raised in the call's place: a class of exceptions, or a function that makes a fresh one.
        fault_rate: the share of calls that fail so.
        result: what is returned in the call's place: a value, or a function that gives it. For an async generator, an
            async generator function, which takes its place.
        result_rate: the share of calls that are answered so.
        hang_rate: the share of calls that hang until they are cancelled.
        enabled: whether anything is injected.
        name: what events call it.
        clock: where time comes from.
        random: a seed, or a random.Random; one seed gives the same injections. None: a seed of its own, see `seed`.

    Raises:
        ValueError: a rate is not between 0 and 1, or there is one without something to inject; the rates that end a
            call are more than 1 together; an exception is given in place of its class.

    Example:
        >>> chaos = Chaos(fault=ConnectionError, fault_rate=0.1, latency=(0.1, 2.0), latency_rate=0.5, random=7)
        >>> @chaos
        ... async def fetch() -> str:
        ...     return "fetched"

    A stream, and the block of a context manager, is one call, harmed before its first item. A plain `def` blocks its
    thread while it is late; with a `hang_rate` it is a TypeError to decorate one. Any thread, task and event loop may
    use one, and change it.

    """

    __slots__ = (
        "_around",
        "_calls",
        "_enabled",
        "_faults",
        "_hangs",
        "_is_touched",
        "_latencies",
        "_lock",
        "_random",
        "_results",
        "_settings",
        "clock",
        "name",
        "seed",
    )

    kind = LayerKind.CHAOS

    #: The seed that would give the same injections again; None if a random.Random was given.
    seed: int | None

    def __init__(
        self,
        *,
        latency: Latency | None = None,
        latency_rate: Rate | None = None,
        fault: Fault | None = None,
        fault_rate: Rate | None = None,
        result: object = NO_RESULT,
        result_rate: Rate | None = None,
        hang_rate: Rate = 0.0,
        enabled: bool = True,
        name: str = "",
        clock: Clock | None = None,
        random: random_module.Random | int | None = None,
    ) -> None:
        self._settings = Settings(
            latency=latency,
            latency_rate=latency_rate,
            fault=fault,
            fault_rate=fault_rate,
            result=result,
            result_rate=result_rate,
            hang_rate=hang_rate,
        )
        if not isinstance(enabled, bool):
            msg = f"enabled must be True or False, not {enabled!r}"
            raise ValueError(msg)
        self._enabled = enabled
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.seed, self._random = _dice(random)
        self._lock = threading.Lock()
        # The runners that there are, by what they run: new settings have to fit all of them.
        self._around: dict[Shape, WeakSet[Any]] = {shape: WeakSet() for shape in Shape}
        self._is_touched = False
        self._calls = 0
        self._latencies, self._hangs, self._faults, self._results = Tally(), Tally(), Tally(), Tally()

    # -- at run time --------------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether anything is injected."""
        return self._enabled

    def enable(self) -> AbstractContextManager[object]:
        """Inject from now on; as a context manager, until its block is left. Not a checkpoint; any thread.

        Leaving the block brings back what was before; of blocks that overlap, the last to be left decides.
        """
        return self._switch(enabled=True)

    def disable(self) -> AbstractContextManager[object]:
        """Inject nothing from now on; as a context manager, until its block is left. Not a checkpoint; any thread.

        Calls that are late or hang already go on so.
        """
        return self._switch(enabled=False)

    def update(self, *, random: random_module.Random | int | None = None, **changes: Unpack[SettingsDict]) -> None:
        """Change what is injected, by the names and rules of the arguments; what is not named stays as it is.

        A `random` begins its lots anew. Either everything is changed, for calls that begin from now on, or nothing is.
        Not a checkpoint; any thread.

        Raises:
            ValueError: as when it is made; also what cannot be injected into a callable that is decorated already.

        """
        dice = None if random is None else _dice(random)
        while True:
            before = self._settings
            # Without the lock, since a class of exceptions is tried out.
            settings = attrs.evolve(before, **changes)
            with self._lock:
                if self._settings is before:
                    self._replace(settings, dice)
                    return

    def _replace(self, settings: Settings, dice: tuple[int | None, random_module.Random] | None) -> None:
        """Take other settings, if they fit what there is. The lock is held."""
        for shape, runners in self._around.items():
            misfit = settings.misfit(shape) if runners else None
            if misfit is not None:
                raise ValueError(misfit)
        self._settings = settings
        self._is_touched = True
        if dice is not None:
            self.seed, self._random = dice

    def statistics(self) -> ChaosStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        # An injection is counted after its call is, so that read in this order there are never more than calls.
        injections = {
            "latencies": self._latencies.value,
            "hangs": self._hangs.value,
            "faults": self._faults.value,
            "results": self._results.value,
        }
        return ChaosStatistics(calls=self._calls, **injections)

    def settings(self) -> dict[str, object]:
        """Return what is injected now, by the names of the arguments, as far as it differs from the defaults."""
        settings = self._settings.shown()
        return settings if self._enabled else {**settings, "enabled": False}

    def remains(self) -> Everything | None:
        """Return None until a call has drawn its lot, or something was changed."""
        return EVERYTHING if self._is_touched else None

    def __repr__(self) -> str:
        state = "enabled" if self._enabled else "disabled"
        return f"<Chaos {self.name!r}, {state}, seed {self.seed}>"

    def _switch(self, *, enabled: bool) -> AbstractContextManager[object]:
        with self._lock:
            before, self._enabled = self._enabled, enabled
            self._is_touched = True
        restoring = ExitStack()
        restoring.callback(self._switch, enabled=before)
        return restoring

    # -- around calls -------------------------------------------------------------------------------------------------

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that harms calls. A checkpoint where it makes one wait; a cancellation goes on."""

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._enabled:
                answer = await self._harm()
                if answer is not None:
                    return answer()
            return await call_next(*args, **kwargs)

        self._stand_around(Shape.CALL, run)
        return run

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        """Return the same for plain functions; a latency blocks the thread."""

        def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            if self._enabled:
                settings, lot = self._draw()
                delay = self._delay(settings, lot)
                if delay is not None:
                    self.clock.sleep_blocking(delay)
                if self._ending(settings, lot) is Ending.RESULT:
                    return settings.make_result()
            return call_next(func, args, kwargs)

        self._stand_around(Shape.PLAIN, run)
        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return the same for async generators, before their first item."""

        def begin(*call: Any) -> Relay:  # noqa: ANN401
            return _Harmed(self, functools.partial(call_next, *call))

        self._stand_around(Shape.STREAM, begin)
        return relaying(begin)

    def _stand_around(self, shape: Shape, runner: object) -> None:
        """Note that there is such a runner, as long as there is, or raise TypeError if the settings do not fit it."""
        with self._lock:
            misfit = self._settings.misfit(shape)
            if misfit is not None:
                raise TypeError(misfit)
            self._around[shape].add(runner)

    # -- one call -----------------------------------------------------------------------------------------------------

    async def _harm(self) -> Callable[[], Any] | None:
        """Harm a call that is about to begin; return what gives the answer in its place, if anything does."""
        settings, lot = self._draw()
        delay = self._delay(settings, lot)
        if delay is not None:
            await self.clock.sleep(delay)
        ending = self._ending(settings, lot)
        if ending is Ending.HANG:
            # Not a sleep without end: on asyncio that is a timer, to which a loop in virtual time would jump.
            await anyio.Event().wait()
        return settings.make_result if ending is Ending.RESULT else None

    def _draw(self) -> tuple[Settings, Lot]:
        """Draw the lot of the next call, and what it means at the time."""
        with self._lock:
            self._calls += 1
            self._is_touched = True
            draw = self._random.random
            return self._settings, Lot(draw(), draw(), draw())

    def _delay(self, settings: Settings, lot: Lot) -> float | None:
        """Return by how much a call is to be late, counted and told, or None."""
        delay = settings.delay(lot)
        if delay is not None:
            self._latencies.add()
            self._announce("latency", delay=delay)
        return delay

    def _ending(self, settings: Settings, lot: Lot) -> Ending:
        """Return how a call is to end, counted and told; raise the fault, if it is to be one."""
        ending = settings.ending(lot)
        if ending is Ending.FAULT:
            fault = settings.make_fault()
            self._faults.add()
            self._announce("fault", error=type(fault).__qualname__)
            raise fault
        if ending is not Ending.OWN:
            (self._hangs if ending is Ending.HANG else self._results).add()
            self._announce(ending.value)
        return ending

    def _announce(self, kind: str, *, delay: float | None = None, error: str | None = None) -> None:
        if SUBSCRIBERS.listeners:
            announce(ChaosInjected(name=self.name or "Chaos", kind=kind, delay=delay, error=error))


class _Harmed(Relay):
    """A stream that is harmed before its first item."""

    __slots__ = ("_chaos",)

    def __init__(self, chaos: Chaos, open_inner: Callable[[], AsyncGenerator[Any, Any]]) -> None:
        super().__init__(open_inner)
        self._chaos = chaos

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        answer = await self._chaos._harm() if self._chaos._enabled else None  # noqa: SLF001 - one class in two parts
        if answer is None:
            return await super().first()
        self.stream = answer()
        return await self.step(None, None)


def _dice(random: random_module.Random | int | None) -> tuple[int | None, random_module.Random]:
    """Return the seed, if it is known, and the source of randomness; raise ValueError for what is neither."""
    if isinstance(random, random_module.Random):
        return None, random
    if random is None:
        random = random_module.Random().getrandbits(32)
    elif isinstance(random, bool) or not isinstance(random, int):
        msg = f"random must be a seed or a random.Random, not {random!r}"
        raise ValueError(msg)
    return random, random_module.Random(random)
