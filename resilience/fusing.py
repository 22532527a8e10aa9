"""How layers become one runner: neighbouring guards share a frame, strategies wrap what is inside of them.

Rules of this module:

* Guards are asked from the outside inwards, and settled from the inside outwards, each exactly once, however the call
  ends: by a result, an exception, a cancellation, or a frame that is closed.
* Guards of one chain that are admitted while a later one refuses are settled by that refusal (as ignored).
* No frame is entered for nothing: the fast path of a chain is one coroutine, whatever its length.

It knows guards and strategies by their methods alone. `layer` shows this machinery to users.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncContextDecorator
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast

from resilience.outcome import Verdict
from resilience.streaming import Relay, relaying

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilience.clock import Clock
    from resilience.machines.decision import NeverFits, NotUntil
    from resilience.streaming import StreamRunner

__all__ = [
    "SETTLED",
    "BlockingRunner",
    "Composed",
    "Permit",
    "Runner",
    "compose",
    "compose_around",
    "compose_blocking",
    "compose_manager",
    "compose_stream",
    "holding",
    "passing_on",
]

Runner: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Awaitable[Any]]
BlockingRunner: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
F = TypeVar("F", bound=Callable[..., Any])


# Results of a call in which nothing has run yet; AsyncContextDecorator is what `asynccontextmanager` makes.
_LATER = (AsyncGenerator, AsyncContextDecorator)
_NOT_PLAIN = (Awaitable, *_LATER)


class Deciding(Protocol):
    """What this module asks of a guard; `layer.Guard` says what each means."""

    clock: Clock

    @property
    def label(self) -> str: ...
    @property
    def waits(self) -> bool: ...
    @property
    def hears_success(self) -> bool: ...
    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits: ...
    async def admit_waiting(self, cost: float = 1) -> Permit: ...
    def admit_blocking(self, cost: float = 1) -> Permit: ...
    def refuse(self, decision: NotUntil | NeverFits) -> Exception: ...
    def settle(self, permit: Permit, verdict: Verdict) -> None: ...
    def settle_exception(self, permit: Permit, exception: BaseException) -> None: ...
    def settle_result(self, permit: Permit, result: object) -> None: ...
    def renew(self, permit: Permit) -> None: ...


class Controlling(Protocol):
    """What this module asks of a strategy; `layer.Strategy` says what each means."""

    def inside(self, outer: Any) -> Controlling: ...  # noqa: ANN401 - layers, of which this module knows less
    def wrap(self, call_next: Runner) -> Runner: ...
    def wrap_around(
        self, call_next: Callable[..., Awaitable[Any]], func: Callable[..., Any]
    ) -> Callable[..., Awaitable[Any]] | None: ...
    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner | None: ...
    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner | None: ...
    def wrap_manager(self, call_next: StreamRunner) -> StreamRunner | None: ...


class Composed(Protocol):
    """What this module asks of a layer."""

    @property
    def parts(self) -> tuple[Deciding | Controlling, ...]:
        """Of what it consists, outermost first."""
        ...


SETTLED = -1
"""The generation of no guard, and of every permit that has been settled."""


class Permit:
    """Leave to run one call, settled exactly once: the first verdict counts, later ones change nothing.

    `generation` is the guard's at the time, and SETTLED once the permit is; a permit from an earlier generation changes
    nothing either. A guard that has to remember more derives its own. Any thread may settle it; not a checkpoint.
    """

    __slots__ = ("generation", "guard")

    def __init__(self, guard: Deciding, generation: int = 0) -> None:
        self.guard: Deciding = guard
        self.generation: int = generation

    @property
    def settled(self) -> bool:
        """Whether the permit has been settled."""
        return self.generation == SETTLED

    def use_up(self) -> bool:
        """Mark it as settled; return whether it was not. For its guard's `settle`, in a critical section."""
        if self.generation == SETTLED:
            return False
        self.generation = SETTLED
        return True

    def success(self) -> None:
        """The call succeeded."""
        self.guard.settle(self, Verdict.SUCCESS)

    def failure(self) -> None:
        """The call failed, in a way that says something about its callee."""
        self.guard.settle(self, Verdict.FAILURE)

    def ignored(self) -> None:
        """The call's end says nothing about its callee."""
        self.guard.settle(self, Verdict.IGNORED)

    def cancelled(self) -> None:
        """The call was cancelled, or never made."""
        self.guard.settle(self, Verdict.CANCELLED)

    def renew(self) -> None:
        """The call shows signs of life; the lease of a probe begins anew."""
        self.guard.renew(self)

    def __repr__(self) -> str:
        state = "settled" if self.settled else f"of generation {self.generation}"
        return f"<Permit of {self.guard.label}, {state}>"


