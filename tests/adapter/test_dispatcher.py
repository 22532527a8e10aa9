"""What is sent when, and what is not: the dispatcher with its guards, in virtual time, over a wire that is a script."""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import httpx
import pytest

from resilience.testing import ManualClock
from webhook_adapter import (
    Delivery,
    DeliveryState,
    Settings,
    StoreClosedError,
    StoreUnavailableError,
    WebhookService,
)
from webhook_adapter.guards import fair_room
from webhook_adapter.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

# A hang of the code under test ends here, long before the time limit of a test.
PATIENCE = 10.0


@attrs.define(eq=False)
class Wire(httpx.AsyncBaseTransport):
    """Answers by host: `latency` in seconds of the clock, and `replies`, of which the last one is repeated."""

    clock: ManualClock
    latency: dict[str, float] = attrs.field(factory=dict)
    replies: dict[str, list[httpx.Response | Exception]] = attrs.field(factory=dict)
    begun: list[tuple[float, str]] = attrs.field(factory=list)
    ended: int = 0
    most: int = 0

    def count(self, host: str) -> int:
        """Return how many requests to a host have begun."""
        return sum(each == host for _at, each in self.begun)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.begun.append((self.clock.monotonic_ns() / 1e9, host))
        self.most = max(self.most, len(self.begun) - self.ended)
        try:
            if latency := self.latency.get(host):
                await self.clock.sleep(latency)
        finally:
            self.ended += 1
        script = self.replies.get(host, [])
        reply = script.pop(0) if len(script) > 1 else (script or [httpx.Response(200)])[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers)


def settings(**changes: object) -> Settings:
    """Settings with a single attempt and a breaker that never opens, unless `changes` says otherwise."""
    arguments: dict[str, object] = {"retry_schedule": (0.0,), "retry_jitter": 0.0, "breaker_failure_threshold": 100_000}
    return Settings(**(arguments | changes))  # type: ignore[arg-type]


def url(host: str) -> str:
    """The URL of a host that does not exist: the wire is a script."""
    return f"https://{host}/"


async def until(service: WebhookService, done: Callable[[], bool]) -> None:
    """Let threads and tasks go on, in no virtual time, until something holds."""
    with anyio.fail_after(PATIENCE):
        while not done():
            await service.store_statistics()


async def send(service: WebhookService, event_type: str, count: int) -> None:
    """Accept some messages at once."""
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(service.send_webhook_notification, event_type, number)


async def test_endpoints_that_hang_leave_room_for_one_that_does_not() -> None:
    """However many receivers hang, with more waiting than could ever be in flight, another one is served (WH8)."""
    clock = ManualClock()
    hosts = [f"hangs-{number}.example" for number in range(12)]
    wire = Wire(clock, latency=dict.fromkeys(hosts, 1_000.0))
    async with WebhookService(settings=settings(drain_timeout=0.0), clock=clock, transport=wire) as service:
        for host in hosts:
            await service.register_endpoint(url(host), event_types=["slow"])
        await service.register_endpoint(url("well.example"), event_types=["quick"])
        await send(service, "slow", 100)
        await until(service, lambda: all(wire.count(host) >= 5 for host in hosts))

        await send(service, "quick", 100)
        await until(service, lambda: wire.count("well.example") == 100)

        assert min(wire.count(host) for host in hosts) >= 200 // 25 - 1


async def test_no_more_is_in_flight_than_the_settings_say() -> None:
    """Many endpoints with much to do together stay within max_concurrent, and all of it is done."""
    clock = ManualClock()
    hosts = [f"h{number}.example" for number in range(10)]
    wire = Wire(clock, latency=dict.fromkeys(hosts, 0.1))
    limits = settings(max_concurrent=20, endpoint_max_concurrent=8)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        for host in hosts:
            await service.register_endpoint(url(host))
        await send(service, "order.paid", 20)
        while wire.ended < 200:
            before = wire.ended
            await until(service, lambda: len(wire.begun) > wire.ended)
            clock.advance(0.1)
            await until(service, lambda before=before: wire.ended > before)  # type: ignore[misc]
        assert wire.most <= 20
        assert sorted(collections.Counter(host for _at, host in wire.begun).values()) == [20] * 10


