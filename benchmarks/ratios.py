"""How many times a bare `await` something costs: the measure in which the project states its speed.

Rules of this module:

* A number of nanoseconds says more about the machine and the hour than about the code; a ratio taken in one process,
  in one run, says it about the code.
* The cases and the bare await take turns, round by round, each round short. So whatever slows the machine for a while
  slows all of them, and the best round of each is one that nothing disturbed.
* A case is a loop of its own, `async def loop(calls)`, so that no adapter stands between the measure and what is
  measured; the bare await is measured by such a loop too.
"""

from __future__ import annotations

import gc
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

__all__ = ["BARE", "Case", "Ratio", "bare", "exceeded", "measure", "repeated", "spread", "table"]

Loop: TypeAlias = "Callable[[int], Coroutine[Any, Any, None]]"


@attrs.frozen
class Case:
    """Something to time: `loop(calls)` does it that many times; `target` is the largest ratio allowed, if any."""

    name: str
    loop: Loop
    target: float | None = None


@attrs.frozen
class Ratio:
    """What a case cost: nanoseconds a call in its best round, and that as a multiple of the bare await."""

    name: str
    nanoseconds: float
    ratio: float
    target: float | None = None


async def _nothing() -> None:
    """Do what every case does besides its task: be awaited."""


async def bare(calls: int) -> None:
    """Await nothing at all, `calls` times."""
    for _ in repeat(None, calls):
        await _nothing()


BARE = Case("bare await", bare)


def repeated(func: Callable[[], Awaitable[object]]) -> Loop:
    """Make the loop of a case that awaits `func()`."""

    async def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            await func()

    return loop


def spread(loop: Loop, *, tasks: int) -> Loop:
    """Make a loop that shares its calls among so many tasks; a count that is no multiple is rounded up."""

    async def shared(calls: int) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(loop, -(-calls // tasks))

    return shared


async def measure(
    cases: Sequence[Case],
    *,
    rounds: int = 200,
    calls: int = 500,
    timer: Callable[[], int] = time.perf_counter_ns,
) -> list[Ratio]:
    """Time the cases and the bare await in turns, and return one ratio a case, the bare await's first.

    `rounds` rounds of `calls` calls for each case; `timer` gives nanoseconds. Garbage is collected before, not during.
    """
    everything = (BARE, *cases)
    best = [float("inf")] * len(everything)
    for case in everything:
        # The first calls fill caches and let the interpreter specialise.
        await case.loop(calls)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for index, case in enumerate(everything):
                started = timer()
                await case.loop(calls)
                best[index] = min(best[index], (timer() - started) / calls)
    finally:
        if collecting:
            gc.enable()
    return [
        Ratio(case.name, nanoseconds, nanoseconds / best[0], case.target)
        for case, nanoseconds in zip(everything, best, strict=True)
    ]


def exceeded(ratios: Iterable[Ratio]) -> list[Ratio]:
    """Return the ratios that are above their targets."""
    return [entry for entry in ratios if entry.target is not None and entry.ratio > entry.target]


def table(ratios: Sequence[Ratio]) -> str:
    """Lay the ratios out in columns; one above its target is marked."""
    width = max(len("case"), *(len(entry.name) for entry in ratios))
    missed = exceeded(ratios)
    lines = [f"{'case':<{width}}  {'ns':>8}  {'x bare':>7}  {'target':>6}"]
    for entry in ratios:
        target = "" if entry.target is None else f"{entry.target:g}"
        mark = "  MISSED" if entry in missed else ""
        lines.append(
            f"{entry.name:<{width}}  {entry.nanoseconds:>8.0f}  {entry.ratio:>7.1f}  {target:>6}{mark}".rstrip()
        )
    return "\n".join(lines)
