"""The laws of the guards across processes that are really several, on both event loops."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.resilience.redis.several import Process, run_several
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from tests.resilience.redis.several import Call

pytestmark = pytest.mark.redis

#: Three processes with ten tasks each, one of them on trio.
PLAN: list[dict[str, Any]] = [
    {"for": 0.7, "tasks": 10, "pause": 0.002},
    {"for": 0.7, "tasks": 10, "pause": 0.002},
    {"for": 0.7, "tasks": 10, "pause": 0.002, "backend": "trio"},
]


def assert_bounded(calls: list[Call], capacity: float, rate: float) -> None:
    """Assert that no interval has more calls that were asked and answered in it than the terms allow."""
    ran = sorted((call for call in calls if call.ran), key=lambda call: call.answered_at)
    starts = sorted(call.asked_at for call in ran)
    for start in starts[:: max(1, len(starts) // 200)]:
        inside = 0
        for call in ran:
            if call.asked_at >= start:
                inside += 1
                assert inside <= capacity + rate * (call.answered_at - start) / 1e9


def law_rl1(kind: str, url: str, prefix: str, max_wait: float, batch: int | None = None) -> None:
    """RL1: all processes together admit what one bucket does, in any interval; with batches, so much more at most."""
    terms = {"rate": 200.0, "capacity": 20, "max_wait": max_wait}
    error = 0
    if batch is not None:
        terms["batch"] = batch
        error = len(PLAN) * (batch - 1)
    calls = run_several(kind, url, prefix, terms=terms, plan=PLAN)
    assert_bounded(calls, 20 + error, 200)
    ran = sum(call.ran for call in calls)
    # How much comes in depends on how slow the machine is; something does.
    assert ran > 20
    assert max_wait or any(not call.ran for call in calls)


@pytest.mark.parametrize("max_wait", [0.0, 10.0])
def test_processes_share_one_bucket(redis_url: str, prefix: str, max_wait: float) -> None:
    """RL1, RL12: whether they are refused or wait for their turns."""
    law_rl1("limiter", redis_url, prefix, max_wait)


def test_processes_that_take_in_advance_stay_within_the_error(redis_url: str, prefix: str) -> None:
    """RL1: n processes admit at most n * (batch - 1) more than they would one by one."""
    law_rl1("limiter", redis_url, prefix, 0.0, batch=5)


def test_processes_that_share_nothing_are_seen(redis_url: str, prefix: str) -> None:
    """RL1: a limiter in each process lets three times as much pass."""
    assert_caught(partial(law_rl1, "local limiter", redis_url, prefix, 0.0))


def law_sg1(kind: str, url: str, prefix: str) -> None:
    """SG1: in no window of this length do more events pass than one guard admits, and a full one empties again."""
    window, most = 0.2, 25
    calls = run_several(kind, url, prefix, terms={"window_size": window, "max_events": most}, plan=PLAN)
    ran = [call for call in calls if call.ran]
    for start in sorted({call.asked_at for call in ran}):
        assert sum(start <= call.asked_at and call.answered_at <= start + window * 1e9 for call in ran) <= most
    assert any(not call.ran for call in calls)
    assert len(ran) > most


def test_processes_share_one_window(redis_url: str, prefix: str) -> None:
    """SG1: exactly, by the server's clock."""
    law_sg1("storm guard", redis_url, prefix)


def test_processes_with_a_window_each_are_seen(redis_url: str, prefix: str) -> None:
    """SG1: a guard in each process lets three times as much pass."""
    assert_caught(partial(law_sg1, "local storm guard", redis_url, prefix))


def law_cb1(kind: str, url: str, prefix: str) -> None:
    """CB1: no more probes than allowed are under way at a time, in all processes together, and some are."""
    terms = {"failure_threshold": 1, "recovery_timeout": 0.1, "half_open_max_calls": 2, "probe_timeout": 30.0}
    with Process(kind, url, prefix, terms=terms, fails=1) as first:
        assert first.hear() == "ready"
        first.say()
        first.calls()
    # The circuit is open now, and since every call fails, it never closes: whatever runs is a probe.
    plan = [{**entry, "lasts": 0.01, "fails": 10**9} for entry in PLAN]
    probes = [call for call in run_several(kind, url, prefix, terms=terms, plan=plan) if call.ran]
    assert len(probes) >= 2
    for probe in probes:
        assert sum(other.answered_at <= probe.answered_at < other.ended_at for other in probes) <= 2


def test_processes_share_the_places_of_probes(redis_url: str, prefix: str) -> None:
    """CB1: a callee that is down is tried by as few calls as were allowed, however many processes there are."""
    law_cb1("breaker", redis_url, prefix)


def test_processes_with_a_circuit_each_are_seen(redis_url: str, prefix: str) -> None:
    """CB1: a breaker in each process lets as many through in each."""
    assert_caught(partial(law_cb1, "local breaker", redis_url, prefix))


def law_cb3(kind: str, url: str, prefix: str) -> None:
    """CB3: an outcome that one process tells after another has opened and closed the circuit changes nothing."""
    patient = {"failure_threshold": 1, "recovery_timeout": 1_000.0}
    hasty = {**patient, "recovery_timeout": 0.02}
    with (
        Process(kind, url, prefix, terms=patient, fails=1, waits=True) as slow,
        Process(kind, url, prefix, terms=hasty, fails=1, until_good=True, **{"for": 30.0, "pause": 0.005}) as other,
        Process(kind, url, prefix, terms=patient) as last,
    ):
        assert [process.hear() for process in (slow, other, last)] == ["ready"] * 3
        slow.say()
        assert slow.hear() == "begun"
        other.say()
        first, *_, good = other.calls()
        assert (first.ran, good.ran) == (True, True)
        slow.say("end")
        assert len(slow.calls()) == 1
        last.say()
        assert [call.ran for call in last.calls()] == [True]


def test_an_outcome_of_before_changes_nothing_anywhere(redis_url: str, prefix: str) -> None:
    """CB3: each permit is of a generation, whatever process has it."""
    law_cb3("breaker", redis_url, prefix)


def test_a_script_that_counts_any_outcome_is_seen(redis_url: str, prefix: str) -> None:
    """CB3: the mutant opens a circuit that had been found to be well."""
    assert_caught(partial(law_cb3, "careless breaker", redis_url, prefix))
