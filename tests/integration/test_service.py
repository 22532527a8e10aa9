"""The service as a whole: real sockets, real time, a real database on disk, both event loops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from webhook_adapter import (
    DatabaseCorruptError,
    DatabaseTooNewError,
    DatabaseUnusableError,
    DeliveryState,
    IdempotencyConflictError,
    PayloadTooLargeError,
    Settings,
    UnknownIdError,
    WebhookService,
    new_secret,
    verify,
)
from webhook_adapter.testing import Fault, ReceivedRequest, Receiver, Reply

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

LOOPBACK = ("127.0.0.0/8",)


def quick(**changes: object) -> Settings:
    """Settings for receivers on this machine, with a schedule of no delay unless `changes` says otherwise."""
    arguments: dict[str, object] = {
        "allow_http": True,
        "egress_allow": LOOPBACK,
        "retry_schedule": (0.0, 0.0, 0.0),
        "retry_jitter": 0.0,
        "breaker_failure_threshold": 1_000,
    }
    return Settings(**(arguments | changes))  # type: ignore[arg-type]


async def test_an_event_is_delivered_signed_and_recorded(tmp_path: Path) -> None:
    """What is accepted reaches the receiver once, verifies with its secret, and every step of it can be looked up."""
    secret = new_secret()
    async with Receiver(secret=secret) as receiver, WebhookService(tmp_path, settings=quick()) as service:
        endpoint = await service.register_endpoint(receiver.url + "hooks", secret=secret)
        message = await service.send_webhook_notification("order.paid", {"order": 7})
        await service.wait_until_idle()

        (request,) = receiver.requests
        assert request.verified
        assert request.message_id == message.id
        payload = verify(request.headers, request.body, [secret])
        assert isinstance(payload, dict)
        assert payload["type"] == "order.paid"
        assert payload["data"] == {"order": 7} == message.data
        (delivery,) = await service.list_deliveries(endpoint_id=endpoint.id)
        assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 1)
        (attempt,) = await service.list_attempts(message_id=message.id)
        assert (attempt.number, attempt.status_code, attempt.error) == (1, 200, None)
        assert (await service.store_statistics()).delivered == 1
        assert (await service.health()).ok


async def test_an_accepted_event_survives_a_restart(tmp_path: Path) -> None:
    """What one service accepted and did not deliver, the next one on the same directory delivers."""
    async with Receiver() as receiver:
        async with WebhookService(tmp_path, settings=quick(), dispatch=False) as service:
            await service.register_endpoint(receiver.url)
            accepted = [(await service.send_webhook_notification("order.paid", number)).id for number in range(20)]
        assert receiver.total == 0

        async with WebhookService(tmp_path, settings=quick()) as service:
            await service.wait_until_idle()

        assert sorted(request.message_id or "" for request in receiver.requests) == sorted(accepted)


async def test_a_failing_attempt_is_made_again_until_it_succeeds(tmp_path: Path) -> None:
    """A failed attempt is due again; each one is signed afresh under the same id, and numbered."""
    async with (
        Receiver([Reply(500), Reply(fault=Fault.RESET), Reply(204)]) as receiver,
        WebhookService(tmp_path, settings=quick()) as service,
    ):
        await service.register_endpoint(receiver.url)
        message = await service.send_webhook_notification("order.paid", None)
        await service.wait_until_idle()

        assert [request.message_id for request in receiver.requests] == [message.id] * 3
        attempts = await service.list_attempts(message_id=message.id)
        assert [attempt.number for attempt in attempts] == [1, 2, 3]
        assert [attempt.status_code for attempt in attempts] == [500, None, 204]
        (delivery,) = await service.list_deliveries()
        assert delivery.state is DeliveryState.DELIVERED


async def test_dead_deliveries_can_be_retried(tmp_path: Path) -> None:
    """After the last attempt a delivery is dead, with its reason; a retry by hand begins a new round."""
    async with (
        Receiver([Reply(500)] * 3 + [Reply(200)]) as receiver,
        WebhookService(tmp_path, settings=quick()) as service,
    ):
        endpoint = await service.register_endpoint(receiver.url)
        await service.send_webhook_notification("order.paid", None)
        await service.wait_until_idle()
        (dead,) = await service.list_deliveries(state=DeliveryState.DEAD)
        assert (dead.attempts, dead.reason) == (3, "status 500")

        assert await service.retry_failed_deliveries(endpoint_id="ep_other") == 0
        assert await service.retry_failed_deliveries(endpoint_id=endpoint.id) == 1
        await service.wait_until_idle()

        (delivery,) = await service.list_deliveries()
        assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 4)


async def test_the_retry_logic_may_be_used_from_many_tasks_and_threads_at_once(tmp_path: Path) -> None:
    """Dead deliveries retried by many callers at once, while more die, are each retried, and none twice at a time."""
    healthy = False

    def script(_request: ReceivedRequest) -> Reply:
        return Reply(200 if healthy else 500)

    async with (
        Receiver(script) as receiver,
        WebhookService(tmp_path, settings=quick(retry_schedule=(0.0,))) as service,
    ):
        await service.register_endpoint(receiver.url)
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(service.send_webhook_notification, "order.paid", number)
        await service.wait_until_idle()
        assert (await service.store_statistics()).dead == 100

        healthy = True
        retried: list[int] = []

        async def retry() -> None:
            retried.append(await service.retry_failed_deliveries())

        def retry_in_a_thread() -> None:
            anyio.run(retry)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(retry)
                tasks.start_soon(anyio.to_thread.run_sync, retry_in_a_thread)
        await service.wait_until_idle()

        assert sum(retried) == 100
        assert receiver.duplicates == 0
        assert (await service.store_statistics()).delivered == 100


async def test_a_failing_endpoint_opens_probes_and_closes_its_breaker(tmp_path: Path) -> None:
    """After the threshold nothing is sent until the recovery time is over; then one probe, and if it succeeds, all."""
    recovery = 0.4
    settings = quick(
        retry_schedule=(0.0,) * 10,
        breaker_failure_threshold=3,
        breaker_recovery_timeout=recovery,
        endpoint_max_concurrent=1,
    )
    async with (
        Receiver([Reply(503)] * 3 + [Reply(500), Reply(200)]) as receiver,
        WebhookService(tmp_path, settings=settings) as service,
    ):
        await service.register_endpoint(receiver.url)
        for number in range(10):
            await service.send_webhook_notification("order.paid", number)
        await service.wait_until_idle()

        times = [request.received_at for request in receiver.requests]
        # Three failures open it; a probe fails and opens it again; the next one succeeds, and all the rest follow.
        assert len(times) == 4 + 10
        assert times[3] - times[2] >= recovery * 0.95
        assert times[4] - times[3] >= recovery * 0.95
        assert service.statistics().transitions == {
            ("closed", "open"): 1,
            ("open", "half_open"): 2,
            ("half_open", "open"): 1,
            ("half_open", "closed"): 1,
        }
        assert (await service.store_statistics()).delivered == 10


async def test_a_guards_refusal_uses_up_no_attempt(tmp_path: Path) -> None:
    """What a breaker holds back is not claimed: deliveries with a single attempt outlive a circuit that is open."""
    settings = quick(
        retry_schedule=(0.0,), breaker_failure_threshold=1, breaker_recovery_timeout=0.2, endpoint_max_concurrent=1
    )
    async with (
        Receiver([Reply(500), Reply(200)]) as receiver,
        WebhookService(tmp_path, settings=settings) as service,
    ):
        await service.register_endpoint(receiver.url)
        for number in range(5):
            await service.send_webhook_notification("order.paid", number)
        await service.wait_until_idle()

        statistics = await service.store_statistics()
        assert (statistics.delivered, statistics.dead, statistics.attempts) == (4, 1, 5)


async def test_a_dead_endpoint_takes_nothing_from_a_healthy_one(tmp_path: Path) -> None:
    """While one receiver hangs, and its circuit with it, another gets everything."""
    settings = quick(attempt_timeout=0.3, breaker_failure_threshold=2, breaker_recovery_timeout=30.0)
    async with (
        Receiver(Reply(fault=Fault.HANG)) as hanging,
        Receiver() as healthy,
        WebhookService(tmp_path, settings=settings) as service,
    ):
        await service.register_endpoint(hanging.url, event_types=["*"])
        endpoint = await service.register_endpoint(healthy.url)
        for number in range(200):
            await service.send_webhook_notification("order.paid", number)
        await healthy.wait_for(200)

        assert healthy.duplicates == 0
        assert all(request.message_id is not None for request in healthy.requests)
        dead = await service.list_deliveries(state=DeliveryState.DEAD)
        assert endpoint.id not in {delivery.endpoint_id for delivery in dead}


async def test_gone_disables_the_endpoint_and_ends_what_is_pending(tmp_path: Path) -> None:
    """A 410 says that the receiver wants nothing any more."""
    settings = quick(endpoint_max_concurrent=1)
    async with Receiver(Reply(410)) as receiver:
        async with WebhookService(tmp_path, settings=settings, dispatch=False) as service:
            endpoint = await service.register_endpoint(receiver.url)
            for number in range(5):
                await service.send_webhook_notification("order.paid", number)
        async with WebhookService(tmp_path, settings=settings) as service:
            await service.wait_until_idle()
            assert not (await service.get_endpoint(endpoint.id)).enabled
            assert {delivery.state for delivery in await service.list_deliveries()} == {DeliveryState.DEAD}
            await service.send_webhook_notification("order.paid", "held")
            await service.wait_until_idle()
            assert (await service.store_statistics()).pending == 1


async def test_too_many_requests_holds_the_endpoint_until_retry_after(tmp_path: Path) -> None:
    """A 429 with Retry-After holds back everything for that endpoint, and does not count against its circuit."""
    settings = quick(breaker_failure_threshold=1, endpoint_max_concurrent=1)
    async with (
        Receiver([Reply(429, headers=(("Retry-After", "1"),)), Reply(200)]) as receiver,
        WebhookService(tmp_path, settings=settings) as service,
    ):
        await service.register_endpoint(receiver.url)
        for number in range(3):
            await service.send_webhook_notification("order.paid", number)
        await service.wait_until_idle()

        times = [request.received_at for request in receiver.requests]
        assert len(times) == 4
        assert times[1] - times[0] >= 0.95
        assert service.statistics().transitions == {}


async def test_an_endpoint_gets_no_more_than_its_rate(tmp_path: Path) -> None:
    """In any window, attempts stay within the burst of one second and the rate (RL1), and none is lost."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        await service.register_endpoint(receiver.url, rate_limit=20.0)
        for number in range(30):
            await service.send_webhook_notification("order.paid", number)
        await service.wait_until_idle()

        times = sorted(request.received_at for request in receiver.requests)
        assert len(times) == 30
        # What came beyond the burst of 20 took its time: requests are stamped on arrival, never before they were sent.
        assert times[-1] - times[0] >= (30 - 20 - 1) / 20.0 * 0.9