async def test_a_slow_receiver_still_gets_its_whole_rate() -> None:
    """What is in flight has had its token, and does not keep the next one from being used (RL11)."""
    clock = ManualClock()
    wire = Wire(clock, latency={"slow.example": 10.0})
    async with WebhookService(settings=settings(drain_timeout=0.0), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("slow.example"), rate_limit=10.0)
        await send(service, "order.paid", 60)
        await until(service, lambda: len(wire.begun) == 10)
        for _ in range(60):
            clock.advance(0.05)
            for _ in range(5):
                await service.store_statistics()
            assert len(wire.begun) <= 10 + 10 * clock.monotonic_ns() / 1e9
        # Three seconds have passed and nothing has ended; the dispatcher may be a few steps behind the clock.
        assert len(wire.begun) >= 35
        assert service.statistics().limited > 0


async def test_a_probe_is_sent_as_soon_as_the_break_is_over() -> None:
    """The dispatcher sleeps until a circuit may be tried, not until it happens to look around."""
    clock = ManualClock()
    wire = Wire(clock, replies={"a.example": [httpx.Response(500), httpx.Response(200)]})
    limits = settings(
        retry_schedule=(0.0, 0.0), breaker_failure_threshold=1, breaker_recovery_timeout=0.1, endpoint_max_concurrent=1
    )
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: service.statistics().transitions == {("closed", "open"): 1})
        await until(service, lambda: clock.next_deadline() is not None)
        clock.advance(0.11)
        await until(service, lambda: len(wire.begun) == 2)
        await service.wait_until_idle()
        assert service.statistics().transitions[("half_open", "closed")] == 1


@pytest.mark.parametrize(
    "reply", [httpx.Response(500), httpx.Response(429, headers={"Retry-After": "3600"})], ids=["open", "held"]
)
async def test_an_endpoint_that_is_held_back_with_nothing_to_do_is_idle(reply: httpx.Response) -> None:
    """A circuit that is open, or a Retry-After that goes on, keeps nobody waiting once nothing is pending for it."""
    clock = ManualClock()
    wire = Wire(clock, replies={"a.example": [reply]})
    limits = settings(breaker_failure_threshold=1)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        with anyio.fail_after(PATIENCE):
            await service.wait_until_idle()
        assert (await service.store_statistics()).dead == 1


async def test_what_is_pending_behind_an_open_circuit_is_not_idle() -> None:
    """What a guard holds back is still on its way, and is waited for."""
    clock = ManualClock()
    wire = Wire(clock, replies={"a.example": [httpx.Response(500), httpx.Response(200)]})
    limits = settings(breaker_failure_threshold=1, endpoint_max_concurrent=1)
    idle = False
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:

        async def wait() -> None:
            nonlocal idle
            await service.wait_until_idle()
            idle = True

        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 3)
        await until(service, lambda: service.statistics().transitions == {("closed", "open"): 1})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(30):
                await service.store_statistics()
            assert not idle
            clock.advance(61.0)
        assert idle
        assert (await service.store_statistics()).delivered == 2


