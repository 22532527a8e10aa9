"""What each operation of the store promises, on asyncio and on trio."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import pytest
import sqlalchemy as sa

from tests.adapter.store.support import FAILED, NOW, OK, SECRET, a_message, an_endpoint, claim, record
from webhook_adapter.lifecycle import Dead, Delivered, DueAgain
from webhook_adapter.model import DeliveryState, Endpoint, FailureKind, SigningSecret
from webhook_adapter.store import IdempotencyConflictError, NewMessage, Release, Store, UnknownIdError, enqueue, unit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_an_endpoint_comes_back_as_it_was(store: Store) -> None:
    """Every field of an endpoint survives the way through the database."""
    endpoint = attrs.evolve(
        an_endpoint(event_types=("order.*", "user.added"), ordered=True, owner="acme", channels=("eu",)),
        description="billing",
        secrets=(SigningSecret(SECRET), SigningSecret(SECRET, NOW + 5.5)),
        rate_limit=2.5,
        metadata={"team": "é"},
        paused=True,
        enabled=False,
        disabled_reason="by hand",
    )
    assert await store.add_endpoint(endpoint) == endpoint
    assert await store.get_endpoint(endpoint.id) == endpoint
    assert await store.list_endpoints() == [endpoint]
    assert await store.list_endpoints(owner="other") == []


async def test_an_id_is_taken_once(store: Store) -> None:
    """A second endpoint of the same id is refused, and the first one stays."""
    await store.add_endpoint(an_endpoint())
    with pytest.raises(ValueError, match="'ep_1' is taken"):
        await store.add_endpoint(an_endpoint(owner="other"))
    assert (await store.get_endpoint("ep_1")).owner == ""


async def test_unknown_ids_are_told(store: Store) -> None:
    """Whatever names something that is not there says so."""
    with pytest.raises(UnknownIdError, match="endpoint_id 'ep_x'"):
        await store.get_endpoint("ep_x")
    with pytest.raises(UnknownIdError, match="endpoint_id 'ep_x'"):
        await store.update_endpoint("ep_x", lambda endpoint: endpoint, now=NOW)
    with pytest.raises(UnknownIdError, match="endpoint_id 'ep_x'"):
        await store.delete_endpoint("ep_x", now=NOW)
    with pytest.raises(UnknownIdError, match="endpoint_id 'ep_x'"):
        await store.accept(a_message(only_to="ep_x"), now=NOW)
    with pytest.raises(UnknownIdError, match="message_id 'msg_x'"):
        await store.get_message("msg_x")
    with pytest.raises(UnknownIdError, match="message_id 'msg_x'"):
        await store.replay(message_id="msg_x", now=NOW, expires_at=None)
    with pytest.raises(UnknownIdError, match="delivery_id 'dlv_x'"):
        await store.get_delivery("dlv_x")
    with pytest.raises(UnknownIdError, match="delivery_id 'dlv_x'"):
        await store.cancel("dlv_x", now=NOW)
    await store.block_endpoint("ep_x", until=NOW, now=NOW)


async def test_a_change_is_applied_to_the_row_as_it_is(store: Store) -> None:
    """A change sees what the last one left, stamps `updated_at`, and cannot change who the endpoint is."""
    await store.add_endpoint(an_endpoint())

    def rotate(endpoint: Endpoint) -> Endpoint:
        return attrs.evolve(endpoint, secrets=(*endpoint.secrets, SigningSecret(SECRET)))

    await store.update_endpoint("ep_1", rotate, now=NOW + 1)
    changed = await store.update_endpoint("ep_1", rotate, now=NOW + 2)
    assert len(changed.secrets) == 3
    assert changed.updated_at == NOW + 2
    assert await store.get_endpoint("ep_1") == changed
    with pytest.raises(ValueError, match="same id"):
        await store.update_endpoint("ep_1", lambda endpoint: attrs.evolve(endpoint, id="ep_2"), now=NOW)


async def test_a_change_that_raises_changes_nothing_and_spares_its_neighbours(store: Store) -> None:
    """The caller gets the very exception; what else is in the batch is done."""
    await store.add_endpoint(an_endpoint())

    def refuse(_endpoint: Endpoint) -> Endpoint:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.update_endpoint("ep_1", refuse, now=NOW)
    assert await store.get_endpoint("ep_1") == an_endpoint()


async def test_a_message_goes_to_who_wants_it(store: Store) -> None:
    """Owner, event type and channels decide; a message that nobody wants is accepted and counted."""
    for endpoint in (
        an_endpoint("ep_all"),
        an_endpoint("ep_orders", event_types=("order.*",)),
        an_endpoint("ep_exact", event_types=("user.added",)),
        an_endpoint("ep_other", owner="other"),
        an_endpoint("ep_eu", channels=("eu",)),
    ):
        await store.add_endpoint(endpoint)

    async def reached(new: NewMessage) -> list[str]:
        accepted = await store.accept(new, now=NOW)
        found = await store.list_deliveries(message_id=accepted.message.id)
        assert accepted.deliveries == len(found)
        return sorted(delivery.endpoint_id for delivery in found)

    assert await reached(a_message("order.paid")) == ["ep_all", "ep_eu", "ep_orders"]
    assert await reached(a_message("order")) == ["ep_all", "ep_eu"]
    assert await reached(a_message("user.added", channels=("us",))) == ["ep_all", "ep_exact"]
    assert await reached(a_message("user.added", channels=("us", "eu"))) == ["ep_all", "ep_eu", "ep_exact"]
    assert await reached(a_message("user.added", owner="other")) == ["ep_other"]
    assert await reached(a_message("user.added", owner="nobody")) == []
    assert await reached(a_message("order.paid", only_to="ep_exact")) == ["ep_exact"]
    assert (await store.statistics()).unrouted == 1


async def test_a_message_comes_back_as_it_was(store: Store) -> None:
    """The bytes that were accepted are the bytes that are claimed, from memory or from the table."""
    await store.add_endpoint(an_endpoint())
    new = NewMessage.of(
        "order.paid",
        {"text": "é\ud83d\ude00", "n": [1, 2.5, None]},
        occurred_at=NOW - 1,
        idempotency_key="k",
        ordering_key="o",
        expires_at=NOW + 9,
        channels=("eu",),
        metadata={"a": "b"},
    )
    accepted = await store.accept(new, now=NOW)
    assert await store.get_message(accepted.message.id) == accepted.message
    assert await store.list_messages() == [accepted.message]
    assert json.loads(accepted.message.body)["timestamp"] == "2023-11-14T22:13:19.000000Z"
    [claimed] = await claim(store)
    assert claimed.message == accepted.message
    assert claimed.endpoint == an_endpoint()


async def test_a_message_is_read_back_when_memory_has_lost_it(path: Path) -> None:
    """After a restart a claim reads the body from the table."""
    first = Store.open(path)
    await first.add_endpoint(an_endpoint())
    accepted = await first.accept(a_message(), now=NOW)
    first.close()
    second = Store.open(path)
    try:
        assert [each.message for each in await claim(second)] == [accepted.message]
    finally:
        second.close()


async def test_a_key_stands_for_one_message_of_its_owner(store: Store) -> None:
    """WH3: the same body gives the same message, another one is refused, another owner is another key."""
    await store.add_endpoint(an_endpoint())
    first = await store.accept(a_message(key="k"), now=NOW)
    again = await store.accept(a_message(key="k"), now=NOW + 1)
    assert (again.message, again.created, again.deliveries) == (first.message, False, 0)
    with pytest.raises(IdempotencyConflictError, match=first.message.id) as caught:
        await store.accept(a_message(key="k", data=2), now=NOW)
    assert isinstance(caught.value, ValueError)
    assert (await store.accept(a_message(key="k", data=2, owner="other"), now=NOW)).created
    assert (await store.statistics()).repeated == 2


async def test_a_delivery_waits_for_its_instant(store: Store) -> None:
    """Nothing is claimed before `deliver_at`, and `next_due_at` says when to ask."""
    await store.add_endpoint(an_endpoint())
    assert await store.next_due_at() is None
    await store.accept(a_message(deliver_at=NOW + 10.25), now=NOW)
    assert await claim(store, now=NOW + 10) == []
    assert await store.next_due_at() == NOW + 10.25
    assert len(await claim(store, now=NOW + 10.25)) == 1
    assert await store.next_due_at() is None


async def test_a_backlog_starves_nobody(store: Store) -> None:
    """Endpoints get equal shares of a claim; who got nothing is first the next time."""
    for name in ("ep_a", "ep_b", "ep_c"):
        await store.add_endpoint(an_endpoint(name))
    for number in range(50):
        await store.accept(a_message(data=number, only_to="ep_a"), now=NOW)
    for name in ("ep_b", "ep_c"):
        await store.accept(a_message(only_to=name), now=NOW + 1)
    got = [each.endpoint.id for each in await claim(store, now=NOW + 2, limit=9)]
    assert sorted(got) == ["ep_a"] * 7 + ["ep_b", "ep_c"]
    await store.accept(a_message(only_to="ep_c"), now=NOW + 2.5)
    assert [each.endpoint.id for each in await claim(store, now=NOW + 3, limit=1)] == ["ep_a"]
    assert [each.endpoint.id for each in await claim(store, now=NOW + 4, limit=1)] == ["ep_c"]


async def test_capacity_is_kept(store: Store) -> None:
    """No endpoint gets more than its capacity, and one without any is passed over without being forgotten."""
    for name in ("ep_a", "ep_b"):
        await store.add_endpoint(an_endpoint(name))
    for number in range(5):
        await store.accept(a_message(data=number), now=NOW)
    got = await claim(store, endpoint_limit=2, capacities={"ep_b": 0})
    assert [each.endpoint.id for each in got] == ["ep_a", "ep_a"]
    assert await store.next_due_at(exclude=["ep_a"]) == NOW
    got = await claim(store, endpoint_limit=1, capacities={"ep_b": 4})
    assert sorted(each.endpoint.id for each in got) == ["ep_a", "ep_b", "ep_b", "ep_b", "ep_b"]


async def test_order_is_kept_by_endpoint_and_by_key(store: Store) -> None:
    """WH6: one in flight at a time; a retry holds the next back, a dead or cancelled head lets it go."""
    await store.add_endpoint(an_endpoint("ep_1"))
    ids = []
    for number in range(4):
        accepted = await store.accept(a_message(data=number, ordering_key="k"), now=NOW)
        ids.append(accepted.message.id)
    await store.accept(a_message(data=9, ordering_key="other"), now=NOW)
    first = await claim(store)
    assert [each.message.data for each in first] == [{"n": 0}, {"n": 9}]
    head = first[0]
    await record(store, head, FAILED, DueAgain(NOW + 5), now=NOW)
    assert await claim(store, now=NOW + 4) == []
    [head] = await claim(store, now=NOW + 5)
    assert head.message.id == ids[0]
    await record(store, head, FAILED, Dead("status 500"), now=NOW + 5)
    [second] = await claim(store, now=NOW + 6)
    assert second.message.id == ids[1]
    await store.release([Release(second, NOW + 7)], now=NOW + 6)
    assert await store.cancel(second.delivery.id, now=NOW + 6)
    [third] = await claim(store, now=NOW + 7)
    assert third.message.id == ids[2]
    await record(store, third, OK, Delivered(), now=NOW + 7)
    [fourth] = await claim(store, now=NOW + 8)
    assert fourth.message.id == ids[3]
    assert fourth.delivery.sequence == 4


async def test_an_attempt_is_listed_as_it_ended(store: Store) -> None:
    """WH4: attempts are numbered from 1, and on across retry rounds; the message's id stays."""
    await store.add_endpoint(an_endpoint())
    accepted = await store.accept(a_message(), now=NOW)
    [first] = await claim(store)
    timeout = attrs.evolve(FAILED, status_code=None, failure=FailureKind.TIMEOUT, error="timed out")
    one = await record(store, first, timeout, DueAgain(NOW + 5.125), now=NOW)
    assert (await store.get_delivery(first.delivery.id)).due_at == NOW + 5.125
    [second] = await claim(store, now=NOW + 6)
    assert (second.delivery.attempts, second.delivery.round_attempts) == (1, 1)
    two = await record(store, second, FAILED, Dead("status 500"), now=NOW + 6)
    assert await store.retry_dead(now=NOW + 7, expires_at=NOW + 99) == 1
    [third] = await claim(store, now=NOW + 7)
    assert (third.delivery.attempts, third.delivery.round_attempts) == (2, 0)
    three = await record(store, third, OK, Delivered(), now=NOW + 8)
    assert await store.list_attempts(message_id=accepted.message.id) == [one, two, three]
    assert [one and one.number, two and two.number, three and three.number] == [1, 2, 3]
    assert two is not None
    assert (two.response_body, two.error, two.message_id) == (b"oops", "status 500", accepted.message.id)
    assert await store.list_attempts(delivery_id=first.delivery.id, limit=1, after=two.id) == [three]
    assert await store.list_attempts(endpoint_id="ep_2") == []
    ended = await store.get_delivery(first.delivery.id)
    assert (ended.state, ended.attempts, ended.finished_at) == (DeliveryState.DELIVERED, 3, NOW + 8)


