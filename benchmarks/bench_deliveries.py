"""Durable deliveries, and the two bare loops beside them; `benchmarks/deliveries.py` says what is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.from_thread
import pytest

from benchmarks.deliveries import contenders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.deliveries import Contender

COUNT = 150
NAMES = ("service, durable end to end", "bare transport", "bare httpx.AsyncClient")


@pytest.fixture(scope="module")
def portal() -> Iterator[anyio.from_thread.BlockingPortal]:
    """Keep one event loop in a thread, since a service is entered and left in the same one."""
    with anyio.from_thread.start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def entrants(portal: anyio.from_thread.BlockingPortal) -> Iterator[dict[str, Contender]]:
    """Start the receiver, the service and the clients once."""
    with portal.wrap_async_context_manager(contenders()) as started:
        yield {entrant.name: entrant for entrant in started}


@pytest.mark.benchmark(group=f"{COUNT} deliveries, 50 in flight")
@pytest.mark.parametrize("name", NAMES)
def test_deliveries(
    benchmark: BenchmarkFixture,
    portal: anyio.from_thread.BlockingPortal,
    entrants: dict[str, Contender],
    name: str,
) -> None:
    """Deliver the same number of events each way."""
    run = entrants[name].run
    benchmark.extra_info["deliveries"] = COUNT
    benchmark.pedantic(lambda: portal.call(run, COUNT), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
