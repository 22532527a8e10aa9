"""Load: many endpoints and many messages over real sockets and a real database, every one of them accounted for."""

from __future__ import annotations

import collections
import random
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import httpx
import pytest

from webhook_adapter import EventBus, Settings, WebhookEventHandler, WebhookService
from webhook_adapter.testing import Fault, ReceivedRequest, Receiver, Reply

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

ENDPOINTS = 24
MESSAGES = 60
KINDS = ("well", "slow", "flaky")


class Receivers:
    """A script that behaves by path, and never refuses a message more than twice; what it took can be asked."""

    def __init__(self) -> None:
        self._dice = random.Random(7)
        self._refused: collections.Counter[tuple[str, str]] = collections.Counter()
        self.taken: collections.Counter[tuple[str, str]] = collections.Counter()

    def __call__(self, request: ReceivedRequest) -> Reply:
        pair = (request.path, request.message_id or "")
        if "flaky" in request.path and self._refused[pair] < 2 and self._dice.random() < 0.4:
            self._refused[pair] += 1
            return Reply(503) if self._dice.random() < 0.5 else Reply(fault=Fault.RESET)
        self.taken[pair] += 1
        return Reply(200, latency=0.02 if "slow" in request.path else 0.0)


async def test_many_endpoints_and_messages_are_all_accounted_for(tmp_path: Path) -> None:
    """Each of many messages reaches each of many receivers, well, slow or flaky, once; both sides count alike (WH2)."""
    receivers = Receivers()
    settings = Settings(
        allow_http=True,
        egress_allow=("127.0.0.0/8",),
        retry_schedule=(0.0, 0.01, 0.02, 0.03),
        breaker_failure_threshold=20,
        breaker_recovery_timeout=0.05,
        max_concurrent=60,
        endpoint_max_concurrent=20,
    )
    async with Receiver(receivers) as receiver, WebhookService(tmp_path, settings=settings) as service:
        paths = [f"/{KINDS[number % len(KINDS)]}/{number}" for number in range(ENDPOINTS)]
        for path in paths:
            await service.register_endpoint(receiver.url + path[1:])
        accepted: list[str] = []

        async def send(first: int) -> None:
            for number in range(first, MESSAGES, 6):
                message = await service.send_webhook_notification("order.paid", number)
                accepted.append(message.id)

        async with anyio.create_task_group() as tasks:
            for first in range(6):
                tasks.start_soon(send, first)
        await service.wait_until_idle()

        assert receivers.taken == collections.Counter((path, message) for path in paths for message in accepted)
        stored, done = await service.store_statistics(), service.statistics()
        assert (stored.messages, stored.delivered) == (MESSAGES, MESSAGES * ENDPOINTS)
        assert (stored.pending, stored.leased, stored.dead, stored.stale, stored.expired_leases) == (0, 0, 0, 0, 0)
        assert done.succeeded == stored.delivered
        assert done.attempts == stored.attempts == receiver.total
        assert done.in_flight == 0


async def test_ten_thousand_events_in_rapid_succession_are_delivered_once_each(tmp_path: Path) -> None:
    """A storm that the handler defers is on disk at once and arrives in its turns: nothing is lost, nothing twice."""
    events, rate = 10_000, 20_000.0
    arrived: collections.Counter[str] = collections.Counter()

    def answer(request: httpx.Request) -> httpx.Response:
        arrived[request.headers["webhook-id"]] += 1
        return httpx.Response(200)

    bus = EventBus()
    async with WebhookService(tmp_path, settings=Settings(), transport=httpx.MockTransport(answer)) as service:
        await service.register_endpoint("https://receiver.example/")
        handler = WebhookEventHandler(service, bus, rate=rate, capacity=200)
        numbers = iter(range(events))

        async def publish() -> None:
            for number in numbers:
                await bus.publish("order.paid", {"order": number})

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(publish)
        handled = handler.statistics()
        assert (handled.received, handled.dropped, handled.failed) == (events, 0, 0)
        assert handled.delivered + handled.deferred == events
        # The storm guard's window of a minute lets a thousand through at once; the rest has a later turn.
        assert handled.deferred >= events - 1_000
        await service.wait_until_idle()

        assert len(arrived) == events == arrived.total()
        stored = await service.store_statistics()
        assert (stored.messages, stored.delivered, stored.attempts) == (events, events, events)


async def test_failing_deliveries_may_be_retried_from_threads_and_tasks_while_they_die(tmp_path: Path) -> None:
    """Callers in several threads and tasks retry what is dying: each death is retried once, by one of them (WH4)."""
    deliveries, failures = 40, 3
    seen: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def answer(request: httpx.Request) -> httpx.Response:
        with lock:
            seen[request.headers["webhook-id"]] += 1
            return httpx.Response(200 if seen[request.headers["webhook-id"]] > failures else 500)

    settings = Settings(retry_schedule=(0.0,), breaker_failure_threshold=10_000)
    retried: list[int] = []
    async with WebhookService(tmp_path, settings=settings, transport=httpx.MockTransport(answer)) as service:
        await service.register_endpoint("https://receiver.example/")

        async def retry() -> None:
            while (await service.store_statistics()).delivered < deliveries:
                retried.append(await service.retry_failed_deliveries())

        async with anyio.create_task_group() as tasks:
            for number in range(deliveries):
                tasks.start_soon(service.send_webhook_notification, "order.paid", number)
            for _ in range(3):
                tasks.start_soon(retry)
                tasks.start_soon(anyio.to_thread.run_sync, anyio.run, retry)

        assert sum(retried) == deliveries * failures
        assert set(seen.values()) == {failures + 1}
        for delivery in await service.list_deliveries():
            attempts = await service.list_attempts(delivery_id=delivery.id)
            assert sorted(attempt.number for attempt in attempts) == list(range(1, failures + 2))
        stored = await service.store_statistics()
        assert (stored.delivered, stored.dead, stored.attempts) == (deliveries, 0, deliveries * (failures + 1))
