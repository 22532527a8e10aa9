"""RedisStormGuard as a layer, on a real server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from resilience import LayerKind, Policy, StormError
from resilience.redis import RedisStore, RedisStormGuard
from resilience.telemetry import Rejected, StormEnded, StormStarted
from resilience.testing import ManualClock
from tests.resilience.redis.virtual import START, ServerTime
from tests.resilience.support import assert_refuses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.telemetry import Event
    from tests.resilience.redis.unreliable import Client

pytestmark = pytest.mark.redis


class VirtualGuard(RedisStormGuard):
    """A guard whose server's time and own clock are both a test's."""

    time: ServerTime

    def pass_time(self, seconds: float) -> None:
        """Let that much time pass on both sides."""
        clock = self.store.clock
        assert isinstance(clock, ManualClock)
        self.time.advance(round(seconds * 1_000_000))
        clock.advance(seconds)


@pytest.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[RedisStore]:
    """Give a store for this test, whose own clock stands still."""
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0, clock=ManualClock()) as found:
        yield found


@pytest.fixture
def virtual(store: RedisStore, client: Client, prefix: str) -> Callable[..., VirtualGuard]:
    """Give what makes guards in virtual time."""
    time = ServerTime(client, prefix)

    class Guard(VirtualGuard):
        script = time.virtual(RedisStormGuard.script)

    Guard.time = time
    return partial(Guard, store)


async def work() -> str:
    """Return something."""
    return "done"


@pytest.mark.anyio
async def test_guards_of_one_name_share_their_window(virtual: Callable[..., VirtualGuard]) -> None:
    """SG1: whoever asks fills the same window, exactly as long as it is."""
    one, other = (virtual(60.0, 3, name="events") for _ in range(2))
    assert [await guard.should_process_event() for guard in (one, other, one, other)] == [True, True, True, False]
    one.pass_time(60.0)
    assert not await one.should_process_event()
    one.pass_time(0.000001)
    assert await one.should_process_event()


@pytest.mark.anyio
async def test_a_storm_is_announced_once(virtual: Callable[..., VirtualGuard], events: list[Event]) -> None:
    """SG3: by the guard whose event began it, and by the first that comes after its end, in whatever process."""
    one, other = (virtual(60.0, 2, name="events") for _ in range(2))
    assert (one.in_storm, one.retry_after()) == (False, 0.0)
    assert [await guard.should_process_event() for guard in (one, other, one, other)] == [True, True, False, False]
    assert (one.in_storm, other.in_storm) == (True, True)
    assert one.retry_after() == pytest.approx(60.0)
    one.pass_time(100.0)
    # The end is known before anybody asks.
    assert (one.in_storm, one.retry_after()) == (False, 0.0)
    assert await other.should_process_event()
    assert await one.should_process_event()
    told = [event for event in events if not isinstance(event, Rejected)]
    assert told == [
        StormStarted(guard="events", at_ns=START * 1_000),
        StormEnded(guard="events", at_ns=(START + 60_000_001) * 1_000, refused=2),
    ]
    assert sum(isinstance(event, Rejected) for event in events) == 2
    assert (one.statistics().storms, other.statistics().storms) == (1, 0)
    assert (one.statistics().admitted, one.statistics().rejected) == (2, 1)


@pytest.mark.anyio
async def test_no_key_takes_more_than_its_share(virtual: Callable[..., VirtualGuard]) -> None:
    """SG4: one noisy source, in however many processes, is no storm for the others."""
    one, other = (virtual(60.0, 4, name="events", key_share=0.5) for _ in range(2))
    assert [await guard.should_process_event("noisy") for guard in (one, other, one)] == [True, True, False]
    assert one.statistics().over_share == 1
    assert not one.in_storm
    assert [await other.should_process_event(key) for key in ("quiet", None)] == [True, True]
    assert not await other.should_process_event("quiet")
    assert other.in_storm


@pytest.mark.anyio
async def test_room_is_kept_for_what_is_urgent(virtual: Callable[..., VirtualGuard]) -> None:
    """Priorities fill what is reserved for them, and nothing else does."""
    guard = virtual(60.0, 4, name="events", reserve=(0.25, 0.25))
    told = [await guard.should_process_event(priority=priority) for priority in (0, 0, 0, 1, 1, 2, 9)]
    assert told == [True, True, False, True, False, True, False]
    for priority in (-1, True, 0.5):
        with pytest.raises(ValueError, match="priority must be "):
            await guard.should_process_event(priority=priority)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key must be "):
        await guard.should_process_event(3)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_it_is_a_layer_of_every_kind(store: RedisStore) -> None:
    """It decorates, stands in a Policy and in an `async with`, and refuses by StormError."""
    guard = RedisStormGuard(store, 1_000.0, 3, name="events")
    assert await guard(work)() == "done"
    assert await Policy(guard).call(work) == "done"
    async with guard as permit:
        assert permit.guard is guard
    with pytest.raises(StormError) as caught:
        await guard.call(work)
    assert caught.value.guard == "events"
    assert caught.value.retry_after == pytest.approx(1_000.0, abs=60)
    permit.cancelled()
    assert permit.settled
    assert guard.statistics().admitted == 3


@pytest.mark.anyio
async def test_it_says_what_it_is(store: RedisStore) -> None:
    """A description names what differs from the defaults."""
    guard = RedisStormGuard(store, 5.0, 20, name="events", hold_for=1.0, key_share=0.5, reserve=[0.25])
    described = guard.describe()
    assert described.kind is LayerKind.STORM_GUARD
    assert dict(described.settings) == {
        "store": store, "window_size": 5.0, "max_events": 20, "hold_for": 1.0, "key_share": 0.5, "reserve": (0.25,),
    }  # fmt: skip
    assert guard.calm_ratio == 0.5
    assert repr(guard) == f"<RedisStormGuard 'events' on {store!r}>"


@pytest.mark.anyio
async def test_keys_and_priorities_count_without_the_server_too() -> None:
    """RL12: the guard that takes over is of the same terms."""
    async with RedisStore("redis://127.0.0.1:1", clock=ManualClock()) as store:
        guard = RedisStormGuard(store, 60.0, 4, name="events", key_share=0.25, reserve=(0.5,))
        told = [await guard.should_process_event(key, priority) for key, priority in (("a", 0), ("a", 0), ("b", 0))]
        assert told == [True, False, True]
        assert [await guard.should_process_event(priority=1) for _ in range(3)] == [True, True, False]
        assert guard.statistics().unshared == 6
        assert guard.statistics().over_share == 1
        assert guard.statistics().storms == 1


def test_bad_arguments_are_refused() -> None:
    """What the local guard refuses, this one does, and a missing name."""
    with RedisStore("redis://127.0.0.1:1") as store:
        for name, value in {
            "window_size": 0, "max_events": 1.5, "calm_ratio": 2, "hold_for": -1, "key_share": 0, "name": "",
            "on_store_error": "ignore",
        }.items():  # fmt: skip
            assert_refuses(name, value, partial(RedisStormGuard, store, name="events"))
    assert_refuses("store", None, partial(RedisStormGuard, name="events"))
