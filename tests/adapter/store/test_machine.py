"""The store beside a naive model, a dict of deliveries; and broken stores that the comparison catches."""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.adapter.store.support import FAILED, NOW, OK, a_message, an_endpoint
from webhook_adapter import ids
from webhook_adapter.lifecycle import Dead, Delivered, DueAgain, Judgement
from webhook_adapter.model import Delivery, DeliveryState, Endpoint
from webhook_adapter.store import (
    Claim,
    IdempotencyConflictError,
    Release,
    Store,
    acceptance,
    dispatching,
    settling,
    sqlite,
    upkeep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from webhook_adapter.store.unit import Unit

R = TypeVar("R")
PENDING, LEASED, DELIVERED = DeliveryState.PENDING, DeliveryState.LEASED, DeliveryState.DELIVERED
DEAD, CANCELLED = DeliveryState.DEAD, DeliveryState.CANCELLED
EXAMPLES = 30
STEPS = 40
ENDPOINTS = ("ep_all", "ep_ordered", "ep_orders")


@attrs.define(eq=False)
class Row:
    """A delivery, as the naive model has it."""

    endpoint_id: str
    message_id: str
    due_at: float
    expires_at: float | None
    stream: str | None
    order: int
    state: DeliveryState = PENDING
    attempts: int = 0
    round_attempts: int = 0
    reason: str | None = None
    token: int = 0
    lease_until: float | None = None

    @property
    def open(self) -> bool:
        """Whether it is still on its way."""
        return self.state in {PENDING, LEASED}


class StoreMachine(RuleBasedStateMachine):
    """Accept, claim, record, release, recover, expire, retry, crash; each is done to the store and to the model."""

    def __init__(self) -> None:
        super().__init__()
        # The time begins anew with every run; ids would sort at random behind those of the run before.
        ids._ids._last.clear()
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._path = Path(folder) / "db.sqlite3"
        self.store = Store.open(self._path)
        self.now = NOW
        self.rows: dict[str, Row] = {}
        self.keys: dict[str, tuple[int, str]] = {}
        self.claims: list[Claim] = []
        self.blocked = dict.fromkeys(ENDPOINTS, 0.0)
        self.held = dict.fromkeys(ENDPOINTS, False)
        self.order = itertools.count()
        self.messages = 0

    def teardown(self) -> None:
        """End the store and the event loop."""
        self.store.close()
        self._stack.close()

    def run(self, operation: Callable[[], Coroutine[object, object, R]]) -> R:
        """Run an operation of the store on asyncio."""
        return self._portal.call(operation)

    @initialize()
    def register(self) -> None:
        """Register three endpoints."""
        for name, types in (("ep_all", ("*",)), ("ep_ordered", ("*",)), ("ep_orders", ("order.*",))):
            endpoint = an_endpoint(name, event_types=types, ordered=name == "ep_ordered")
            self.run(lambda endpoint=endpoint: self.store.add_endpoint(endpoint))  # type: ignore[misc]

    @rule(
        event_type=st.sampled_from(["order.paid", "user.added"]),
        ordering_key=st.sampled_from([None, None, "k1", "k2"]),
        key=st.sampled_from([None, None, None, "a", "b"]),
        data=st.integers(1, 2),
        wait=st.sampled_from([0.0, 0.0, 20.0]),
        life=st.sampled_from([None, 50.0, 500.0]),
    )
    def accept(  # noqa: PLR0917 - Hypothesis calls it so
        self, event_type: str, ordering_key: str | None, key: str | None, data: int, wait: float, life: float | None
    ) -> None:
        """WH3: the same key and body is the same message; another body is refused."""
        new = a_message(
            event_type,
            data,
            key=key,
            ordering_key=ordering_key,
            deliver_at=self.now + wait,
            expires_at=None if life is None else self.now + life,
        )
        body = hash((event_type, data))
        if key in self.keys and self.keys[key][0] != body:
            with pytest.raises(IdempotencyConflictError):
                self.run(lambda: self.store.accept(new, now=self.now))
            return
        accepted = self.run(lambda: self.store.accept(new, now=self.now))
        if key in self.keys:
            assert (accepted.created, accepted.message.id) == (False, self.keys[key][1])
            return
        assert accepted.created
        if key is not None:
            self.keys[key] = (body, accepted.message.id)
        self.messages += 1
        wanted = [name for name in ENDPOINTS if name != "ep_orders" or event_type.startswith("order.")]
        assert accepted.deliveries == len(wanted)
        found = self.run(lambda: self.store.list_deliveries(message_id=accepted.message.id))
        assert sorted(delivery.endpoint_id for delivery in found) == wanted
        for delivery in found:
            stream = "whole" if delivery.endpoint_id == "ep_ordered" else ordering_key
            self.rows[delivery.id] = Row(
                delivery.endpoint_id, delivery.message_id, self.now + wait, new.expires_at, stream, next(self.order)
            )

    def _expire(self) -> None:
        for row in self.rows.values():
            if row.state is PENDING and row.expires_at is not None and row.expires_at <= self.now:
                row.state, row.reason = DEAD, "expired"

    def _claimable(self) -> dict[str, set[str]]:
        """Return what a claim may take, by endpoint."""
        heads: dict[tuple[str, str], Row] = {}
        for row in self.rows.values():
            if row.open and row.stream is not None:
                head = heads.get((row.endpoint_id, row.stream))
                if head is None or row.order < head.order:
                    heads[row.endpoint_id, row.stream] = row
        found: defaultdict[str, set[str]] = defaultdict(set)
        for name, row in self.rows.items():
            if row.state is not PENDING or row.due_at > self.now:
                continue
            if self.blocked[row.endpoint_id] > self.now or self.held[row.endpoint_id]:
                continue
            if row.stream is None or heads[row.endpoint_id, row.stream] is row:
                found[row.endpoint_id].add(name)
        return found

    @rule(
        limit=st.integers(1, 8),
        endpoint_limit=st.integers(1, 4),
        full=st.sets(st.sampled_from(ENDPOINTS), max_size=1),
        ahead=st.integers(0, 3),
    )
    def claim(self, limit: int, endpoint_limit: int, full: set[str], ahead: int = 0) -> None:
        """A claim takes what it may and no more, and does not stop short of its limit; WH6: in order."""
        self._expire()
        may = self._claimable()
        caps = {name: 0 if name in full else endpoint_limit for name in ENDPOINTS}
        claimed = self.run(
            lambda: self.store.claim(
                now=self.now,
                limit=limit,
                lease_for=30.0,
                endpoint_limit=endpoint_limit,
                capacities=dict.fromkeys(full, 0),
                ahead=dict.fromkeys(full, ahead),
            )
        )
        claims = claimed.claims
        by_endpoint: defaultdict[str, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_endpoint[claim.endpoint.id].append(claim)
            row = self.rows[claim.delivery.id]
            assert claim.delivery.id in may[claim.endpoint.id]
            assert claim.message.id == row.message_id
            row.state, row.lease_until = LEASED, self.now + 30.0
            row.token += 1
            assert (claim.delivery.lease_token, claim.delivery.lease_until) == (row.token, row.lease_until)
        more = sum(min(ahead, len(may[name])) for name in full)
        assert all(len(group) <= caps[name] + ahead * (name in full) for name, group in by_endpoint.items())
        assert len(claims) == more + min(limit, sum(min(caps[name], len(may[name])) for name in ENDPOINTS))
        left = {name: may[name] - {claim.delivery.id for claim in by_endpoint[name]} for name in ENDPOINTS}
        room = {name: caps[name] + ahead * (name in full) - len(by_endpoint[name]) for name in ENDPOINTS}
        if any(left[name] and room[name] for name in ENDPOINTS):
            assert claimed.next_due_at is not None
            assert claimed.next_due_at <= self.now
        self.claims += claims

    @rule()
    def claim_all(self) -> None:
        """Claim whatever there is: most of what can go wrong begins with it."""
        self.claim(8, 4, set())

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), end=st.sampled_from(["delivered", "again", "dead"]), twice=st.booleans())
    def record(self, data: st.DataObject, end: str, twice: bool) -> None:  # noqa: FBT001 - Hypothesis calls it so
        """WH4, WH9: an outcome counts under the latest token, once; attempts are numbered on."""
        claim = data.draw(st.sampled_from(self.claims))
        for _ in range(1 + twice):
            self._record(claim, end)

    def _record(self, claim: Claim, end: str) -> None:
        row = self.rows[claim.delivery.id]
        judgement: Judgement = Delivered()
        if end != "delivered":
            judgement = DueAgain(self.now + 10.0) if end == "again" else Dead("status 500")
        counts = row.state is LEASED and row.token == claim.delivery.lease_token
        (attempt,) = self.run(
            lambda: self.store.record(
                [settling.Settlement(claim, OK if end == "delivered" else FAILED, judgement, self.now)]
            )
        )
        assert (attempt is not None) == counts
        if attempt is None:
            return
        row.attempts += 1
        row.round_attempts += 1
        assert attempt.number == row.attempts
        row.lease_until = None
        if end == "again":
            row.state, row.due_at = PENDING, self.now + 10.0
        else:
            row.state = DELIVERED if end == "delivered" else DEAD
            row.reason = None if end == "delivered" else "status 500"

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A lease given back uses up no attempt, and a stale one changes nothing."""
        claim = data.draw(st.sampled_from(self.claims))
        row = self.rows[claim.delivery.id]
        counts = row.state is LEASED and row.token == claim.delivery.lease_token
        released = self.run(lambda: self.store.release([Release(claim, self.now + 3.0)], now=self.now))
        assert released == counts
        if counts:
            row.state, row.due_at, row.lease_until = PENDING, self.now + 3.0, None

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds

    @rule()
    def recover(self) -> None:
        """WH9: what was leased until now is due again."""
        lost = [row for row in self.rows.values() if row.state is LEASED and (row.lease_until or 0.0) <= self.now]
        assert self.run(lambda: self.store.recover_leases(now=self.now)) == len(lost)
        for row in lost:
            row.state, row.lease_until = PENDING, None

    @precondition(lambda self: any(row.state is LEASED for row in self.rows.values()))
    @rule(end=st.sampled_from(["delivered", "again", "dead"]))
    def take_over(self, end: str) -> None:
        """A worker stops; its leases run out, another one takes its deliveries, and then the first one goes on."""
        asleep = [claim for claim in self.claims if self.rows[claim.delivery.id].state is LEASED]
        self.pass_time(31.0)
        self.recover()
        self.claim(8, 4, set())
        for claim in asleep:
            self._record(claim, end)

    @rule(name=st.sampled_from(ENDPOINTS), wait=st.sampled_from([0.0, 100.0]))
    def block(self, name: str, wait: float) -> None:
        """Block an endpoint, or lift its block."""
        self.blocked[name] = self.now + wait
        self.run(lambda: self.store.block_endpoint(name, until=self.now + wait, now=self.now))

    @rule(name=st.sampled_from(ENDPOINTS), how=st.sampled_from(["on", "on", "on", "disabled", "paused"]))
    def switch(self, name: str, how: str) -> None:
        """Enable, disable, pause or resume an endpoint."""
        enabled, paused = how != "disabled", how == "paused"
        self.held[name] = paused or not enabled

        def change(endpoint: Endpoint) -> Endpoint:
            return attrs.evolve(endpoint, enabled=enabled, paused=paused)

        self.run(lambda: self.store.update_endpoint(name, change, now=self.now))

    @rule(name=st.sampled_from([None, *ENDPOINTS]))
    def retry_dead(self, name: str | None) -> None:
        """Dead deliveries begin a new round, outside the order."""
        dead = [row for row in self.rows.values() if row.state is DEAD and name in {None, row.endpoint_id}]
        expires_at = self.now + 200.0
        retried = self.run(lambda: self.store.retry_dead(now=self.now, expires_at=expires_at, endpoint_id=name))
        assert retried == len(dead)
        for row in dead:
            row.state, row.due_at, row.expires_at, row.round_attempts = PENDING, self.now, expires_at, 0
            row.reason = row.stream = None

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """What is pending can be cancelled, and lets the next of its order go."""
        name = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[name]
        assert self.run(lambda: self.store.cancel(name, now=self.now)) == (row.state is PENDING)
        if row.state is PENDING:
            row.state, row.reason = CANCELLED, "cancelled"

    @rule()
    def restart(self) -> None:
        """Everything in memory is lost."""
        self.store.close()
        self.store = Store.open(self._path)

    @invariant()
    def same(self) -> None:
        """WH2: the store knows every delivery, in the state that the model has it in."""
        found = self.run(lambda: self.store.list_deliveries(limit=10_000))
        assert {delivery.id: _seen(delivery) for delivery in found} == {
            name: (row.state, row.due_at, row.expires_at, row.attempts, row.round_attempts, row.reason, row.token)
            for name, row in self.rows.items()
        }
        counted = self.run(self.store.statistics)
        states = [row.state for row in self.rows.values()]
        assert (counted.pending, counted.leased, counted.delivered, counted.dead, counted.cancelled) == tuple(
            states.count(state) for state in DeliveryState
        )
        assert (counted.messages, counted.attempts) == (self.messages, sum(row.attempts for row in self.rows.values()))

    @invariant()
    def not_overslept(self) -> None:
        """The instant to ask again is never after something could be claimed."""
        next_at = self.run(self.store.next_due_at)
        if any(self._claimable().values()):
            assert next_at is not None
            assert next_at <= self.now


def _seen(delivery: Delivery) -> tuple[object, ...]:
    return (
        delivery.state,
        delivery.due_at,
        delivery.expires_at,
        delivery.attempts,
        delivery.round_attempts,
        delivery.reason,
        delivery.lease_token,
    )


def run_machine(*phases: Phase, examples: int = EXAMPLES) -> None:
    """Run the comparison."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            phases=phases,
            deadline=None,
            derandomize=True,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_store_does_what_a_dict_of_deliveries_does() -> None:
    """WH2, WH3, WH4, WH6, WH9: over any sequence of operations, time and restarts the two agree."""
    run_machine(Phase.generate, Phase.shrink)