async def test_an_ordered_endpoint_is_served_one_by_one_in_order(tmp_path: Path) -> None:
    """The order of first success is the order of acceptance, retries included (WH6)."""
    replies = [Reply(500) if number % 3 == 0 else Reply(200) for number in range(10)] + [Reply(200)]
    async with Receiver(replies) as receiver, WebhookService(tmp_path, settings=quick()) as service:
        await service.register_endpoint(receiver.url, ordered=True)
        for number in range(10):
            await service.send_webhook_notification("order.paid", number)
        await service.wait_until_idle()

        seen: list[int] = []
        for request in receiver.requests:
            data = json.loads(request.body)["data"]
            if data not in seen:
                seen.append(data)
        assert seen == list(range(10))
        assert (await service.store_statistics()).delivered == 10


async def test_only_those_who_subscribe_are_told(tmp_path: Path) -> None:
    """Event types are matched exactly or by prefix; a message for nobody is accepted, and counted."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        await service.register_endpoint(receiver.url + "orders", event_types=["order.*"])
        await service.register_endpoint(receiver.url + "paid", event_types=["order.paid"])
        await service.send_webhook_notification("order.paid", None)
        await service.send_webhook_notification("order.made", None)
        await service.send_webhook_notification("user.made", None)
        await service.wait_until_idle()

        assert sorted(request.path for request in receiver.requests) == ["/orders", "/orders", "/paid"]
        assert (await service.store_statistics()).unrouted == 1


async def test_the_same_idempotency_key_is_the_same_message(tmp_path: Path) -> None:
    """Sent again it is not delivered again; with other data it is refused, and names the key (WH3)."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        await service.register_endpoint(receiver.url)
        first = await service.send_webhook_notification("order.paid", {"order": 7}, idempotency_key="k")
        again = await service.send_webhook_notification("order.paid", {"order": 7}, idempotency_key="k")
        with pytest.raises(IdempotencyConflictError, match="'k'"):
            await service.send_webhook_notification("order.paid", {"order": 8}, idempotency_key="k")
        await service.wait_until_idle()

        assert again.id == first.id
        assert receiver.total == 1


