"""How deliveries follow one another: what is claimed ahead, handed on, given back and recorded together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
import attrs
import httpx
import pytest

from resilience.testing import ManualClock
from tests.adapter.test_dispatcher import Wire, send, settings, until, url
from webhook_adapter import DeliveryState, WebhookService
from webhook_adapter.crew import Crew
from webhook_adapter.guards import EndpointGuards, Guards
from webhook_adapter.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from webhook_adapter.crew import Job
    from webhook_adapter.model import Endpoint
    from webhook_adapter.store import Settlement

pytestmark = pytest.mark.anyio


def guards_of(endpoint_max_concurrent: int, *, leased: int = 0, rate_limit: float | None = None) -> EndpointGuards:
    """Return the guards of an endpoint that has so many deliveries leased."""
    from tests.adapter.store.support import an_endpoint

    endpoint: Endpoint = attrs.evolve(an_endpoint("ep_1"), rate_limit=rate_limit)
    made = Guards(
        settings(endpoint_max_concurrent=endpoint_max_concurrent), clock=ManualClock(), on_transition=lambda *_: None
    )
    found = made.of(endpoint)
    found.leased = leased
    return found


@pytest.mark.parametrize(
    ("lasting", "expected"),
    [
        ([], 50),  # nothing is known: as many as can be sent at once
        ([10.0], 50),
        ([0.02], 125),  # fifty at a time, and fifty milliseconds of that
        ([0.001], 200),  # no more than this, however quick
        ([0.0], 200),
        ([0.001] + [10.0] * 100, 50),  # the last ones count
    ],
)
def test_what_is_ready_follows_the_pace(lasting: list[float], expected: int) -> None:
    """A quick receiver has what it takes in a twentieth of a second ready; a slow one no more than its places."""
    guards = guards_of(50)
    for duration in lasting:
        guards.lasted(duration)
    assert guards.lookahead == expected


@pytest.mark.parametrize(
    ("leased", "expected"),
    [(0, 0), (1, 0), (2, 2), (3, 1), (4, 0), (9, 0)],
)
def test_only_who_is_full_has_something_ahead(leased: int, expected: int) -> None:
    """What takes room from others is shared out; what waits behind that takes none, and fills up to the lookahead."""
    assert guards_of(2, leased=leased).ahead(0.0) == expected


def test_nothing_is_ahead_of_a_limiter_or_a_circuit() -> None:
    """What the limiter has no token for, or the circuit would refuse, is not claimed."""
    limited = guards_of(2, leased=2, rate_limit=1.0)
    assert limited.ahead(0.0) == 0
    held = guards_of(2, leased=2)
    held.held_until = 1.0
    assert (held.ahead(0.5), held.ahead(1.0)) == (0, 2)
    broken = guards_of(2, leased=2)
    with broken.breaker.isolate():
        assert broken.ahead(0.0) == 0
    assert math.isinf(broken.pace)


async def test_a_long_queue_is_sent_in_order_by_the_few_who_may() -> None:
    """With two at a time nothing is lost, doubled or overtaken on the way through what is ready."""
    clock = ManualClock()
    wire = Wire(clock)
    async with WebhookService(settings=settings(endpoint_max_concurrent=2), clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 150)
        await service.update_endpoint(endpoint.id, paused=False)
        await service.wait_until_idle()
        assert (wire.most <= 2, len(wire.begun)) == (True, 150)
        assert (await service.store_statistics()).delivered == 150
        assert service.statistics().in_flight == 0


async def test_outcomes_of_one_moment_are_recorded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty answers that come together cost a few transactions, and each is recorded once."""
    sizes: list[int] = []
    real = Store.record

    async def record(self: Store, settlements: list[Settlement]) -> object:
        sizes.append(len(settlements))
        return await real(self, settlements)

    monkeypatch.setattr(Store, "record", record)
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0})
    limits = settings(endpoint_max_concurrent=50, max_concurrent=200)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 50)
        await until(service, lambda: len(wire.begun) == 50)
        clock.advance(1.0)
        await service.wait_until_idle()
    assert sum(sizes) == 50
    assert len(sizes) <= 5


