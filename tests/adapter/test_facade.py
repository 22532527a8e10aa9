"""WebhookService's own share: what it refuses, where its settings come from, and how its parts are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread
import httpx
import pytest
import sqlalchemy as sa

from webhook_adapter import Settings, StoreUnavailableError, UnknownIdError, WebhookService
from webhook_adapter.service import _UNSET
from webhook_adapter.store import Store

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_settings_come_from_the_environment_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """WEBHOOK_ADAPTER_* counts for an embedded service as it does for the programs."""
    monkeypatch.setenv("WEBHOOK_ADAPTER_MAX_CONCURRENT", "7")
    assert WebhookService().settings.max_concurrent == 7
    assert WebhookService(settings=Settings()).settings.max_concurrent == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay": "soon"},
        {"delay": True},
        {"delay": float("nan")},
        {"delay": 1.0, "deliver_at": 1.0},
        {"deliver_at": "tomorrow"},
        {"deliver_at": float("nan")},
        {"expires_at": float("inf")},
        {"occurred_at": True},
        {"channels": "orders"},
        {"channels": [7]},
        {"metadata": "x"},
        {"metadata": {"a": 7}},
        {"owner": None},
        {"ordering_key": ""},
    ],
)
async def test_a_message_with_a_senseless_argument_is_refused_by_its_name(wrong: dict[str, object]) -> None:
    """It is a ValueError in the caller's own task, whatever the type of the argument, and nothing is written."""
    async with WebhookService(settings=Settings(), dispatch=False) as service:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await service.send_webhook_notification("order.paid", None, **wrong)  # type: ignore[arg-type]
        assert await service.list_messages() == []


async def test_an_instant_that_is_none_is_refused() -> None:
    """Text would be compared as text, and retry nothing or everything."""
    async with WebhookService(settings=Settings(), dispatch=False) as service:
        with pytest.raises(ValueError, match="since must be Unix time"):
            await service.retry_failed_deliveries(since="yesterday")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="since must be Unix time"):
            await service.replay(since=float("nan"))
        with pytest.raises(ValueError, match="before must be Unix time"):
            await service.prune(before=True)


async def test_an_outbox_event_exists_if_and_only_if_its_transaction_commits(tmp_path: Path) -> None:
    """`enqueue` writes inside the caller's own transaction on the same database."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["webhook-id"])
        return httpx.Response(200)

    async with WebhookService(tmp_path, settings=Settings(), transport=httpx.MockTransport(answer)) as service:
        await service.register_endpoint("https://a.example/")
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'webhooks.sqlite3'}")
        try:
            with engine.connect() as connection:
                lost = service.enqueue(connection, "order.paid", 1)
                connection.rollback()
            with engine.begin() as connection:
                kept = service.enqueue(connection, "order.paid", 2)
        finally:
            engine.dispose()
        await service.wait_until_idle()

        assert seen == [kept.id]
        assert (await service.get_message(kept.id)).data == 2
        with pytest.raises(UnknownIdError):
            await service.get_message(lost.id)


async def test_a_service_is_entered_once() -> None:
    """A second entry would start a second dispatcher; it is refused."""
    async with WebhookService(settings=Settings()) as service:
        with pytest.raises(RuntimeError, match="entered already"):
            await service.__aenter__()


async def test_a_service_that_only_accepts_manages_endpoints_too() -> None:
    """Everything but delivering and waiting for it works without a dispatcher."""
    async with WebhookService(settings=Settings(), dispatch=False) as service:
        endpoint = await service.register_endpoint("https://a.example/")
        assert not (await service.disable_endpoint(endpoint.id, reason="holidays")).enabled
        assert (await service.get_endpoint(endpoint.id)).disabled_reason == "holidays"
        assert (await service.enable_endpoint(endpoint.id)).enabled
        assert (await service.health()).dispatcher == "not in this process"
        assert await service.delete_endpoint(endpoint.id) == 0
        with pytest.raises(RuntimeError, match="dispatches"):
            await service.wait_until_idle()


async def test_health_says_why_the_database_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence of the store is what health shows."""

    async def full(_store: Store) -> None:
        raise StoreUnavailableError("the disk is full")

    async with WebhookService(settings=Settings(), dispatch=False) as service:
        assert (await service.health()).ok
        monkeypatch.setattr(Store, "check", full)
        health = await service.health()
        assert (health.ok, health.store) == (False, "the disk is full")


async def test_pruning_by_hand_deletes_what_has_ended() -> None:
    """It tells how many messages are gone."""
    async with WebhookService(settings=Settings(), dispatch=False) as service:
        for number in range(3):
            await service.send_webhook_notification("order.paid", number)
        now = service._now()
        assert await service.prune() == 0
        assert await service.prune(before=now + 3_600.0) == 3
        assert await service.list_messages() == []


async def test_a_service_may_be_used_from_other_threads_while_it_is_entered() -> None:
    """A method awaited in a thread with an event loop of its own does what it does at home."""
    async with WebhookService(settings=Settings(), dispatch=False) as service:

        async def send() -> str:
            return (await service.send_webhook_notification("order.paid", None)).id

        sent = [await anyio.to_thread.run_sync(anyio.run, send) for _ in range(3)]
        assert [message.id for message in await service.list_messages()] == sorted(sent)


def test_what_is_not_given_to_an_update_shows_as_unchanged() -> None:
    """The default of `update_endpoint` says what it means in a signature."""
    assert repr(_UNSET) == "unchanged"