async def test_a_rotated_secret_signs_beside_the_old_one(tmp_path: Path) -> None:
    """During the overlap both secrets verify, the new one first (WH7)."""
    old = new_secret()
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        endpoint = await service.register_endpoint(receiver.url, secret=old)
        new = await service.rotate_secret(endpoint.id)
        await service.send_webhook_notification("order.paid", None)
        await service.wait_until_idle()

        (request,) = receiver.requests
        verify(request.headers, request.body, [old])
        verify(request.headers, request.body, [new])
        assert len((request.header("webhook-signature") or "").split()) == 2


async def test_a_paused_endpoint_is_held_and_resumed(tmp_path: Path) -> None:
    """What comes while it is paused is delivered when it no longer is."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        endpoint = await service.register_endpoint(receiver.url)
        await service.update_endpoint(endpoint.id, paused=True)
        await service.send_webhook_notification("order.paid", None)
        await service.wait_until_idle()
        assert receiver.total == 0

        await service.update_endpoint(endpoint.id, paused=False)
        await service.wait_until_idle()
        assert receiver.total == 1


async def test_a_changed_url_is_used_by_later_attempts(tmp_path: Path) -> None:
    """An update reaches deliveries that are already waiting (F40)."""
    async with Receiver(Reply(500)) as broken, Receiver() as fixed:
        settings = quick(retry_schedule=(0.0, 3600.0))
        async with WebhookService(tmp_path, settings=settings) as service:
            endpoint = await service.register_endpoint(broken.url)
            await service.send_webhook_notification("order.paid", None)
            await broken.wait_for(1)
        async with WebhookService(tmp_path, settings=settings) as service:
            await service.update_endpoint(endpoint.id, url=fixed.url)
            (delivery,) = await service.list_deliveries()
            assert delivery.attempts == 1
            await service.replay(message_id=delivery.message_id)
            assert (await service.get_endpoint(endpoint.id)).url == fixed.url


async def test_deleting_an_endpoint_cancels_what_is_pending(tmp_path: Path) -> None:
    """Nothing is sent for an endpoint that is no more."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        endpoint = await service.register_endpoint(receiver.url)
        await service.update_endpoint(endpoint.id, paused=True)
        await service.send_webhook_notification("order.paid", None)
        assert await service.delete_endpoint(endpoint.id) == 1
        await service.wait_until_idle()

        assert receiver.total == 0
        with pytest.raises(UnknownIdError):
            await service.get_endpoint(endpoint.id)
        assert [delivery.state for delivery in await service.list_deliveries()] == [DeliveryState.CANCELLED]


