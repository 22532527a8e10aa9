"""The token bucket on the server beside the machine that states its rules, on a real server in virtual time."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.machines.token_bucket import TokenBucket, exact_fraction
from resilience.redis import RedisRateLimiter
from resilience.redis.rate_limiter import FOREVER
from resilience.redis.terms import Terms
from tests.resilience.redis.virtual import HUNT, LAW, LONGER, ServerTime, mutant
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import settings

    from resilience.redis.link import Script
    from tests.resilience.redis.unreliable import Client

pytestmark = pytest.mark.redis

SCRIPT = RedisRateLimiter.script
_fresh = count()

TERMS = st.sampled_from(
    [(10, 1), (1, 5), (0.1, 3), (3, 2), (7.5, 2.5), (1_000, 40), (1_000_000, 3), (2_500_000, 1_000)]
)
#: Some tokens are had, some come within the step, some lie far ahead.
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2_000_000), st.integers(0, 10**11)),
        st.sampled_from([1, 1, 1, 2, 0.5, 0.3, "give back"]),
        st.sampled_from([0, 0, 100_000, FOREVER]),
    ),
    max_size=25,
)


def law_of_the_model(time: ServerTime, script: Script, effort: settings = LAW) -> None:
    """The script decides as the machine does, says the same instants, and keeps its key until the bucket is full."""

    @effort
    @given(TERMS, STEPS)
    def law(told: tuple[float, float], steps: list[tuple[int, float | str, int]]) -> None:
        key = f"{time._key}:{next(_fresh)}"
        terms = Terms.of(*told)
        bucket = TokenBucket(*told, time.now * 1_000)
        last: tuple[int, int, list[int]] | None = None
        for step, cost, max_wait in steps:
            time.advance(step)
            now_ns = time.now * 1_000
            if isinstance(cost, str):
                if last is not None:
                    units, model_units, stamp = last
                    came = time.run(script, key, "give_back", terms.scale, terms.burst, units, *stamp)
                    assert came == [1]
                    bucket.tat = max(bucket.tat - model_units, now_ns * bucket.per_nanosecond)
                    last = None
                continue
            if cost > told[1]:
                continue
            units, model_units = terms.units(cost), bucket.units(cost)
            wait = max(0, -(-(bucket.ready_at(model_units) - now_ns) // 1_000))
            granted, said, *stamp, missing, _ = time.run(script, key, "take", terms.scale, terms.burst, units, max_wait)
            assert (granted, said) == (wait <= max_wait, wait)
            if granted:
                bucket.tat = max(bucket.tat, (now_ns + wait * 1_000) * bucket.per_nanosecond) + model_units
                last = (units, model_units, stamp)
            assert Fraction(missing, terms.token) == Fraction(bucket._debt(now_ns), bucket.per_token)
            if granted:
                # Milliseconds; keys expire in real time, which passes meanwhile.
                full_in = (bucket.full_at() - now_ns) / 1_000_000
                assert full_in - 1_000 < time.client.pttl(key) - LONGER < full_in + 1_000

    law()


def law_rl1(time: ServerTime, script: Script, told: tuple[float, float], effort: settings = LAW) -> None:
    """RL1: in no interval is more admitted than the bucket holds and what comes in meanwhile, to the last unit."""

    @effort
    @given(STEPS)
    def law(steps: list[tuple[int, float | str, int]]) -> None:
        key = f"{time._key}:{next(_fresh)}"
        terms = Terms.of(*told)
        rate, capacity = map(exact_fraction, told)
        admitted: list[tuple[int, Fraction]] = []
        for step, cost, max_wait in steps:
            time.advance(step)
            share = told[1] / 2 if isinstance(cost, str) else told[1] * cost / 2
            granted, wait, *_ = time.run(script, key, "take", terms.scale, terms.burst, terms.units(share), max_wait)
            if granted:
                admitted.append((time.now + wait, exact_fraction(share)))
        for index, (start, _) in enumerate(admitted):
            total = Fraction(0)
            for at, cost_then in admitted[index:]:
                total += cost_then
                assert total <= capacity + rate * (at - start) / 1_000_000

    law()


@pytest.fixture
def time(client: Client, prefix: str) -> ServerTime:
    """Give the virtual time of the server."""
    return ServerTime(client, prefix)


def test_the_script_obeys_the_machine(time: ServerTime) -> None:
    """RL1, RL2, RL4: the bucket on the server is the one that `machines.token_bucket` describes, step by step."""
    law_of_the_model(time, time.virtual(SCRIPT))


MUTANTS = {
    "holds a token too many": ("missing + units - burst", "missing + units - burst - units"),
    "forgets what it admitted": ("wait * scale) + units\n", "wait * scale)\n"),
    "rounds a wait down": ("wait = wait + 1", "wait = wait + 0"),
    "loses the part": ("part = math.fmod(missing, scale)", "part = 0"),
    "gives back twice as much": ("missing - units)\n  keep()\n  return", "missing - 2 * units)\n  keep()\n  return"),
    "lets its key go early": ("math.floor(us / 1000) + 2", "math.floor(us / 1000) - 1000"),
    "keeps its key": ("math.floor(us / 1000) + 2", "math.floor(us / 1000) + 2000"),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_faulty_script_is_seen(time: ServerTime, fault: str) -> None:
    """RL1: the machine catches each of the classic mistakes."""
    assert_caught(partial(law_of_the_model, time, mutant(time.virtual(SCRIPT), *MUTANTS[fault]), HUNT))


@pytest.mark.parametrize("told", [(1 / 3, 2), (2.0000001, 100_000), (0.7, 5), (123_456.789, 17)], ids=str)
def test_the_bound_holds_for_any_rate(time: ServerTime, told: tuple[float, float]) -> None:
    """RL1: a rate that whole numbers of this size cannot express is rounded to the safe side."""
    law_rl1(time, time.virtual(SCRIPT), told)
    assert_caught(
        partial(law_rl1, time, mutant(time.virtual(SCRIPT), *MUTANTS["forgets what it admitted"]), told, HUNT)
    )


@pytest.mark.parametrize("told", [(1 / 3, 2), (1e-6, 3), (7.1e9, 1e9)], ids=str)
def test_terms_are_never_generous(told: tuple[float, float]) -> None:
    """RL1: whatever has to be rounded is rounded so that less is admitted, and by next to nothing."""
    terms = Terms.of(*told)
    rate, capacity = map(exact_fraction, told)
    assert Fraction(terms.scale, terms.token) * 1_000_000 <= rate
    assert Fraction(terms.burst, terms.token) <= capacity
    assert Fraction(terms.scale, terms.token) * 1_000_000 > rate * (1 - Fraction(terms.capacity) / 2**51)
    assert terms.burst <= 2**51


def law_of_a_clock_that_falls_back(time: ServerTime, script: Script) -> None:
    """RL3: a step back mints nothing, strands nobody, and is stood still for once."""
    terms = Terms.of(1, 2)
    key = f"{time._key}:{next(_fresh)}"
    take: Callable[[], list[int]] = partial(time.run, script, key, "take", terms.scale, terms.burst, terms.units(1), 0)
    assert [take()[0] for _ in range(3)] == [1, 1, 0]
    time.advance(-3_600_000_000)
    assert take()[:2] == [0, 1_000_000]
    time.advance(1_000_000)
    assert [take()[0] for _ in range(2)] == [1, 0]
    time.advance(3_600_000_000)
    assert [take()[0] for _ in range(3)] == [1, 1, 0]
    time.advance(-1)
    assert take()[:2] == [0, 1_000_000]


def test_a_clock_that_falls_back_changes_nothing(time: ServerTime) -> None:
    """RL3: another server's clock, or one that was set back, neither mints tokens nor makes anybody wait longer."""
    script = time.virtual(SCRIPT)
    law_of_a_clock_that_falls_back(time, script)
    assert_caught(
        partial(
            law_of_a_clock_that_falls_back,
            time,
            mutant(script, "return last, offset + last - now", "return now, offset"),
        )
    )
    assert_caught(
        partial(
            law_of_a_clock_that_falls_back,
            time,
            mutant(script, "return last, offset + last - now", "return last, offset"),
        )
    )