async def test_a_stale_lease_settles_nothing(store: Store) -> None:
    """WH9: a worker that lost its lease cannot complete, fail, reschedule, extend or release."""
    await store.add_endpoint(an_endpoint())
    await store.accept(a_message(), now=NOW)
    [stale] = await claim(store)
    assert await store.recover_leases(now=NOW + 29.9) == 0
    assert await store.recover_leases(now=NOW + 30) == 1
    for judgement in (Delivered(), DueAgain(NOW + 99), Dead("status 500")):
        assert await record(store, stale, OK, judgement, now=NOW + 31) is None
    [fresh] = await claim(store, now=NOW + 31)
    before = await store.get_delivery(fresh.delivery.id)
    for judgement in (Delivered(), DueAgain(NOW + 99), Dead("gone", disable_endpoint=True)):
        assert await record(store, stale, OK, judgement, now=NOW + 31, blocked_until=NOW + 99) is None
    assert await store.extend(stale, until=NOW + 999) is False
    assert await store.release([Release(stale, NOW)], now=NOW + 31) == 0
    assert await store.get_delivery(fresh.delivery.id) == before
    assert await store.get_endpoint("ep_1") == an_endpoint()
    assert await store.list_attempts() == []
    assert await store.extend(fresh, until=NOW + 500) is True
    assert await store.recover_leases(now=NOW + 499) == 0
    assert await record(store, fresh, OK, Delivered(), now=NOW + 499) is not None
    counted = await store.statistics()
    assert (counted.stale, counted.expired_leases) == (6, 1)


