"""What is exported under which name, and that one guard never spoils what is told of another."""

from __future__ import annotations

import gc
import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Coalescer,
    Deadline,
    Keyed,
    Layer,
    LayerKind,
    Policy,
    RateLimiter,
    Retry,
    RetryBudget,
    StormGuard,
    Strategy,
    Timeout,
)
from resilience.telemetry.metrics import METRICS, Kind
from resilience.telemetry.watching import Sample, Watched
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught
from tests.resilience.telemetry.samples import Counting, Own, one_of_each

if TYPE_CHECKING:
    from resilience.counting import Statistics
    from resilience.fusing import Runner
    from resilience.layer import Guard
    from resilience.telemetry.watching import Readings, Watchable

CLOCK = ManualClock()


def names(*guards: Watchable) -> list[tuple[str, str]]:
    """Return the name and the kind of everything that is read."""
    return [(source.name, source.kind.value) for source in Watched(guards).sources]


class _Plain(Strategy):
    """A strategy of a user's own, which has nothing to tell."""

    def wrap(self, call_next: Runner) -> Runner:
        return call_next


class _Pair(Layer):
    """A layer of a user's own that consists of two guards, and is no Policy."""

    kind = LayerKind.OTHER

    def __init__(self, *guards: Guard) -> None:
        self.guards = guards

    @property
    def parts(self) -> tuple[Guard, ...]:
        return self.guards


def test_guard_goes_by_its_name_or_its_policy_s_or_its_class_s() -> None:
    """In this order; what is nested without a name belongs to the policy around it."""
    inner = Policy(Timeout(1.0, name="quick"), _Plain(), Deadline(9.0))
    outer = Policy(Retry(2), inner, CircuitBreaker(), name="search")
    assert names(outer, Retry(2), Own()) == [
        ("search", "retry"),
        ("quick", "timeout"),
        ("search", "circuit_breaker"),
        ("Retry", "retry"),
        ("Own", "other"),
    ]
    assert names(_Pair(Own("a"), Bulkhead(1))) == [("a", "other"), ("Bulkhead", "bulkhead")]
    assert names(RetryBudget(), Coalescer(StormGuard(name="rain"))) == [
        ("RetryBudget", "retry_budget"),
        ("rain", "coalescer"),
    ]


def test_policy_without_layers_is_nothing_to_read() -> None:
    """Nor is one whose layers have no statistics; neither is a mistake."""
    assert names(Policy(), Policy(_Plain(), Deadline(9.0))) == []


def test_what_stands_for_another_is_that_other() -> None:
    """However many shares of a limiter, and layers of a Keyed, there are, what they share is read once."""
    limiter = AdaptiveLimiter(name="calls", clock=CLOCK)
    hosts: Keyed[str, RateLimiter] = Keyed(lambda _: RateLimiter(1.0, 1, clock=CLOCK), name="hosts", clock=CLOCK)
    assert hosts["a.example"].try_acquire()
    one = Policy(hosts.layer(key="host"), limiter.at(0.5))
    assert names(one, limiter, limiter.at(0.7), hosts) == [("hosts", "keyed"), ("calls", "adaptive_limiter")]


def test_same_guard_in_two_places_is_read_once() -> None:
    """A breaker that two policies share is one series, by the name it was first found under."""
    breaker = CircuitBreaker(clock=CLOCK)
    watched = Watched((Policy(breaker, name="search"), Policy(breaker, name="orders")))
    assert watched.add((breaker,)) == ()
    assert [source.name for source in watched.sources] == ["search"]


def test_two_guards_of_one_name_are_refused() -> None:
    """The error names both; nothing has changed, though others came before. Another kind may have the same name."""
    one, other = Bulkhead(1, name="db"), Bulkhead(2, name="db")
    watched = Watched((one, RateLimiter(1.0, 1, name="db")))
    with pytest.raises(ValueError) as caught:
        watched.add((Bulkhead(1, name="new"), other))
    assert str(caught.value) == (
        f"guards must have names of their own, but {one!r} and {other!r} are both called 'db'; "
        "give one of them, or its Policy, a name"
    )
    assert [source.name for source in watched.sources] == ["db", "db"]
    assert watched.sources[0].measured is one