async def test_idleness_can_be_waited_for_in_another_thread() -> None:
    """The wait may be in any event loop, and is woken there."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0})
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: len(wire.begun) == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, anyio.run, service.wait_until_idle)
            tasks.start_soon(service.wait_until_idle)
            clock.advance(1.0)
        assert (await service.store_statistics()).delivered == 1


async def test_idleness_waits_for_the_leases_of_a_process_that_is_gone(tmp_path: Path) -> None:
    """What another process took and never settled is in flight until its lease ends; then it is delivered (F3)."""
    clock = ManualClock()
    wire = Wire(clock)
    async with WebhookService(tmp_path, settings=settings(), clock=clock, dispatch=False) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        gone = await anyio.to_thread.run_sync(Store.open, tmp_path / "webhooks.sqlite3")
        assert len((await gone.claim(now=clock.time_ns() / 1e9, limit=1, lease_for=30.0, endpoint_limit=1)).claims) == 1
        await anyio.to_thread.run_sync(gone.close)

    async with WebhookService(tmp_path, settings=settings(), clock=clock, transport=wire) as service:
        idle = False

        async def wait() -> None:
            nonlocal idle
            await service.wait_until_idle()
            idle = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(30):
                await service.store_statistics()
            assert not idle
            while not idle:
                # Only while the dispatcher sleeps: or its own lease might end, too, before the outcome is recorded.
                if not wire.begun and clock.next_deadline() is not None:
                    clock.advance(1.0)
                await service.store_statistics()
        assert (await service.store_statistics()).delivered == 1
        assert (await service.store_statistics()).expired_leases == 1


async def test_waiting_for_idleness_ends_with_the_service() -> None:
    """Who waits while the service ends is told so, and does not wait for ever."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1_000.0})
    told: list[str] = []

    async with anyio.create_task_group() as tasks:  # noqa: SIM117 - one task outlives the service
        async with WebhookService(settings=settings(drain_timeout=0.0), clock=clock, transport=wire) as service:

            async def wait() -> None:
                with pytest.raises(RuntimeError, match="ending") as caught:
                    await service.wait_until_idle()
                told.append(str(caught.value))

            await service.register_endpoint(url("a.example"))
            await send(service, "order.paid", 1)
            await until(service, lambda: len(wire.begun) == 1)
            tasks.start_soon(wait)
            await service.store_statistics()
    assert len(told) == 1


async def test_a_stop_begins_no_attempt(tmp_path: Path) -> None:
    """What is leased and has not begun when the service ends is given back; what has begun may end (WH13)."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0})
    limits = settings(endpoint_max_concurrent=1)

    async def let_it_end(service: WebhookService) -> None:
        while (await service.health()).ok:
            pass
        clock.advance(1.0)

    async with anyio.create_task_group() as tasks:  # noqa: SIM117 - one task outlives the service
        async with WebhookService(tmp_path, settings=limits, clock=clock, transport=wire) as service:
            await service.register_endpoint(url("a.example"))
            await send(service, "order.paid", 5)
            await until(service, lambda: service.statistics().in_flight == 2 and len(wire.begun) == 1)
            tasks.start_soon(let_it_end, service)

    assert len(wire.begun) == 1
    async with WebhookService(tmp_path, settings=limits, clock=clock, dispatch=False) as service:
        statistics = await service.store_statistics()
        assert (statistics.delivered, statistics.pending, statistics.leased) == (1, 4, 0)


async def test_what_was_sent_and_cannot_be_recorded_keeps_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the disk full when an outcome is known, nothing more is claimed, and nothing is sent again blindly (F8)."""

    async def full(*_arguments: object, **_named: object) -> None:
        raise StoreUnavailableError("the disk is full")

    clock = ManualClock()
    wire = Wire(clock)
    async with WebhookService(tmp_path, settings=settings(drain_timeout=0.0), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"), ordered=True)
        monkeypatch.setattr(Store, "record", full)
        await send(service, "order.paid", 2)
        await until(service, lambda: service.statistics().store_trouble)
        assert not (await service.health()).ok
        await send(service, "order.paid", 2)
        for _ in range(30):
            await service.store_statistics()
        assert len(wire.begun) == 1
    (leased,) = await _in_state(tmp_path, clock, DeliveryState.LEASED)
    assert leased.attempts == 0


async def test_an_outcome_is_recorded_when_the_database_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease covers the wait; then the claiming goes on by itself (F8)."""
    clock = ManualClock()
    wire = Wire(clock)
    record = Store.record
    failing = True

    async def sometimes(*arguments: object, **named: object) -> object:
        if failing:
            raise StoreUnavailableError("the disk is full")
        return await record(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "record", sometimes)
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: service.statistics().store_trouble)
        failing = False
        clock.advance(1.0)
        await until(service, lambda: not service.statistics().store_trouble)
        await send(service, "order.paid", 1)
        await service.wait_until_idle()
        assert (await service.store_statistics()).delivered == 2 == len(wire.begun)


async def test_an_outcome_that_cannot_be_recorded_is_given_up_with_its_lease(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the lease has ended the delivery is another's to decide, and the loss is logged."""

    async def full(*_arguments: object, **_named: object) -> None:
        raise StoreUnavailableError("the disk is full")

    clock = ManualClock()
    wire = Wire(clock)
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "record", full)
            await send(service, "order.paid", 1)
            await until(service, lambda: service.statistics().store_trouble)
            clock.advance(31.0)
            await until(service, lambda: not service.statistics().store_trouble)
        assert "lost its lease" in caplog.text
        clock.advance(30.0)
        await service.wait_until_idle()
        assert (await service.store_statistics()).delivered == 1
        assert len(wire.begun) == 2