async def test_gone_disables_and_kills_what_is_pending(store: Store) -> None:
    """A 410 disables the endpoint and ends what is pending or given back dead; later messages wait to be enabled."""
    for name in ("ep_1", "ep_2"):
        await store.add_endpoint(an_endpoint(name))
    for number in range(3):
        await store.accept(a_message(data=number), now=NOW)
    got = await claim(store, limit=2, capacities={"ep_2": 0})
    gone = attrs.evolve(FAILED, status_code=410)
    await record(store, got[0], gone, Dead("status 410", disable_endpoint=True), now=NOW)
    assert await store.release([Release(got[1], NOW)], now=NOW) == 1
    endpoint = await store.get_endpoint("ep_1")
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, "status 410")
    dead = await store.list_deliveries(endpoint_id="ep_1", state=DeliveryState.DEAD)
    assert [each.reason for each in dead] == ["status 410"] * 3
    assert len(await store.list_deliveries(endpoint_id="ep_2", state=DeliveryState.PENDING)) == 3
    await store.accept(a_message(data=4), now=NOW)
    assert {each.endpoint.id for each in await claim(store)} == {"ep_2"}
    await store.update_endpoint("ep_1", lambda each: attrs.evolve(each, enabled=True, disabled_reason=None), now=NOW)
    assert [each.message.data for each in await claim(store)] == [{"n": 4}]


