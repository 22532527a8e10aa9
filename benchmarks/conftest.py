"""What the benchmarks share: timing a loop of awaits with pytest-benchmark, without its start-up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.ratios import Loop

CALLS = 1_000
ROUNDS = 50


class TimeLoop(Protocol):
    """Time `loop(calls)`; the table's numbers are for all of the `calls` together, alike for every benchmark."""

    def __call__(self, loop: Loop, *, calls: int = CALLS, rounds: int = ROUNDS) -> None:
        """Time `rounds` rounds of `loop(calls)`, after one that warms up."""


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """Keep one event loop for the whole run, so that no round pays for making one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def time_loop(benchmark: BenchmarkFixture, runner: asyncio.Runner) -> TimeLoop:
    """Give the function that times a loop of awaits; entering the event loop is spread over its many calls."""

    def time_it(loop: Loop, *, calls: int = CALLS, rounds: int = ROUNDS) -> None:
        async def timed() -> None:
            await loop(calls)

        benchmark.extra_info["calls"] = calls
        benchmark.pedantic(lambda: runner.run(timed()), rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]

    return time_it