async def test_an_outcome_after_its_lease_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was held up past its lease is told that its outcome is stale; it is counted (WH9, F41)."""
    clock = ManualClock()
    wire = Wire(clock)
    record = Store.record

    async def late(self: Store, *arguments: object, **named: object) -> object:
        monkeypatch.undo()
        clock.advance(60.0)
        await self.recover_leases(now=clock.time_ns() / 1e9)
        return await record(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "record", late)
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: service.statistics().stale == 1)
        await service.wait_until_idle()
        statistics = await service.store_statistics()
        assert (statistics.delivered, statistics.attempts, statistics.stale) == (1, 1, 1)


async def test_a_transport_with_a_fault_of_its_own_costs_an_attempt_and_shows_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error that no transport should raise is an attempt that failed; its words stay out of log and store (WH12)."""
    clock = ManualClock()
    wire = Wire(clock, replies={"a.example": [RuntimeError("Authorization: canary"), httpx.Response(200)]})
    caplog.set_level(logging.DEBUG)
    async with WebhookService(settings=settings(retry_schedule=(0.0, 0.0)), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"), headers={"Authorization": "canary"})
        await send(service, "order.paid", 1)
        await service.wait_until_idle()
        first, second = sorted(await service.list_attempts(), key=lambda attempt: attempt.number)
        assert (first.error, second.status_code) == ("the attempt itself failed (RuntimeError)", 200)
    assert "RuntimeError" in caplog.text
    assert "handle_async_request" in caplog.text
    assert "canary" not in caplog.text


async def test_enabling_an_endpoint_lifts_what_its_receiver_had_asked_for() -> None:
    """Who enables an endpoint by hand means now, whatever Retry-After said before."""
    clock = ManualClock()
    reply = httpx.Response(429, headers={"Retry-After": "3600"})
    wire = Wire(clock, replies={"a.example": [reply, httpx.Response(200)]})
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await service.wait_until_idle()
        await service.enable_endpoint(endpoint.id)
        await send(service, "order.paid", 1)
        await until(service, lambda: len(wire.begun) == 2)


async def test_a_retry_after_holds_what_is_leased_already() -> None:
    """Deliveries that wait for their turn when a 429 comes are given back, and come when it is over."""
    clock = ManualClock()
    reply = httpx.Response(429, headers={"Retry-After": "100"})
    wire = Wire(clock, replies={"a.example": [reply, httpx.Response(200)]}, latency={"a.example": 1.0})
    limits = settings(retry_schedule=(0.0, 0.0), endpoint_max_concurrent=1)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 2)
        await until(service, lambda: service.statistics().in_flight == 2 and len(wire.begun) == 1)
        clock.advance(1.0)
        await until(service, lambda: service.statistics().in_flight == 0)
        assert len(wire.begun) == 1
        clock.advance(99.0)
        for _ in range(30):
            await service.store_statistics()
        assert len(wire.begun) == 1
        while wire.ended < 3:
            clock.advance(1.0)
            await service.store_statistics()
        await service.wait_until_idle()
        assert (await service.store_statistics()).delivered == 2