async def test_a_block_holds_until_its_instant(store: Store) -> None:
    """A blocked endpoint is skipped; a 429 may block it with its outcome, and never shortens a block."""
    await store.add_endpoint(an_endpoint())
    await store.accept(a_message(data=1), now=NOW)
    await store.accept(a_message(data=2), now=NOW)
    [first] = await claim(store, limit=1)
    await record(store, first, FAILED, DueAgain(NOW + 1), now=NOW, blocked_until=NOW + 60)
    assert await store.next_due_at() == NOW + 60
    [second] = await claim(store, now=NOW + 60, limit=1)
    await store.block_endpoint("ep_1", until=NOW + 200, now=NOW + 60)
    await record(store, second, FAILED, DueAgain(NOW + 61), now=NOW + 60, blocked_until=NOW + 70)
    assert (await store.get_endpoint("ep_1")).blocked_until == NOW + 200
    assert await claim(store, now=NOW + 199) == []
    await store.accept(a_message(data=3), now=NOW + 100)
    assert await store.next_due_at() == NOW + 200
    await store.block_endpoint("ep_1", until=0.0, now=NOW + 150)
    assert len(await claim(store, now=NOW + 150)) == 3


async def test_deleting_cancels_what_is_pending_and_forgets_the_secrets(store: Store, path: Path) -> None:
    """What is in flight ends as it ends; a failure of it is not retried, and nothing new is routed there."""
    await store.add_endpoint(an_endpoint())
    for number in range(4):
        await store.accept(a_message(data=number), now=NOW)
    flying = await claim(store, limit=3)
    assert await store.delete_endpoint("ep_1", now=NOW) == 1
    assert (await store.accept(a_message(), now=NOW)).deliveries == 0
    assert await record(store, flying[0], OK, Delivered(), now=NOW) is not None
    assert await record(store, flying[1], FAILED, DueAgain(NOW), now=NOW) is not None
    assert await store.release([Release(flying[2], NOW)], now=NOW) == 1
    states = sorted(each.state for each in await store.list_deliveries())
    assert states == ["cancelled", "cancelled", "cancelled", "delivered"]
    assert await claim(store, now=NOW + 9) == []
    assert await store.retry_dead(now=NOW, expires_at=None) == 0
    assert await store.list_endpoints() == []
    store.close()
    assert SECRET.encode() not in path.read_bytes()  # noqa: ASYNC240 - a small file