@pytest.mark.parametrize(
    "thing", [None, "limiter", [Own()], _Plain(), Deadline(9.0)], ids=lambda thing: repr(thing)[:9]
)
def test_what_has_no_statistics_is_refused(thing: object) -> None:
    """A mistake is seen when it is made, and not as a chart that stays empty."""
    with pytest.raises(ValueError, match=r"^guards must (be layers|have statistics)") as caught:
        Watched((thing,))  # type: ignore[arg-type]
    assert repr(thing) in str(caught.value)


def told(readings: Readings) -> dict[str, float]:
    """Return how many calls each guard has admitted."""
    (metric,) = (metric for metric in METRICS if metric.name == "resilience.admissions")
    return {sample.guard: sample.value for sample in readings[metric] if sample.labels == ("admitted",)}


class _Halves:
    """Statistics that raise half way."""

    admitted = 1

    @property
    def rejected(self) -> int:
        message = "a bug"
        raise LookupError(message)


class _Broken(Own):
    """A guard whose statistics raise, at once or half way."""

    halves = False

    def statistics(self) -> Statistics:
        if self.halves:
            return _Halves()  # type: ignore[return-value]
        message = "a bug"
        raise LookupError(message)


def law_of_the_unreadable(watched_class: type[Watched]) -> None:
    """What cannot be read hides nothing of the others, and is not told by halves (TE5)."""
    broken = _Broken("broken")
    watched = watched_class((Own("before"), broken, Own("after")))
    for halves in (False, True):
        broken.halves = halves
        try:
            seen = told(watched.read())
        except LookupError as error:
            raise AssertionError from error
        assert seen == {"before": 0, "after": 0}


class _Trusting(Watched):
    """A mutant: expects every guard to answer."""

    def read(self) -> Readings:
        for source in self.sources:
            source.read()
        return super().read()


def test_guard_that_cannot_be_read_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """TE5: it is logged, with what it raised; a mutant that expects an answer is caught."""
    with caplog.at_level(logging.ERROR, logger="resilience"):
        law_of_the_unreadable(Watched)
    assert [record.getMessage() for record in caplog.records] == [
        "the statistics of other 'broken' cannot be read; the others are"
    ] * 2
    assert [repr(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["LookupError('a bug')"] * 2
    assert_caught(partial(law_of_the_unreadable, _Trusting))


@attrs.frozen
class _Few:
    admitted: int


class _Taciturn(Own):
    """A guard whose statistics are of a class of its own, with one field that is known here."""

    kind = LayerKind.CIRCUIT_BREAKER

    def statistics(self) -> Statistics:
        return _Few(7)  # type: ignore[return-value]


def test_statistics_of_a_user_s_own_are_told_as_far_as_they_are_known(caplog: pytest.LogCaptureFixture) -> None:
    """A guard that says it is a breaker, and has no state to tell, is no error."""
    readings = Watched((_Taciturn("few"),)).read()
    assert {metric.name: samples for metric, samples in readings.items() if samples} == {
        "resilience.admissions": [Sample("few", Kind.CIRCUIT_BREAKER, ("admitted",), 7)]
    }
    assert caplog.records == []


def test_every_kind_has_something_to_tell() -> None:
    """Each kind is in the readings; those of the table that are for it, and no others, speak of it."""
    readings = Watched(tuple(one_of_each().values())).read()
    for kind in Kind:
        spoken = {metric for metric, samples in readings.items() if any(sample.kind is kind for sample in samples)}
        assert spoken == {metric for metric in METRICS if metric.fields(kind)}


def test_each_guard_is_read_once() -> None:
    """TE4: one reading takes one snapshot of each, whatever is made of it."""
    guard = Counting("counting")
    watched = Watched((guard, Policy(guard)))
    assert told(watched.read()) == {"counting": 1}
    assert guard.reads == 1


def test_guards_are_held_until_they_are_removed() -> None:
    """The counts of a guard that everybody else has forgotten stay; once it is removed, so is it."""
    watched = Watched(())
    sources = watched.add((Own("forgotten"), Own("other")))
    guard = weakref.ref(sources[0].measured)
    gc.collect()
    assert told(watched.read()) == {"forgotten": 0, "other": 0}
    watched.remove(sources[:1])
    del sources
    gc.collect()
    assert guard() is None
    assert told(watched.read()) == {"other": 0}
