"""What a layer is: something that stands around a call.

Rules of this module:

* A *guard* decides. `admit` answers at once, never waits and is no checkpoint; what it admits is a `Permit`, which is
  settled with exactly one verdict. A *strategy* controls: it wraps the next runner in another.
* Neighbouring guards share one coroutine frame (`fusing`); a guard used alone is a chain of one, by the same code.
* Every kind of callable is guarded whole, or refused when it is decorated (`callables`).
* What comes out of the callee goes on unchanged: results, exceptions, cancellation. Layers only settle and re-raise.

It knows no particular guard or strategy. Write your own by deriving from `Guard` or `Strategy`.
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

from resilience.callables import decorate, enclose
from resilience.clock import seconds
from resilience.counting import Statistics
from resilience.describing import Description, LayerKind, settings_of
from resilience.entering import enter, leave
from resilience.errors import RejectedError
from resilience.events import SUBSCRIBERS, EventQueue, Rejected, Section, calls_for
from resilience.fusing import Permit, Runner, compose
from resilience.machines.decision import NeverFits, NotUntil
from resilience.outcome import Verdict, any_exception, verdict_of_exception
from resilience.remains import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock
    from resilience.fusing import BlockingRunner
    from resilience.remains import Everything, Remains
    from resilience.streaming import StreamRunner

__all__ = [
    "Guard",
    "Layer",
    "LayerKind",
    "Permit",
    "Strategy",
]

P = ParamSpec("P")
T = TypeVar("T")


class Layer(ABC):
    """Something that stands around a call: a guard, a strategy, or a Policy of them."""

    __slots__ = ("__weakref__", "_run_")

    kind: ClassVar[LayerKind] = LayerKind.OTHER
    _run_: Runner

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        """The guards and strategies that this layer consists of, outermost first."""
        if not isinstance(self, Guard | Strategy):
            msg = f"{type(self).__name__} must derive from Guard or Strategy, or say of which parts it consists"
            raise TypeError(msg)
        return (self,)

    def call(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Run `func(*args, **kwargs)` once inside this layer.

        Returns what the call returns and raises what it raises, or what the layer raises in its stead (a RejectedError
        from a guard). A checkpoint if the call is one or a guard has to wait. A cancellation settles the permits and
        goes on.
        """
        try:
            run = self._run_
        except AttributeError:
            run = self._compose()
        return run(func, args, kwargs)  # type: ignore[return-value]

    def _compose(self) -> Runner:
        """Compose what runs a call inside this layer, once."""
        run = self._run_ = compose(self)
        return run

    def around(
        self, func: Callable[P, AbstractAsyncContextManager[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[T]:
        """Return what `func(*args, **kwargs)` returns, an async context manager, inside this layer.

        `async with layer.around(client.stream, "GET", url) as response:` is one call, which lasts from the entering
        until the manager has been left; how its block ends is how the call ends. Not a checkpoint; entering and leaving
        are if the manager's are, or if a guard has to wait. Raises TypeError if the layer cannot guard that.
        """
        return enclose(self, func)(*args, **kwargs)

    def __call__(self, func: Callable[P, T]) -> Callable[P, T]:
        """Decorate `func`: each call of it runs inside this layer. The signature stays.

        Raises TypeError for what the layer cannot guard, so that nothing is ever silently unprotected.
        """
        return cast("Callable[P, T]", decorate(self, func))

    @property
    def measured(self) -> object:
        """What has the `statistics()` of this layer: itself, unless it only stands for something that others share."""
        return self

    def _loosen(self) -> None:
        """Forget the composed runner, which refers back to the layer; it is composed again when there is a call."""
        with suppress(AttributeError):
            del self._run_

    def is_fresh(self) -> bool:
        """Tell whether the layer will decide as one newly made would, whatever comes. Not a checkpoint; any thread.

        A call under way keeps a layer from being fresh where its end could make a difference. What has been counted
        for `statistics()` makes none. The answer holds for the instant; whoever acts on it sees to it that nobody uses
        the layer meanwhile.
        """
        for part in self.parts:
            with part._section:  # noqa: SLF001 - its parts are layers too
                if part.remains() is not None:
                    return False
        return True

    def settings(self) -> dict[str, object]:
        """Return what the layer was made with, by the names of its arguments, as far as that is worth telling."""
        return settings_of(self)

    def describe(self) -> Description:
        """Return what the layer is, as data; as text with `str()`. Not a checkpoint; any thread."""
        return Description(
            type=type(self).__name__, kind=self.kind, name=getattr(self, "name", ""), settings=self.settings()
        )


class Strategy(Layer):
    """A layer that controls how and when the next runner is called."""

    __slots__ = ()

    #: A guard has a lock; what a strategy keeps, if anything, it guards itself.
    _section: ClassVar[AbstractContextManager[None]] = nullcontext()

    @abstractmethod
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that runs `call_next`, as often and as long as this strategy sees fit."""

    def wrap_around(
        self,
        call_next: Callable[..., Awaitable[Any]],
        func: Callable[..., Any],  # noqa: ARG002 - the base has no use for it
    ) -> Callable[..., Awaitable[Any]] | None:
        """Return a coroutine function around `call_next`, both being called just as `func` is, which is decorated.

        That spares frames, and is never needed: None (the default, unless what `wrap` returns will do) is as good.
        """
        return self.wrap(call_next) if hasattr(self.wrap, "passes_on") else None

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner | None:  # noqa: ARG002 - the base has nothing to wrap
        """Return the same for a plain `def`, or None where that is not meaningful."""
        return None

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner | None:  # noqa: ARG002
        """Return the same for an async generator, or None where that is not meaningful."""
        return None

    def wrap_manager(self, call_next: StreamRunner) -> StreamRunner | None:
        """Return the same for an async context manager, which is a stream of one item, or None.

        Between the item and what follows it, its block runs, in the task that iterates. Unless a strategy has to do
        something about that, it does with a manager what it does with any stream.
        """
        return self.wrap_stream(call_next)

    def inside(self, outer: tuple[Guard | Strategy, ...]) -> Strategy:  # noqa: ARG002 - the base shares nothing
        """Return what stands for this strategy inside of those layers: itself, unless it shares something with one."""
        return self

    def remains(self) -> Remains | Everything | None:
        """Return what calls have left behind, as a guard does; None for a strategy that keeps nothing between calls."""
        return EVERYTHING

    def resume(self, remains: Remains) -> None:
        """Take up the remains of another, as a guard does."""
        raise _unable_to_resume(self, remains)


class Guard(Layer):
    """A layer that decides whether a call may run.

    A subclass has a `clock`, calls `super().__init__(name)`, and implements `admit` and `settle`, which asks the permit
    by `use_up` whether it is the first to. Its critical sections are a few synchronous lines in `with self._section:`;
    the hottest take the lock by hand, and call `self._after()` if `self._pending` is not empty once it is free.
    """

    __slots__ = (
        "_admitted",
        "_contended",
        "_events",
        "_lock",
        "_pending",
        "_rejected",
        "_section",
        "_try_lock",
        "_unlock",
        "name",
    )

    #: Whether admit_waiting may succeed where admit did not.
    waits: ClassVar[bool] = False
    #: Whether a success has to be told; a guard that only counts admissions has nothing to learn from it.
    hears_success: ClassVar[bool] = True
    #: What a refusal raises.
    error: ClassVar[type[RejectedError]] = RejectedError

    clock: Clock

    def __init__(self, name: str = "") -> None:
        if not isinstance(name, str):
            msg = f"name must be a string, not {name!r}"
            raise ValueError(msg)
        self.name: str = name
        self._lock = threading.Lock()
        # The hottest sections call these, at half the cost of `with`. What `with` adds is that a KeyboardInterrupt
        # cannot land between taking the lock and the `try`; here it can, if the signal comes during the very call that
        # takes it. Where signals cancel a task instead, as under asyncio.run, it cannot.
        self._try_lock = self._lock.acquire
        self._unlock = self._lock.release
        self._admitted = 0
        self._rejected = 0
        self._contended = 0
        self._events = EventQueue()
        # The same deque as the queue's, so that the fast path asks it in one step whether there is anything to do.
        self._pending = self._events.pending
        self._section = Section(self._lock, self._events)

    @abstractmethod
    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:
        """Decide at once. Never waits; not a checkpoint; any thread.

        `now_ns` is a reading of the guard's clock; None lets the guard read it, if it needs to, under its lock.
        """

    @abstractmethod
    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Hear how an admitted call ended. The first verdict settles the permit; later ones change nothing."""

    async def admit_waiting(self, cost: float = 1) -> Permit:
        """Admit, waiting for it where the guard can wait; raise its RejectedError otherwise."""
        return self._admit_or_refuse(cost)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code, blocking the thread."""
        return self._admit_or_refuse(cost)

    def _admit_or_refuse(self, cost: float) -> Permit:
        decision = self.admit(None, cost)
        if isinstance(decision, Permit):
            return decision
        raise self.refuse(decision)

    def refuse(self, decision: NotUntil | NeverFits) -> Exception:
        """Count a refusal and return the fresh exception that says so."""
        if isinstance(decision, NeverFits):
            return ValueError(f"cost must be at most the capacity of {decision.capacity!r}, not {decision.cost!r}")
        retry_after = self._seconds_until(decision.at_ns)
        with self._section:
            self._rejected += 1
            self._announce_rejection(retry_after)
        return self.error(self.label, retry_after)

    def _seconds_until(self, at_ns: int | None) -> float | None:
        return None if at_ns is None else seconds(max(0, at_ns - self._line_now(self.clock.monotonic_ns())))

    def _line_now(self, clock_ns: int) -> int:
        """Return the instant on the guard's own line for a reading of the clock."""
        return clock_ns

    def _announce_rejection(self, retry_after: float | None) -> None:
        if SUBSCRIBERS.listeners:
            self._events.put(*calls_for(Rejected(guard=self.label, retry_after=retry_after)))

    @property
    def label(self) -> str:
        """The name by which errors and events call this guard."""
        return self.name or type(self).__name__

    def settle_exception(self, permit: Permit, exception: BaseException) -> None:
        """Settle by the exception that a call ended with."""
        if isinstance(exception, GeneratorExit):
            # A frame may be closed by the garbage collector, in the middle of our own critical section.
            self._from_finalizer(functools.partial(self.settle, permit, Verdict.CANCELLED))
            return
        try:
            verdict = self.judge_exception(exception)
        except BaseException:
            self.settle(permit, Verdict.IGNORED)
            raise
        self.settle(permit, verdict)

    def settle_result(self, permit: Permit, result: object) -> None:
        """Settle by the result that a call ended with.

        For whoever runs the call and alone has its permit; what several threads may settle, `settle` is for.
        """
        self.settle(permit, self._judge(permit, result))

    def _judge(self, permit: Permit, result: object) -> Verdict:
        """Judge by the result; should that raise, nobody knows, and the permit is settled as ignored."""
        try:
            return self.judge_result(result)
        except BaseException:
            self.settle(permit, Verdict.IGNORED)
            raise

    def judge_exception(self, exception: BaseException) -> Verdict:
        """Return what a call that ended with `exception` says to this guard."""
        return verdict_of_exception(exception, any_exception)

    def judge_result(self, result: object) -> Verdict:  # noqa: ARG002 - most guards do not mind
        """Return what a call that ended with `result` says to this guard."""
        return Verdict.SUCCESS

    def renew(self, permit: Permit) -> None:
        """Hear that a long call shows signs of life (a stream gave an item)."""

    def statistics(self) -> Statistics:
        """Return a frozen snapshot, read without stopping the guard. Not a checkpoint; any thread."""
        return Statistics(admitted=self._admitted, rejected=self._rejected, contended=self._contended)

    def remains(self) -> Remains | Everything | None:
        """Return what calls have left behind; the guard's lock is held.

        None says that the guard is fresh. Anything but EVERYTHING can be given to `resume` of another guard, newly made
        in the same way, which then decides as this one would have. A guard that says neither (the default) is kept as
        it is for ever by a `Keyed`.
        """
        return EVERYTHING

    def resume(self, remains: Remains) -> None:
        """Take up the remains of another guard, instead of being fresh. Nobody else has seen this guard yet.

        To be overridden together with `remains`, where that ever says more than that nothing remains, or everything.
        """
        raise _unable_to_resume(self, remains)

    def _wait_for_lock(self) -> None:
        """Take the lock that was found taken, and count that."""
        self._try_lock()
        self._contended += 1

    # -- what subclasses' critical sections end with ----------------------------------------------------------------

    def _after(self) -> None:
        """Do what had to wait for the lock to be free. Never called while it is held."""
        self._events.drain()

    def _from_finalizer(self, action: Callable[[], None]) -> None:
        """Run an action that takes the lock, though this may be a finalizer that interrupted whoever holds it."""
        self._events.put_from_finalizer(self._lock, action)

    # -- with and async with ----------------------------------------------------------------------------------------

    def __enter__(self) -> Permit:
        """Admit a block of plain code; the permit is kept per task or thread, last in, first out."""
        permit = self.admit_blocking()
        enter(self, permit)
        return permit

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit = leave(self)
        if exception is None:
            permit.success()
        else:
            self.settle_exception(permit, exception)

    async def __aenter__(self) -> Permit:
        """Admit a block of async code. A checkpoint only if the guard has to wait."""
        decision = self.admit()
        if not isinstance(decision, Permit):
            if not self.waits:
                raise self.refuse(decision)
            decision = await self.admit_waiting()
        enter(self, decision)
        return decision

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exception, trace)

    def __copy__(self) -> Self:
        msg = f"{type(self).__name__} is shared, never copied: two copies would each admit what one may"
        raise TypeError(msg)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self.__copy__()


def _unable_to_resume(part: Layer, remains: Remains) -> TypeError:
    return TypeError(f"{type(part).__name__} must implement resume, since its remains are {remains!r}")