async def test_what_expires_ends_dead_even_when_it_is_held(store: Store) -> None:
    """WH5: nothing is delivered after its expiry, whether its endpoint is paused, blocked or busy."""
    await store.add_endpoint(an_endpoint(ordered=True))
    await store.accept(a_message(data=1), now=NOW)
    await store.accept(a_message(data=2, expires_at=NOW + 10), now=NOW)
    await store.accept(a_message(data=3), now=NOW)
    [head] = await claim(store)
    await store.update_endpoint("ep_1", lambda each: attrs.evolve(each, paused=True), now=NOW)
    assert await store.expire(now=NOW + 9.9) == 0
    assert await store.expire(now=NOW + 10) == 1
    [dead] = await store.list_deliveries(state=DeliveryState.DEAD)
    assert (dead.reason, dead.finished_at) == ("expired", NOW + 10)
    await record(store, head, OK, Delivered(), now=NOW + 10)
    await store.update_endpoint("ep_1", lambda each: attrs.evolve(each, paused=False), now=NOW + 11)
    assert [each.message.data for each in await claim(store, now=NOW + 11)] == [{"n": 3}]


async def test_a_message_is_replayed(store: Store) -> None:
    """What has ended is delivered again, by message or since an instant; what is on its way is left alone."""
    await store.add_endpoint(an_endpoint())
    first = await store.accept(a_message(data=1), now=NOW)
    await store.accept(a_message(data=2), now=NOW + 10.5)
    for each in await claim(store, now=NOW + 11):
        await record(store, each, OK, Delivered(), now=NOW + 11)
    assert await store.replay(message_id=first.message.id, now=NOW + 20, expires_at=None) == 1
    assert [each.message.data for each in await claim(store, now=NOW + 20)] == [{"n": 1}]
    assert await store.replay(since=NOW + 10.5, now=NOW + 21, expires_at=None) == 1
    assert [each.message.data for each in await claim(store, now=NOW + 21)] == [{"n": 2}]
    assert await store.replay(since=NOW, now=NOW + 22, expires_at=None) == 0
    with pytest.raises(ValueError, match="exactly one"):
        await store.replay(now=NOW, expires_at=None)