def _no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an outcome count under any token."""
    real = settling.record

    def record(unit: Unit, payloads: Sequence[Sequence[settling.Settlement]]) -> Sequence[object]:
        settlements = [each for payload in payloads for each in payload]
        leased = unit.dialect.leased(unit.connection, [each.claim.delivery.id for each in settlements])
        forged = []
        for each in settlements:
            found = leased.get(each.claim.delivery.id)
            token = each.claim.delivery.lease_token if found is None else found.token
            delivery = attrs.evolve(each.claim.delivery, lease_token=token)
            forged.append(attrs.evolve(each, claim=attrs.evolve(each.claim, delivery=delivery)))
        answers = iter(real(unit, [[each] for each in forged]))
        return [[next(answers)[0] for _ in payload] for payload in payloads]

    monkeypatch.setattr(settling, "record", record)


def _no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim what is held, too."""
    monkeypatch.setattr(sqlite, "_DUE_DELIVERIES", sqlite._DUE_DELIVERIES.replace("AND NOT held", ""))
    sqlite._due_deliveries.cache_clear()


def _no_promotion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never let the next one go."""
    monkeypatch.setattr(sqlite, "_PROMOTE", sqlite._PROMOTE.replace("SET held = 0", "SET held = held"))


def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget idempotency keys."""
    monkeypatch.setattr(acceptance, "_known_keys", lambda _connection, _offers: {})