Hearing: TypeAlias = tuple[tuple[int, Callable[[Permit, object], None]], ...]


def compose(layer: Composed) -> Runner:
    """Return the runner of a composition, its outermost layer first."""
    run: Runner = _invoke
    for link in _from_inside(layer.parts):
        run = _around(link, run, layer)
    return run if layer.parts else _bare


def compose_around(layer: Composed, func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return the coroutine function `func` inside of a composition: a coroutine function of the same arguments."""
    # Where no link minds with what it is called, the outermost one is the function that is asked for, and there is
    # neither a frame that gathers the arguments nor one that spreads them.
    run: Callable[..., Awaitable[Any]] | None = func if _makes_coroutines(func) else _checked(func)
    for link in _from_inside(layer.parts):
        run = run and (_around(link, run, layer) if isinstance(link, tuple) else link.wrap_around(run, func))
    if run is not None and layer.parts:
        return run
    whole = compose(layer)

    async def wrapper(*args: object, **kwargs: object) -> object:
        return await whole(func, args, kwargs)

    return wrapper


def passing_on(wrap: F) -> F:
    """Mark a strategy's `wrap` whose runners call the next one with exactly what they are called with, whatever it is.

    A subclass that overrides it makes no such promise until it says so too.
    """
    vars(wrap)["passes_on"] = True
    return wrap


def compose_blocking(layer: Composed) -> BlockingRunner | None:
    """Return the same for plain functions; None where a layer cannot guard them."""
    run: BlockingRunner | None = _invoke_blocking
    for link in _from_inside(layer.parts):
        run = run and (
            holding(layer, _guards_blocking(link, run)) if isinstance(link, tuple) else link.wrap_blocking(run)
        )
    return run


def compose_stream(layer: Composed) -> StreamRunner | None:
    """Return the same for async generators."""
    run: StreamRunner | None = _invoke_stream
    for link in _from_inside(layer.parts):
        run = run and (holding(layer, _guards_stream(link, run)) if isinstance(link, tuple) else link.wrap_stream(run))
    return run


def compose_manager(layer: Composed) -> StreamRunner | None:
    """Return the same for async context managers, each being a stream of one item during which its block runs."""
    run: StreamRunner | None = _invoke_stream
    for link in _from_inside(layer.parts):
        run = run and (holding(layer, _guards_stream(link, run)) if isinstance(link, tuple) else link.wrap_manager(run))
    return run


def holding(layer: Composed, run: F) -> F:
    """Make a runner, and so each of its calls from before it has begun until it has ended, hold its layer.

    By the parts alone nobody could tell that a Policy is in use: a `Keyed` wants to know.
    """
    vars(run)["__layer__"] = layer
    return run


def _from_inside(parts: tuple[Deciding | Controlling, ...]) -> Iterator[tuple[Deciding, ...] | Controlling]:
    """Yield the strategies, and the guards that neighbour one another as one tuple, innermost first."""
    counted = reversed(tuple(enumerate(parts)))
    for is_guard, neighbours in itertools.groupby(counted, key=lambda place: hasattr(place[1], "admit")):
        if is_guard:
            yield tuple(cast("Deciding", part) for _, part in neighbours)[::-1]
        else:
            yield from (cast("Controlling", part).inside(parts[:index]) for index, part in neighbours)


def _around(link: tuple[Deciding, ...] | Controlling, call_next: Runner, layer: Composed) -> Runner:
    if isinstance(link, tuple):
        return holding(layer, _one_guard(link[0], call_next) if len(link) == 1 else _guards(link, call_next))
    return link.wrap(call_next)


def _makes_coroutines(func: Callable[..., Any]) -> bool:
    """Tell whether what `func` returns is a coroutine for certain; an object may only be marked as if it were."""
    code = getattr(func, "__code__", None)
    return code is not None and bool(code.co_flags & inspect.CO_COROUTINE)


def _checked(func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    def call(*args: object, **kwargs: object) -> Awaitable[Any]:
        return _invoke(func, args, kwargs)

    return call


def _invoke(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
    # Not a coroutine itself, so that the callee's own frame is the next one.
    result = func(*args, **kwargs)
    return result if result.__class__ is CoroutineType else _awaitable(func, result)


async def _bare(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run a composition of nothing: not before it is awaited, like any other."""
    return await _invoke(func, args, kwargs)


def _awaitable(func: Callable[..., Any], result: Any) -> Awaitable[Any]:  # noqa: ANN401
    """Return what stands for the rest of a call that is no coroutine."""
    if isinstance(result, Awaitable):
        return result
    if isinstance(result, _LATER):
        msg = f"{func!r} returned {result!r}, which would run outside of the call: decorate it, or use `around`"
        raise TypeError(msg)
    return _ready(result)


async def _ready(result: object) -> object:
    return result


def _invoke_blocking(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    result = func(*args, **kwargs)
    if isinstance(result, _NOT_PLAIN):
        # What it stands for would run outside of every layer, and nobody would notice.
        if isinstance(result, CoroutineType):
            result.close()
        msg = f"{func!r} is a plain function that returned {result!r}: make it async, so that all of it is guarded"
        raise TypeError(msg)
    return result


def _invoke_stream(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, Any]:
    return func(*args, **kwargs)  # type: ignore[no-any-return]


def _one_guard(guard: Deciding, call_next: Runner) -> Runner:
    """Return the runner of a single guard: what `_guards` does, without the loops."""
    admit, settle_result, hears_success = guard.admit, guard.settle_result, guard.hears_success

    async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        permit = admit()
        if not isinstance(permit, Permit):
            permit = await _admit_slowly(guard, permit)
        try:
            result = await call_next(*args, **kwargs)
        except BaseException as exception:
            guard.settle_exception(permit, exception)
            raise
        if hears_success:
            settle_result(permit, result)
        return result

    return run


def _guards(guards: tuple[Deciding, ...], call_next: Runner) -> Runner:
    chain = tuple((guard, guard.admit) for guard in guards)
    hearing = _hearing(guards)

    async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        permits: list[Permit] = []
        try:
            for guard, admit in chain:
                permit = admit()
                if not isinstance(permit, Permit):
                    permit = await _admit_slowly(guard, permit)
                permits.append(permit)
            result = await call_next(*args, **kwargs)
            for index, settle_result in hearing:
                settle_result(permits[index], result)
        except BaseException as exception:
            _settle_exception(permits, exception)
            raise
        return result

    return run


def _guards_blocking(guards: tuple[Deciding, ...], call_next: BlockingRunner) -> BlockingRunner:
    hearing = _hearing(guards)

    def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        permits: list[Permit] = []
        try:
            for guard in guards:
                permits.append(guard.admit_blocking())  # noqa: PERF401 - the permits so far must be known if one refuses
            result = call_next(func, args, kwargs)
            for index, settle_result in hearing:
                settle_result(permits[index], result)
        except BaseException as exception:
            _settle_exception(permits, exception)
            raise
        return result

    return run


def _guards_stream(guards: tuple[Deciding, ...], call_next: StreamRunner) -> StreamRunner:
    hearing = _hearing(guards)
    return relaying(lambda *call: _Guarded(guards, hearing, functools.partial(call_next, *call)))


class _Guarded(Relay):
    """A stream inside a chain of guards, which hear of each item as a sign of life."""

    __slots__ = ("_guards", "_hearing", "_permits")

    def __init__(
        self, guards: tuple[Deciding, ...], hearing: Hearing, open_inner: Callable[[], AsyncGenerator[Any, Any]]
    ) -> None:
        super().__init__(open_inner)
        self._guards = guards
        self._hearing = hearing
        self._permits: list[Permit] = []

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        permits = self._permits
        for guard in self._guards:
            permit = guard.admit()
            permits.append(permit if isinstance(permit, Permit) else await _admit_slowly(guard, permit))
        return await super().first()

    def gave(self) -> None:
        for permit in reversed(self._permits):
            permit.guard.renew(permit)

    def ended(self) -> None:
        for index, settle_result in self._hearing:
            settle_result(self._permits[index], None)

    def failed(self, exception: BaseException) -> None:
        _settle_exception(self._permits, exception)


async def _admit_slowly(guard: Deciding, decision: Permit | NotUntil | NeverFits) -> Permit:
    """Wait for what was not admitted at once, if the guard can wait, or raise its refusal."""
    if guard.waits:
        return await guard.admit_waiting()
    raise guard.refuse(decision)  # type: ignore[arg-type]


def _hearing(guards: tuple[Deciding, ...]) -> Hearing:
    """Return the guards that a success has to be told, by their place in the chain, the innermost first."""
    return tuple(
        (index, guard.settle_result) for index, guard in reversed(tuple(enumerate(guards))) if guard.hears_success
    )


def _settle_exception(permits: list[Permit], exception: BaseException) -> None:
    """Settle what is not settled yet; an error in one guard's predicate keeps no other permit from coming back."""
    error: BaseException | None = None
    for permit in reversed(permits):
        try:
            permit.guard.settle_exception(permit, exception)
        except BaseException as raised:  # noqa: BLE001 - raised again below, once every permit has come back
            error = raised
    if error is not None:
        raise error