async def test_retries_can_be_narrowed(store: Store) -> None:
    """Only the endpoint and the time that were asked for are retried."""
    for name in ("ep_1", "ep_2"):
        await store.add_endpoint(an_endpoint(name))
    await store.accept(a_message(), now=NOW)
    for after, each in enumerate(sorted(await claim(store), key=lambda each: each.endpoint.id)):
        await record(store, each, FAILED, Dead("status 500"), now=NOW + after)
    assert await store.retry_dead(now=NOW + 9, expires_at=None, endpoint_id="ep_1", since=NOW + 0.5) == 0
    assert await store.retry_dead(now=NOW + 9, expires_at=None, since=NOW + 0.5) == 1
    assert [each.endpoint.id for each in await claim(store, now=NOW + 9)] == ["ep_2"]
    assert await store.retry_dead(now=NOW + 9, expires_at=None, endpoint_id="ep_1") == 1


async def test_pruning_spares_what_is_on_its_way(store: Store) -> None:
    """Old messages go with their deliveries and attempts, but not while one of them is pending."""
    await store.add_endpoint(an_endpoint())
    done = await store.accept(a_message(data=1, key="k"), now=NOW)
    for each in await claim(store):
        await record(store, each, OK, Delivered(), now=NOW)
    waiting = await store.accept(a_message(data=2), now=NOW + 1)
    young = await store.accept(a_message(data=3, only_to="ep_1"), now=NOW + 100)
    assert await store.prune(before=NOW + 50) == 1
    assert await store.prune(before=NOW + 50) == 0
    assert [each.id for each in await store.list_messages()] == [waiting.message.id, young.message.id]
    assert await store.list_attempts() == []
    assert (await store.statistics()).delivered == 0
    with pytest.raises(UnknownIdError):
        await store.get_message(done.message.id)
    assert (await store.accept(a_message(data=5, key="k"), now=NOW + 101)).created


async def test_pages_go_on_behind_an_id(store: Store) -> None:
    """Pages put together are the whole list, in the order of ids."""
    await store.add_endpoint(an_endpoint())
    for number in range(7):
        await store.accept(a_message(data=number), now=NOW + number)
    seen: list[str] = []
    while page := await store.list_messages(limit=3, after=seen[-1] if seen else None):
        seen += [each.id for each in page]
    assert seen == [each.id for each in await store.list_messages()]
    assert len(seen) == 7
    for limit in (0, True, 10_001):
        with pytest.raises(ValueError, match="limit must be"):
            await store.list_deliveries(limit=limit)


async def test_a_claim_is_asked_for_with_sense(store: Store) -> None:
    """A limit or a lease that means nothing is refused."""
    for wrong in ({"limit": -1}, {"lease_for": 0.0}, {"endpoint_limit": 0}, {"lease_for": float("nan")}):
        arguments = {"now": NOW, "limit": 1, "lease_for": 1.0, "endpoint_limit": 1, **wrong}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await store.claim(**arguments)  # type: ignore[arg-type]


async def test_memory_is_a_store_too() -> None:
    """Without a file the same operations work on one connection."""
    store = Store.open(None)
    try:
        await store.add_endpoint(an_endpoint())
        accepted = await store.accept(a_message(), now=NOW)
        assert await store.get_message(accepted.message.id) == accepted.message
        with pytest.raises(UnknownIdError):
            await store.get_message("msg_x")
        [got] = await claim(store)
        await record(store, got, OK, Delivered(), now=NOW)
        assert (await store.statistics()).delivered == 1
        await store.check()
    finally:
        store.close()


async def test_an_outbox_commits_with_the_caller(store: Store, path: Path) -> None:
    """`enqueue` writes in the caller's transaction: with it, or never; the store finds it by itself."""
    await store.add_endpoint(an_endpoint("ep_1", ordered=True))
    await store.add_endpoint(an_endpoint("ep_2", event_types=("user.*",)))
    await store.add_endpoint(an_endpoint("ep_3", channels=("eu",)))
    application = sa.create_engine(f"sqlite:///{path}")
    try:
        with application.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
        with application.connect() as connection:
            connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
            enqueue(connection, a_message(data=1), now=NOW)
            connection.rollback()
        assert await store.list_messages() == []
        with application.begin() as connection:
            connection.exec_driver_sql("INSERT INTO orders VALUES (2)")
            sent = enqueue(connection, a_message(data=2, key="k", channels=("us",)), now=NOW)
            again = enqueue(connection, a_message(data=2, key="k", channels=("us",)), now=NOW)
            with pytest.raises(IdempotencyConflictError):
                enqueue(connection, a_message(data=3, key="k"), now=NOW)
            with pytest.raises(UnknownIdError):
                enqueue(connection, a_message(only_to="ep_x"), now=NOW)
            only = enqueue(connection, a_message(data=4, only_to="ep_2"), now=NOW)
            connection.exec_driver_sql("INSERT INTO orders VALUES (3)")
        assert (sent.created, sent.deliveries, again.created, again.message.id) == (True, 1, False, sent.message.id)
        with application.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == 2
    finally:
        application.dispose()
    got = await claim(store)
    assert {each.message.id: each.endpoint.id for each in got} == {sent.message.id: "ep_1", only.message.id: "ep_2"}
    counted = await store.statistics()
    assert (counted.messages, counted.repeated, counted.leased) == (2, 1, 2)


