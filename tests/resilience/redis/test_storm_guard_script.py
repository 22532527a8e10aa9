"""The window on the server beside the local guard, on a real server in virtual time."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import StormGuard
from resilience.redis import RedisStormGuard
from resilience.testing import ManualClock
from tests.resilience.redis.virtual import HUNT, LAW, LONGER, ServerTime, mutant
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from hypothesis import settings

    from resilience.redis.link import Script
    from tests.resilience.redis.unreliable import Client

pytestmark = pytest.mark.redis

SCRIPT = RedisStormGuard.script
WINDOW = 100
_fresh = count()

TERMS = st.sampled_from(
    [
        {"max_events": 1},
        {"max_events": 3, "hold_for": 0.000_050},
        {"max_events": 4, "calm_ratio": 0.25, "key_share": 0.5},
        {"max_events": 6, "reserve": (0.25, 0.25), "key_share": 0.34, "hold_for": 0.000_010},
    ]
)
#: How long after the one before, whose, and of what priority; a window is 100 microseconds long.
EVENTS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 20), st.sampled_from([99, 100, 101, 200])),
        st.sampled_from([None, None, "a", "b"]),
        st.integers(0, 3),
    ),
    max_size=40,
)


@pytest.fixture
def time(client: Client, prefix: str) -> ServerTime:
    """Give the virtual time of the server."""
    return ServerTime(client, prefix)


def law_of_the_model(time: ServerTime, script: Script, effort: settings = LAW) -> None:
    """The script admits what the local guard does, and says the same of the storm and of when there is room."""

    @effort
    @given(TERMS, EVENTS)
    def law(terms: dict[str, object], steps: list[tuple[int, str | None, int]]) -> None:
        clock = ManualClock()
        model = StormGuard(WINDOW / 1_000_000, clock=clock, **terms)  # type: ignore[arg-type]
        keys = (f"{time._key}:{next(_fresh)}", f"{time._key}:{next(_fresh)}")
        told = (WINDOW, model.max_events, model._window.calm, round(model.hold_for * 1_000_000))
        quota = model.max_events if model._shares is None else model._shares.quota
        storms = 0
        for step, key, priority in steps:
            time.advance(step)
            clock.advance(step / 1_000_000)
            bound = model._bounds[model._level(priority)] or model.max_events
            own = () if key is None or model._shares is None else (f"{keys[0]}:{key}",)
            was_in_storm = model._window.in_storm
            over_at, refused = model._window.over_at(), model._window.refused
            # Time begins at 0 here, and the storm is settled when somebody looks.
            expected = model.try_admit(key, priority) is not None
            verdict, ready, over, now, began, ended, ago, had_refused = time.run(
                script, keys + own, "take", *told, bound, quota
            )
            assert now == time.now
            assert (verdict == 1) is expected
            # A millionth of a second is the next whole one after a thousand-millionth.
            assert ready == -(-round(model.retry_after(key, priority) * 1_000_000_000) // 1_000) or expected
            storms += began
            assert storms == model.statistics().storms
            assert (over >= 0) is model.in_storm
            if model.in_storm:
                assert over == -(-(model._window.over_at() - clock.monotonic_ns()) // 1_000)
            assert bool(ended) is (was_in_storm and clock.monotonic_ns() >= over_at)
            if ended:
                assert (ago, had_refused) == ((clock.monotonic_ns() - over_at) // 1_000, refused)
        for name in (*keys, f"{keys[0]}:a", f"{keys[0]}:b"):
            life = time.client.pttl(name)
            assert life == -2 or LONGER - 1_000 < life < LONGER + 1_000

    law()


def test_the_script_obeys_the_machines(time: ServerTime) -> None:
    """SG1, SG3, SG4: window, storm, shares and priorities are those of the local guard, step by step."""
    law_of_the_model(time, time.virtual(SCRIPT))


MUTANTS = {
    "half-open window": ("full = entry and now - entry <= window", "full = entry and now - entry < window"),
    "a place too many": ("local entry = nth(KEYS[1], within)", "local entry = nth(KEYS[1], within + 1)"),
    "forgets the newest": ("(place == 1 and limit or quota) - 1", "(place == 1 and limit or quota) - 2"),
    "calm too early": ("calm_at = entry + window + 1", "calm_at = entry + window"),
    "never calm": ("if calm_at and now >= calm_at + hold then", "if false then"),
    "ignores the hold": ("now >= calm_at + hold then", "now >= calm_at then"),
    "a storm for each refusal": ("if not calm_at then", "if true then"),
    "a key starts a storm": ("elseif had then\n  verdict = -1", "elseif had then\n  verdict, began = -1, 1"),
    "one share for all keys": (
        "local share = KEYS[3] and nth(KEYS[3], quota)",
        "local share = KEYS[3] and nth(KEYS[1], quota)",
    ),
    "lets its keys go early": (
        "redis.call('PEXPIRE', KEYS[place], lasting(window))",
        "redis.call('PEXPIRE', KEYS[place], 1000)",
    ),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_faulty_script_is_seen(time: ServerTime, fault: str) -> None:
    """SG1, SG3, SG4: the model catches each of the classic mistakes."""
    assert_caught(partial(law_of_the_model, time, mutant(time.virtual(SCRIPT), *MUTANTS[fault]), HUNT))


def law_of_a_clock_that_falls_back(time: ServerTime, script: Script) -> None:
    """SG6: a step back is stood still for once: nothing is admitted twice, nobody is refused for longer."""
    keys = (f"{time._key}:{next(_fresh)}", f"{time._key}:{next(_fresh)}")
    take = partial(time.run, script, keys, "take", WINDOW, 2, 1, 0, 2, 2)
    assert [take()[0] for _ in range(3)] == [1, 1, 0]
    time.advance(-3_600_000_000)
    assert take()[:2] == [0, WINDOW + 1]
    time.advance(WINDOW)
    assert take()[:2] == [0, 1]
    time.advance(1)
    assert [take()[0] for _ in range(3)] == [1, 1, 0]
    time.advance(3_600_000_000)
    assert [take()[0] for _ in range(3)] == [1, 1, 0]


def test_a_clock_that_falls_back_changes_nothing(time: ServerTime) -> None:
    """SG6: another server's clock, or one that was set back, neither empties the window nor keeps it full."""
    script = time.virtual(SCRIPT)
    law_of_a_clock_that_falls_back(time, script)
    for fault in ("return now, offset", "return last, offset"):
        broken = mutant(script, "return last, offset + last - now", fault)
        assert_caught(partial(law_of_a_clock_that_falls_back, time, broken))


def test_an_event_that_is_taken_back_was_never_there(time: ServerTime) -> None:
    """SG1: what was admitted for nobody takes no place, of the window or of its key."""
    script = time.virtual(SCRIPT)
    keys = tuple(f"{time._key}:{next(_fresh)}" for _ in range(3))
    take = partial(time.run, script, keys, "take", WINDOW, 2, 1, 0, 2, 1)
    verdict, *_ = answer = take()
    assert verdict == 1
    assert take()[0] == -1
    assert time.run(script, keys, "take_back", WINDOW, answer[3]) == [1]
    assert time.run(script, keys, "take_back", WINDOW, answer[3]) == [0]
    assert take()[0] == 1