def _no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim for endpoints that are blocked."""
    monkeypatch.setattr(sqlite, "_REQUEUE", sqlite._REQUEUE.replace("e.blocked_until", "0"))
    monkeypatch.setattr(dispatching._Lessor, "_claimable", lambda _self, _endpoint_id: True)


def _no_requeue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget when to look at a queue again."""
    monkeypatch.setattr(sqlite, "_REQUEUE", sqlite._REQUEUE.replace("max((", "max(60.0 + ("))


def _no_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver what has expired."""
    monkeypatch.setattr(upkeep, "expire_due", lambda _unit, **_named: 0)
    monkeypatch.setattr(sqlite, "_DUE_DELIVERIES", sqlite._DUE_DELIVERIES.replace("expires_at > ?", "? > 0"))
    sqlite._due_deliveries.cache_clear()


def _unfair_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no second look at endpoints that have more."""
    real = sqlite.SQLite.due_endpoints
    monkeypatch.setattr(
        sqlite.SQLite,
        "due_endpoints",
        lambda self, connection, **named: [] if named["limit"] < 4 else real(self, connection, **named),
    )


@pytest.mark.parametrize(
    "break_it",
    [_no_fence, _no_order, _no_promotion, _no_keys, _no_blocks, _no_requeue, _no_expiry, _unfair_limit],
    ids=lambda mutant: mutant.__name__.strip("_"),
)
def test_a_broken_store_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these mutants differs from the model somewhere, most of them within the first few runs."""
    break_it(monkeypatch)
    try:
        with pytest.raises(Exception):  # noqa: B017 - whatever it is, the machine found it
            run_machine(Phase.generate, examples=10 * EXAMPLES)
    finally:
        sqlite._due_deliveries.cache_clear()