async def test_an_outbox_takes_a_session(store: Store, path: Path) -> None:
    """An ORM session is as good as a connection."""
    from sqlalchemy.orm import Session

    await store.add_endpoint(an_endpoint())
    application = sa.create_engine(f"sqlite:///{path}")
    try:
        with Session(application) as session, session.begin():
            enqueue(session, a_message(), now=NOW)
    finally:
        application.dispose()
    assert len(await claim(store)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda each: attrs.evolve(each, event_types=("user.*",)),
        lambda each: attrs.evolve(each, owner="other"),
        lambda each: attrs.evolve(each, channels=("eu",)),
    ],
    ids=["event_types", "owner", "channels"],
)
async def test_another_process_changes_who_wants_what(
    store: Store, path: Path, change: Callable[[Endpoint], Endpoint]
) -> None:
    """What one process changes, the writer of another one sees in its next transaction (F42)."""
    await store.add_endpoint(an_endpoint())
    assert (await store.accept(a_message(channels=("us",)), now=NOW)).deliveries == 1
    other = Store.open(path)
    try:
        await other.update_endpoint("ep_1", change, now=NOW)
        assert (await store.accept(a_message(channels=("us",)), now=NOW)).deliveries == 0
        await other.add_endpoint(an_endpoint("ep_2"))
        assert (await store.accept(a_message(channels=("us",)), now=NOW)).deliveries == 1
        await other.delete_endpoint("ep_2", now=NOW)
        assert (await store.accept(a_message(channels=("us",)), now=NOW)).deliveries == 0
    finally:
        other.close()


async def test_two_processes_lease_apart(store: Store, path: Path) -> None:
    """F42: what one has leased, the other does not get."""
    await store.add_endpoint(an_endpoint())
    other = Store.open(path)
    try:
        for number in range(10):
            await store.accept(a_message(data=number), now=NOW)
        mine, theirs = await claim(store, limit=5), await claim(other)
        ids = [each.delivery.id for each in (*mine, *theirs)]
        assert len(set(ids)) == len(ids) == 10
    finally:
        other.close()


async def test_a_clock_that_stepped_back_strands_nothing(path: Path) -> None:
    """F15: queues written under a later clock are looked at afresh when leases are taken up at the start."""
    first = Store.open(path)
    await first.add_endpoint(an_endpoint())
    for number in range(2):
        await first.accept(a_message(data=number), now=NOW)
    assert len(await claim(first, now=NOW + 86_400, limit=1)) == 1
    first.close()
    second = Store.open(path)
    try:
        await second.recover_leases(now=NOW + 1)
        assert len(await claim(second, now=NOW + 1)) == 1
    finally:
        second.close()


async def test_made_up_event_types_do_not_fill_the_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of who wants what is bounded, and forgetting it changes nothing."""
    monkeypatch.setattr(unit, "_MAX_ROUTES", 3)
    await store.add_endpoint(an_endpoint())
    for number in range(10):
        assert (await store.accept(a_message(f"type.{number}"), now=NOW)).deliveries == 1
    assert len(store._writer._caches.directory._routes) <= 3


async def test_recent_messages_are_kept_within_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of recent bodies lets the oldest go; they are read back from the table."""
    monkeypatch.setattr(unit, "_MAX_RECENT_BYTES", 3000)
    await store.add_endpoint(an_endpoint())
    ids = [(await store.accept(a_message(data=number), now=NOW)).message.id for number in range(5)]
    assert len(store._writer._caches.recent._messages) == 2
    assert [each.message.id for each in await claim(store)] == ids
