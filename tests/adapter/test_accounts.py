"""The demonstration's account is a pure function of records; each figure is shown to notice what it is there for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import pytest

from webhook_adapter import Delivery, DeliveryState, Endpoint, Message
from webhook_adapter.demo.accounts import Account, Seen, draw_up, percentile, read_records
from webhook_adapter.demo.display import closing
from webhook_adapter.demo.events import Event, real_events, storm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENDPOINT = Endpoint("ep_1", "https://a.example/", created_at=0.0, updated_at=0.0)
EVENTS = tuple(Event(number, "order.paid", {}) for number in range(3))
MESSAGES = tuple(
    Message(
        id=f"msg_{number}",
        event_type="order.paid",
        body=b'{"data": {"number": %d}}' % number,
        occurred_at=0.0,
        accepted_at=10.0,
        deliver_at=10.0 + number,
    )
    for number in range(3)
)
DELIVERIES = tuple(
    Delivery(
        id=f"dlv_{number}",
        message_id=f"msg_{number}",
        endpoint_id="ep_1",
        state=DeliveryState.DELIVERED,
        due_at=10.0,
        created_at=10.0,
    )
    for number in range(3)
)
SEEN = {f"msg_{number}": Seen(1, 1, 13.0) for number in range(3)}


def account(
    *,
    messages: tuple[Message, ...] = MESSAGES,
    deliveries: tuple[Delivery, ...] = DELIVERIES,
    seen: Mapping[str, Seen] = SEEN,
    died: frozenset[str] = frozenset(),
    unverified: int = 0,
) -> Account:
    """The account of a run in which all went well, but for what is given."""
    return draw_up(
        source="a test",
        published=EVENTS,
        messages=messages,
        endpoints={"a": ENDPOINT},
        deliveries=deliveries,
        died=died,
        seen={"a": seen},
        unverified=unverified,
        breaker_transitions={},
        limiter_hits=0,
        storm_hits=0,
        revived=len(died),
        kills=0,
        elapsed=1.0,
    )


def test_a_run_in_which_all_went_well_is_sound() -> None:
    """Latency is counted from when a delivery was due; what was given a later turn is deferred."""
    told = account()

    assert told.sound
    assert (told.accepted, told.delivered, told.lost, told.duplicates, told.retried) == (3, 3, 0, 0, 0)
    assert (told.deferred, told.p50, told.p99) == (2, 2.0, 3.0)


@pytest.mark.parametrize(
    ("changes", "figure", "value"),
    [
        ({"seen": {**SEEN, "msg_1": Seen(3, 0, None)}}, "lost", 1),
        ({"seen": {key: SEEN[key] for key in ("msg_0", "msg_1")}}, "lost", 1),
        ({"messages": MESSAGES[:2]}, "accepted", 2),
        ({"deliveries": DELIVERIES[:2]}, "disagreements", 1),
        (
            {"deliveries": (attrs.evolve(DELIVERIES[0], state=DeliveryState.PENDING), *DELIVERIES[1:])},
            "disagreements",
            1,
        ),
        ({"unverified": 2}, "unverified", 2),
    ],
)
def test_what_went_wrong_makes_it_unsound(changes: dict[str, object], figure: str, value: int) -> None:
    """A loss, a message the store does not have, a delivery both sides tell differently, a bad signature."""
    told = account(**changes)  # type: ignore[arg-type]

    assert value == getattr(told, figure)
    assert not told.sound


def test_duplicates_and_retries_are_told_apart() -> None:
    """A request beyond the first is a retry if none before it was taken, and a duplicate if one was."""
    told = account(seen={**SEEN, "msg_0": Seen(4, 2, 11.0)}, died=frozenset({"dlv_0"}))

    assert (told.retried, told.duplicates, told.dead, told.sound) == (2, 1, 1, True)
    # What had been dead says nothing of latency.
    assert told.p50 == 1.0


def test_an_unsound_account_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the last line alone is told the truth."""
    closing(account(seen={}))
    assert "SOMETHING WENT WRONG" in capsys.readouterr().out


def test_percentiles_are_values_that_occurred() -> None:
    """The smallest value that the share does not exceed; nothing has none."""
    assert percentile([], 0.5) is None
    assert percentile([1.0], 0.99) == 1.0
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.25, 0.5, 0.51, 1.0)] == [1.0, 2.0, 3.0, 4.0]
    assert not math.isnan(percentile([0.0, 0.0], 0.5) or 0.0)


@pytest.mark.parametrize("described", [{}, {"paths": {"/a": {}}}, {"paths": {"/a": {"by_message": {"m": [1]}}}}])
def test_records_that_are_none_are_refused(described: dict[str, object]) -> None:
    """What cannot be read is not taken for nothing."""
    with pytest.raises(ValueError, match="records cannot be read"):
        read_records(described, "/a")


def test_events_come_from_files_where_there_is_no_history(tmp_path: Path) -> None:
    """The demonstration works from an archive without git: the package's own files are real events too."""
    sourced = real_events(5, root=tmp_path)

    assert sourced.source == "5 files of this project"
    assert [event.number for event in sourced.events] == list(range(5))
    assert {event.type for event in sourced.events} == {"repository.file"}
    assert all(len(str(event.data["sha256"])) == 64 for event in sourced.events)


def test_a_storm_has_eight_placed_one_paid_and_one_shipped_in_ten() -> None:
    """Its numbers go on from where the real events end."""
    events = list(storm(100, first=24))

    assert [event.number for event in events] == list(range(24, 124))
    kinds = [event.type for event in events]
    assert (kinds.count("order.placed"), kinds.count("order.paid"), kinds.count("order.shipped")) == (80, 10, 10)