async def test_what_is_ready_is_given_back_when_its_circuit_opens() -> None:
    """One refusal speaks for all that wait behind it; none of them has used up an attempt."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0}, replies={"a.example": [httpx.Response(500)]})
    limits = settings(
        retry_schedule=(0.0, 1_000.0), breaker_failure_threshold=1, breaker_recovery_timeout=600.0,
        endpoint_max_concurrent=1, drain_timeout=0.0,
    )  # fmt: skip
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 10)
        await service.update_endpoint(endpoint.id, paused=False)
        await until(service, lambda: len(wire.begun) == 1)
        clock.advance(1.0)
        await until(service, lambda: service.statistics().in_flight == 0)
        statistics = await service.store_statistics()
        assert (statistics.pending, statistics.leased, statistics.attempts) == (10, 0, 1)
        assert service.statistics().rejected <= 1
        assert len(wire.begun) == 1


async def test_what_is_ready_is_given_back_when_the_service_ends(tmp_path: Path) -> None:
    """A stop waits for what is being sent, and leaves the rest to whoever comes next, at once."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1_000.0})
    limits = settings(endpoint_max_concurrent=1, drain_timeout=0.0)
    async with WebhookService(tmp_path, settings=limits, clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 10)
        await service.update_endpoint(endpoint.id, paused=False)
        await until(service, lambda: service.statistics().in_flight == 2)
    async with WebhookService(tmp_path, settings=limits, clock=clock, dispatch=False) as service:
        pending = await service.list_deliveries(state=DeliveryState.PENDING)
        assert [each.attempts for each in pending] == [0] * 10


async def test_what_is_ready_is_not_sent_to_an_endpoint_that_is_gone() -> None:
    """After a 410 nothing more is sent, and what was claimed ahead ends with all else that was pending."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0}, replies={"a.example": [httpx.Response(410)]})
    async with WebhookService(settings=settings(endpoint_max_concurrent=1), clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 10)
        await service.update_endpoint(endpoint.id, paused=False)
        await until(service, lambda: service.statistics().in_flight == 2)
        clock.advance(1.0)
        await until(service, lambda: service.statistics().in_flight == 0)
        statistics = await service.store_statistics()
        assert (statistics.dead, statistics.pending, statistics.attempts) == (10, 0, 1)
        assert len(wire.begun) == 1


async def test_what_is_ready_waits_with_an_endpoint_that_asks_for_it() -> None:
    """After a 429 all that was claimed ahead is given back in one go, due when the endpoint said."""
    clock = ManualClock()
    wire = Wire(
        clock,
        latency={"a.example": 1.0},
        replies={"a.example": [httpx.Response(429, headers={"Retry-After": "60"}), httpx.Response(200)]},
    )
    limits = settings(endpoint_max_concurrent=1, retry_schedule=(0.0, 1.0))
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 10)
        await service.update_endpoint(endpoint.id, paused=False)
        await until(service, lambda: service.statistics().in_flight == 2)
        clock.advance(1.0)
        await until(service, lambda: service.statistics().in_flight == 0)
        statistics = await service.store_statistics()
        assert (statistics.pending, statistics.attempts, len(wire.begun)) == (10, 1, 1)


async def test_an_outcome_that_a_cancellation_overtakes_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known and not yet on its way to the store when everything is cancelled, it is not sent a second time for that."""
    clock = ManualClock()
    wire = Wire(clock)
    real = Crew.start

    def start(self: Crew, job: Job) -> None:
        if getattr(job, "__name__", "") != "flush":
            real(self, job)

    monkeypatch.setattr(Crew, "start", start)
    limits = settings(drain_timeout=0.0)
    async with WebhookService(tmp_path, settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: service.statistics().succeeded == 1)
        assert (await service.store_statistics()).delivered == 0
    async with WebhookService(tmp_path, settings=limits, clock=clock, dispatch=False) as service:
        assert (await service.store_statistics()).delivered == 1


async def test_no_more_is_sent_than_may_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """WH15: while outcomes wait to be recorded they count as in flight, so a crash repeats no more than that."""
    gate = anyio.Event()
    real = Store.record

    async def record(self: Store, settlements: list[Settlement]) -> object:
        await gate.wait()
        return await real(self, settlements)

    monkeypatch.setattr(Store, "record", record)
    clock = ManualClock()
    wire = Wire(clock)
    limits = settings(max_concurrent=5, endpoint_max_concurrent=5)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await service.update_endpoint(endpoint.id, paused=True)
        await send(service, "order.paid", 20)
        await service.update_endpoint(endpoint.id, paused=False)
        await until(service, lambda: len(wire.begun) >= 4)
        for _ in range(20):
            await service.store_statistics()
        assert len(wire.begun) <= 5
        gate.set()
        await service.wait_until_idle()
        assert len(wire.begun) == 20
        assert (await service.store_statistics()).delivered == 20