async def test_an_example_reaches_an_endpoint_whatever_it_subscribes_to(tmp_path: Path) -> None:
    """send_example goes to the one endpoint it names."""
    async with Receiver() as receiver, WebhookService(tmp_path, settings=quick()) as service:
        endpoint = await service.register_endpoint(receiver.url + "a", event_types=["order.*"])
        await service.register_endpoint(receiver.url + "b")
        await service.send_example(endpoint.id)
        await service.wait_until_idle()

        assert [request.path for request in receiver.requests] == ["/a"]


async def test_leaving_the_service_lets_attempts_in_flight_end(tmp_path: Path) -> None:
    """A stop claims no more, waits for what is being sent, and records it (WH13)."""
    async with Receiver(Reply(200, latency=0.3)) as receiver:
        async with WebhookService(tmp_path, settings=quick(drain_timeout=10.0)) as service:
            await service.register_endpoint(receiver.url)
            await service.send_webhook_notification("order.paid", None)
            await receiver.wait_for(1)
        async with WebhookService(tmp_path, settings=quick(), dispatch=False) as service:
            assert (await service.store_statistics()).delivered == 1


async def test_what_does_not_end_in_the_grace_period_is_given_back(tmp_path: Path) -> None:
    """An attempt that hangs at the stop is cancelled, its lease given back, and made again by the next process."""
    async with Receiver([Reply(fault=Fault.HANG), Reply(200)]) as receiver:
        settings = quick(drain_timeout=0.0)
        async with WebhookService(tmp_path, settings=settings) as service:
            await service.register_endpoint(receiver.url)
            await service.send_webhook_notification("order.paid", None)
            await receiver.wait_for(1)
        async with WebhookService(tmp_path, settings=settings) as service:
            await service.wait_until_idle()
            statistics = await service.store_statistics()
            assert (statistics.delivered, statistics.attempts) == (1, 1)