async def test_what_is_older_than_it_is_kept_is_deleted() -> None:
    """A service that runs for long keeps what `retention_for` says, and whatever is still on its way."""
    clock = ManualClock()
    wire = Wire(clock)
    limits = settings(retention_for=1_000.0, expire_after=10_000.0)
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"), event_types=["a"])
        paused = await service.register_endpoint(url("b.example"), event_types=["b"])
        await service.update_endpoint(paused.id, paused=True)
        await service.send_webhook_notification("a", None)
        held = await service.send_webhook_notification("b", None)
        await service.wait_until_idle()
        assert len(await service.list_messages()) == 2
        clock.advance(2_000.0)
        with anyio.fail_after(PATIENCE):
            while len(await service.list_messages()) == 2:
                clock.advance(1.0)
        assert [message.id for message in await service.list_messages()] == [held.id]


async def test_a_wall_clock_that_jumps_moves_no_attempt() -> None:
    """An hour's jump either way neither sends a retry early nor parks it (WH14)."""
    for jump in (3_600.0, -3_600.0):
        clock = ManualClock()
        wire = Wire(clock, replies={"a.example": [httpx.Response(500), httpx.Response(200)]})
        limits = settings(retry_schedule=(0.0, 60.0))
        async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
            await service.register_endpoint(url("a.example"))
            await send(service, "order.paid", 1)
            await until(service, lambda: service.statistics().failed == 1)
            clock.jump_wall(jump)
            for _ in range(59):
                clock.advance(1.0)
                await service.store_statistics()
            assert len(wire.begun) == 1
            with anyio.fail_after(PATIENCE):
                while len(wire.begun) < 2:
                    clock.advance(1.0)
                    await service.store_statistics()
            # It looks at its own clock, a step or more behind ours at the most.
            assert clock.monotonic_ns() / 1e9 < 100.0


async def _in_state(path: Path, clock: ManualClock, state: DeliveryState) -> list[Delivery]:
    async with WebhookService(path, settings=settings(), clock=clock, dispatch=False) as service:
        return await service.list_deliveries(state=state)


async def test_a_failing_endpoint_opens_its_circuit_is_probed_and_closes_it() -> None:
    """Three failures open it; a probe that fails opens it again, one that succeeds closes it; all the rest follows."""
    clock = ManualClock()
    script = [httpx.Response(status) for status in (503, 503, 503, 500, 200)]
    wire = Wire(clock, replies={"a.example": list[httpx.Response | Exception](script)})
    limits = settings(
        retry_schedule=(0.0,) * 10,
        breaker_failure_threshold=3,
        breaker_recovery_timeout=60.0,
        endpoint_max_concurrent=1,
    )
    async with WebhookService(settings=limits, clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 10)
        await until(service, lambda: service.statistics().transitions == {("closed", "open"): 1})
        for probes in (1, 2):
            clock.advance(59.0)
            for _ in range(20):
                await service.store_statistics()
            assert len(wire.begun) == 2 + probes
            with anyio.fail_after(PATIENCE):
                while len(wire.begun) == 2 + probes:
                    clock.advance(0.5)
                    await service.store_statistics()
            await until(service, lambda probes=probes: service.statistics().failed + 1 >= 3 + probes)  # type: ignore[misc]
        await service.wait_until_idle()
        assert service.statistics().transitions == {
            ("closed", "open"): 1,
            ("open", "half_open"): 2,
            ("half_open", "open"): 1,
            ("half_open", "closed"): 1,
        }
        assert len(wire.begun) == 4 + 10
        assert (await service.store_statistics()).delivered == 10


