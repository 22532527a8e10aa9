"""PO5 for calls that nobody goes on with: a frame that is closed or dropped gives every permit back, as cancelled."""

from __future__ import annotations

import gc
import sys
import types
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Bulkhead, CircuitBreaker, ConstantBackoff, Guard, Policy, RateLimiter, Retry, streaming
from resilience.testing import ManualClock
from tests.resilience.layers import ASYNC_FORMS, Again, Log, Noting
from tests.resilience.support import assert_caught, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator

    from resilience import Layer

Frame: TypeAlias = "Coroutine[Any, Any, None]"

PAUSED = "paused"


@types.coroutine
def pause() -> Generator[str, None, None]:
    """Wait, for whoever drives the frame by hand; no event loop is needed."""
    yield PAUSED


async def body() -> None:
    """Wait, once."""
    await pause()


async def stream() -> AsyncGenerator[str, None]:
    """Wait before the item, and after it."""
    await pause()
    yield "item"
    await pause()


@asynccontextmanager
async def manager() -> AsyncIterator[str]:
    """Wait while entering and while leaving."""
    await pause()
    yield "item"
    await pause()


async def use(policy: Policy, form: str) -> None:
    """Make a call of that form; one of a stream or manager waits thrice."""
    if form == "call":
        await policy.call(body)
    elif form == "async def":
        await policy(body)()
    elif form == "stream":
        async for _ in policy(stream)():
            await pause()
    else:
        async with policy.around(manager) if form == "around" else policy(manager)():
            await pause()


def make(kinds: list[str], guard: type[Noting]) -> list[Layer]:
    """Make layers that need no event loop."""
    clock = ManualClock()
    log: Log = []
    makers: dict[str, Callable[[], Layer]] = {
        "again": lambda: Again(log),
        "breaker": lambda: CircuitBreaker(clock=clock),
        "bulkhead": lambda: Bulkhead(3, clock=clock),
        "limiter": lambda: RateLimiter(1.0, 10, clock=clock),
        "noting": lambda: guard(log),
        "retry": lambda: Retry(3, backoff=ConstantBackoff(1.0), clock=clock),
    }
    # The breaker is innermost, where no Policy warns of it.
    return [makers[kind]() for kind in sorted(kinds, key=lambda kind: kind == "breaker")]


def law_of_closed_frames(guard: type[Noting] = Noting) -> Callable[[], None]:
    """Whether it is closed or dropped, and wherever it waits: a call is cancelled, and says nothing (PO5)."""

    @given(
        st.permutations(["again", "breaker", "bulkhead", "limiter", "noting", "retry"]),
        st.integers(1, 6),
        st.sampled_from(ASYNC_FORMS),
        st.integers(1, 3),
        st.booleans(),
    )
    def law(kinds: list[str], count: int, form: str, steps: int, dropped: bool) -> None:  # noqa: FBT001 - drawn
        layers = make([*kinds[:count], "noting"], guard)
        frames = [use(Policy(*layers), form)]
        unraisable: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", unraisable.append)
            for _ in range(steps if form in ("stream", "manager", "around") else 1):
                assert frames[0].send(None) == PAUSED
            if not dropped:
                frames[0].close()
            frames.clear()
            # What was made just now is all in the youngest generation.
            gc.collect(0)
        assert not unraisable
        for layer in layers:
            if isinstance(layer, Guard):
                statistics = layer.statistics()
                assert (statistics.in_use, statistics.failed, statistics.ignored) == (0, 0, 0)
                assert not isinstance(layer, CircuitBreaker) or statistics.cancelled == 1
                assert not isinstance(layer, Noting) or (layer.out == 0 and layer.log[-1][1] in ("cancelled", "ends"))

    return law


def test_closed_frames_are_cancelled_calls() -> None:
    """PO5: a coroutine, stream or manager that is closed or garbage gives all permits back, and nobody is to blame."""
    law_of_closed_frames()()


class _Impatient(Noting):
    """A mutant: forgets what the garbage collector has closed."""

    def _from_finalizer(self, action: Callable[[], None]) -> None:
        pass


def test_law_of_closed_frames_catches_a_guard() -> None:
    """A permit that a finalizer should have given back is missed."""
    assert_caught(law_of_closed_frames(_Impatient))


def _python_closes_in_the_middle_of_a_step() -> bool:
    """Tell whether a step that was closed leaves its generator closable, as it does from Python 3.13 on."""
    frame = stream()
    step: Any = anext(frame)
    assert step.send(None) == PAUSED
    step.close()
    try:
        frame.aclose().send(None)
    except StopIteration:
        return True
    except RuntimeError:
        return False
    raise AssertionError("a closed generator waits")


async def _close_anyhow(stream: AsyncGenerator[Any, Any]) -> None:
    await stream.aclose()


@pytest.mark.skipif(
    _python_closes_in_the_middle_of_a_step(), reason="this Python does itself what the mutant leaves out"
)
def test_law_of_closed_frames_catches_the_machinery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is closed in the middle of a step counts its call as failed: that is seen."""
    monkeypatch.setattr(streaming, "close", _close_anyhow)
    assert_caught(law_of_closed_frames())


def test_frame_that_is_closed_inside_a_critical_section_waits_for_its_end() -> None:
    """The collector may strike while the lock is held: the permit comes back once that is free, without a deadlock."""
    guard = Noting([])

    def main() -> list[tuple[str, str]]:
        frames = [guard.call(body)]
        frames[0].send(None)
        with guard._section:
            frames.clear()
            gc.collect(0)
            return list(guard.log)

    assert in_thread(main) == [("guard", "admitted")]
    assert guard.log == [("guard", "admitted"), ("guard", "cancelled")]