async def test_a_users_own_httpx_transport_can_be_used() -> None:
    """Any httpx transport fits in place of the vetting one; URLs are judged all the same."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    async with WebhookService(settings=Settings(), transport=httpx.MockTransport(answer)) as service:
        await service.register_endpoint("https://example.com/hooks")
        await service.send_webhook_notification("order.paid", None)
        await service.wait_until_idle()
        with pytest.raises(ValueError, match=r"10\.0\.0\.1"):
            await service.register_endpoint("https://10.0.0.1/hooks")

    assert [request.url.host for request in seen] == ["example.com"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://example.com/"}, "url"),
        ({"url": "https://user:pass@example.com/"}, "credentials"),
        ({"url": "https://127.0.0.1/"}, "127.0.0.1"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": 7}, "url must be a string, not 7"),
        ({"url": "https://example.com/", "headers": {"X-Two": "a\r\nb: c"}}, "X-Two"),
        ({"url": "https://example.com/", "headers": {"webhook-id": "a"}}, "webhook-id"),
        ({"url": "https://example.com/", "event_types": []}, "event_types"),
        ({"url": "https://example.com/", "event_types": ["order..paid"]}, "event_types"),
        ({"url": "https://example.com/", "secret": "hunter2"}, "secret"),
        ({"url": "https://example.com/", "rate_limit": 0.0}, "rate_limit"),
        ({"url": "https://example.com/", "rate_limit": float("nan")}, "rate_limit"),
        ({"url": "https://example.com/", "rate_limit": True}, "rate_limit"),
    ],
)
async def test_an_endpoint_that_could_not_be_used_is_refused(arguments: dict[str, object], words: str) -> None:
    """What is wrong is said when an endpoint is registered, by name, and nothing is written."""
    async with WebhookService(settings=Settings()) as service:
        with pytest.raises(ValueError, match=words):
            await service.register_endpoint(**arguments)  # type: ignore[arg-type]
        assert await service.list_endpoints() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"event_type": "order paid", "data": None}, "event_type"),
        ({"event_type": "", "data": None}, "event_type"),
        ({"event_type": "a", "data": float("nan")}, "data"),
        ({"event_type": "a", "data": object()}, "data"),
        ({"event_type": "a", "data": None, "idempotency_key": ""}, "idempotency_key"),
        ({"event_type": "a", "data": None, "deliver_at": float("inf")}, "deliver_at"),
        ({"event_type": "a", "data": None, "delay": -1.0}, "delay"),
    ],
)
async def test_a_message_that_could_not_be_delivered_is_refused(arguments: dict[str, object], words: str) -> None:
    """What is wrong is said when a message is sent, by name, and nothing is written."""
    async with WebhookService(settings=Settings()) as service:
        with pytest.raises(ValueError, match=words):
            await service.send_webhook_notification(**arguments)  # type: ignore[arg-type]
        assert await service.list_messages() == []


async def test_a_message_that_is_too_large_is_refused_before_it_is_written() -> None:
    """The error names the limit and the size (F35)."""
    async with WebhookService(settings=Settings(max_payload_bytes=1_000)) as service:
        with pytest.raises(PayloadTooLargeError, match="at most 1000 bytes"):
            await service.send_webhook_notification("a", "x" * 1_000)
        assert await service.list_messages() == []


async def test_a_damaged_database_stops_the_start(tmp_path: Path) -> None:
    """A file that is no database is refused with one sentence, and left as it is (F11)."""
    file = tmp_path / "webhooks.sqlite3"
    file.write_bytes(b"This was a database once. " * 400)
    before = file.read_bytes()

    with pytest.raises(DatabaseCorruptError):
        async with WebhookService(tmp_path, settings=Settings()):
            pass

    assert file.read_bytes() == before


async def test_a_newer_database_stops_the_start(tmp_path: Path) -> None:
    """A database that newer code has migrated is refused."""
    import sqlite3

    async with WebhookService(tmp_path, settings=Settings(), dispatch=False):
        pass
    connection = sqlite3.connect(tmp_path / "webhooks.sqlite3")
    connection.execute("UPDATE webhook_schema SET version = 999")
    connection.commit()
    connection.close()

    with pytest.raises(DatabaseTooNewError):
        async with WebhookService(tmp_path, settings=Settings()):
            pass


async def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """The error names the directory."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatabaseUnusableError, match="file/data"):
        async with WebhookService(tmp_path / "file" / "data", settings=Settings()):
            pass


@pytest.mark.parametrize(
    "arguments",
    [{"data_dir": ".", "database": "sqlite:///x"}, {"database": "mysql://a:secret@b/c"}, {"redis": "redis://x"}],
)
async def test_what_the_service_cannot_do_is_refused_at_once(arguments: dict[str, str]) -> None:
    """Arguments that exclude one another, or ask for what is not there, are a ValueError that shows no password."""
    with pytest.raises(ValueError, match=r"database|redis") as caught:
        WebhookService(**arguments, settings=Settings())  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


async def test_a_service_that_was_not_entered_says_so() -> None:
    """Its methods raise a RuntimeError instead of doing nothing."""
    service = WebhookService(settings=Settings())
    with pytest.raises(RuntimeError, match="entered first"):
        await service.list_endpoints()
    with pytest.raises(RuntimeError, match="entered first"):
        service.statistics()
    with pytest.raises(RuntimeError, match="entered"):
        await service.wait_until_idle()