async def test_a_database_that_is_locked_for_a_while_delays_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be claimed now is claimed later (F9)."""
    clock = ManualClock()
    wire = Wire(clock)

    async def locked(*_arguments: object, **_named: object) -> None:
        raise StoreUnavailableError("the database is locked by another process")

    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "claim", locked)
            await send(service, "order.paid", 3)
            await until(service, lambda: "nothing can be claimed" in caplog.text)
            assert wire.begun == []
        with anyio.fail_after(PATIENCE):
            while wire.ended < 3:
                clock.advance(0.5)
                await service.store_statistics()
        await service.wait_until_idle()
        assert (await service.store_statistics()).delivered == 3


async def test_a_lease_that_cannot_be_given_back_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the disk full at the stop, the delivery stays leased until its time is over; the stop is not held up."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1_000.0})

    async def full(*_arguments: object, **_named: object) -> None:
        raise StoreUnavailableError("the disk is full")

    async with WebhookService(settings=settings(drain_timeout=0.0), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: len(wire.begun) == 1)
        monkeypatch.setattr(Store, "release", full)
    assert "could not be given back" in caplog.text


async def test_a_rate_can_be_given_changed_and_taken_away_while_it_runs() -> None:
    """Later attempts follow the endpoint's present rate; its circuit and what is in flight are not forgotten."""
    clock = ManualClock()
    wire = Wire(clock)
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        endpoint = await service.register_endpoint(url("a.example"))
        sent = 0
        for rate, at_once in ((None, 30), (5.0, 5), (10.0, None), (None, 30)):
            await service.update_endpoint(endpoint.id, rate_limit=rate)
            await send(service, "order.paid", 30)
            if at_once is not None:
                sent += at_once
                await until(service, lambda: len(wire.begun) >= sent)  # noqa: B023 - awaited in this round
                for _ in range(10):
                    await service.store_statistics()
                assert len(wire.begun) == sent
            with anyio.fail_after(PATIENCE):
                while (await service.store_statistics()).pending:
                    clock.advance(0.1)
            await until(service, lambda: service.statistics().in_flight == 0)
            sent = len(wire.begun)
        assert sent == 120 == (await service.store_statistics()).delivered


async def test_a_store_that_closes_under_it_ends_the_dispatcher_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is delivered without a store; who embeds the service is not crashed by it."""
    clock = ManualClock()
    wire = Wire(clock, latency={"a.example": 1.0})
    async with WebhookService(settings=settings(), clock=clock, transport=wire) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: len(wire.begun) == 1)
        await anyio.to_thread.run_sync(service._store.close)
        clock.advance(1.0)
        with anyio.fail_after(PATIENCE):
            while (await service.health()).dispatcher == "ok":
                clock.advance(1.0)
                # With its store closed, asking for the health waits for nothing.
                await anyio.lowlevel.checkpoint()
        assert not (await service.health()).ok
    assert "closed under the dispatcher" in caplog.text


async def test_an_outcome_that_comes_after_the_store_was_closed_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The delivery stays leased, and is another process's when that ends (F4)."""

    async def closed(*_arguments: object, **_named: object) -> None:
        raise StoreClosedError("the store is closed")

    clock = ManualClock()
    monkeypatch.setattr(Store, "record", closed)
    async with WebhookService(settings=settings(), clock=clock, transport=Wire(clock)) as service:
        await service.register_endpoint(url("a.example"))
        await send(service, "order.paid", 1)
        await until(service, lambda: "ended after the store had been closed" in caplog.text)
        assert (await service.store_statistics()).leased == 1


async def test_a_single_place_is_shared_by_all() -> None:
    """With room for one attempt in all, endpoints take turns, and everything is delivered."""
    clock = ManualClock()
    hosts = [f"h{number}.example" for number in range(3)]
    wire = Wire(clock, latency=dict.fromkeys(hosts, 0.1))
    async with WebhookService(settings=settings(max_concurrent=1), clock=clock, transport=wire) as service:
        for host in hosts:
            await service.register_endpoint(url(host))
        await send(service, "order.paid", 4)
        with anyio.fail_after(PATIENCE):
            while wire.ended < 12:
                clock.advance(0.1)
                await service.store_statistics()
        assert wire.most == 1
        await service.wait_until_idle()
        assert (await service.store_statistics()).delivered == 12


@pytest.mark.parametrize(
    ("leased", "most", "free", "expected"),
    [
        (0, 50, 200, 50),  # alone: all that it may have
        (50, 50, 200, 0),  # who has all its places takes no more from others
        (100, 50, 200, 0),
        (0, 50, 50, 33),  # two thirds at the most
        (20, 50, 10, 0),  # at twice what is free there is no more
        (0, 50, 1, 1),  # one is always for who has none
        (0, 1, 1, 1),
        (0, 50, 0, 0),
    ],
)
def test_the_fair_room_of_an_endpoint(leased: int, most: int, free: int, expected: int) -> None:
    """An endpoint may have up to twice what is left for others, and one if it has none."""
    assert expected == fair_room(leased, most, free)