def law_of_what_came_after(time: ServerTime, script: Script) -> None:
    """RL1: tokens come back only if nobody was admitted after them."""
    terms = Terms.of(1, 2)
    key = f"{time._key}:{next(_fresh)}"
    told = (terms.scale, terms.burst, terms.units(1))
    _, _, *stamp, _, _ = time.run(script, key, "take", *told, 0)
    time.run(script, key, "take", *told, 0)
    assert time.run(script, key, "give_back", *told, *stamp) == [0]
    assert time.run(script, key, "take", *told, 0)[0] == 0
    assert time.run(script, f"{key}:another", "give_back", *told, *stamp) == [0]


def test_what_others_built_on_does_not_come_back(time: ServerTime) -> None:
    """RL1: had they never been taken, the bucket might have run over since; so they stay taken."""
    script = time.virtual(SCRIPT)
    law_of_what_came_after(time, script)
    careless = mutant(
        script, "if not kept or whole ~= tonumber(ARGV[5]) or part ~= tonumber(ARGV[6]) then", "if false then"
    )
    assert_caught(partial(law_of_what_came_after, time, careless))


def test_terms_may_change_under_a_bucket(time: ServerTime) -> None:
    """RL1: while a new version with other terms is rolled out, the instant at which the bucket is full stays."""
    script = time.virtual(SCRIPT)
    key = f"{time._key}:{next(_fresh)}"
    old, new = Terms.of(3, 2), Terms.of(7, 14)
    assert [time.run(script, key, "take", old.scale, old.burst, old.units(1), 0)[0] for _ in range(3)] == [1, 1, 0]
    granted, _, whole, part, missing, _ = time.run(script, key, "take", new.scale, new.burst, new.units(1), 0)
    # Two tokens of the old terms take two thirds of a second to come; that is 14/3 of the new ones, rounded up.
    assert granted == 1
    assert missing - new.units(1) == -(-new.token * 14 // 3) + (whole + part) * 0
