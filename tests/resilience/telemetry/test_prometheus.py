"""The collector for Prometheus, in the registry, the formats and the parsers of prometheus_client."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from resilience import Bulkhead, CircuitBreaker, Policy, RateLimiter
from resilience.events import SUBSCRIBERS
from resilience.telemetry.metrics import METRICS, Instrument, Kind
from resilience.telemetry.prometheus import GuardCollector, collector
from resilience.telemetry.watching import Watched
from resilience.testing import ManualClock
from tests.documents import ROOT
from tests.resilience.support import assert_caught
from tests.resilience.telemetry.samples import Counting, Own, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from resilience.telemetry.watching import Watchable

#: A number, by the name of its series and its labels.
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(*guards: Watchable) -> CollectorRegistry:
    """Return a registry with a collector of these."""
    registry = CollectorRegistry()
    registry.register(collector(*guards))
    return registry


def parsed(registry: CollectorRegistry, *, openmetrics: bool) -> list[Family]:
    """Return what a server reads that scrapes the registry."""
    if openmetrics:
        return list(parse_openmetrics(generate_openmetrics(registry).decode()))  # type: ignore[no-untyped-call]
    return list(parse_text(generate_latest(registry).decode()))


def series(families: list[Family]) -> Series:
    """Return every number."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def expected(guards: tuple[Watchable, ...]) -> Series:
    """Return every number that the guards have to tell, worked out by other rules than the collector's."""
    found: Series = {}
    for metric, samples in Watched(guards).read().items():
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        name += "_total" if metric.instrument is Instrument.COUNTER else ""
        own = [name] if metric.instrument is Instrument.STATES else list(metric.read.labels)
        for sample in samples:
            labels = {"guard": sample.guard, "kind": str(sample.kind)} | dict(zip(own, sample.labels, strict=True))
            found[name, frozenset(labels.items())] = sample.value
    return found


def law_of_scrapes(collector_class: type[GuardCollector], *, openmetrics: bool) -> None:
    """What is scraped is what the guards say at that time: each number of theirs, and no other (TE7)."""
    things = one_of_each()
    guards = tuple(things.values())
    registry = CollectorRegistry()
    registry.register(collector_class(Watched(guards)))
    assert series(parsed(registry, openmetrics=openmetrics)) == expected(guards)
    bulkhead = things[Kind.BULKHEAD]
    assert isinstance(bulkhead, Bulkhead)
    assert bulkhead.try_admit() is not None
    assert series(parsed(registry, openmetrics=openmetrics)) == expected(guards)


class _KeepsWhatItRead(GuardCollector):
    """A mutant: reads the guards when it is made."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._kept = list(super().collect())

    def collect(self) -> Iterator[Family]:  # type: ignore[override]
        return iter(self._kept)


class _TellsTheLast(GuardCollector):
    """A mutant: of guards that share a metric, tells of one."""

    def collect(self) -> Iterator[Family]:  # type: ignore[override]
        for family in super().collect():
            family.samples = [sample for sample in family.samples if sample.labels == family.samples[-1].labels]
            yield family


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
def test_what_is_scraped_is_what_the_guards_say(openmetrics: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """TE7: every number of every kind comes through both formats; mutants that are late or forget some are caught."""
    law_of_scrapes(GuardCollector, openmetrics=openmetrics)
    for mutant in (_KeepsWhatItRead, _TellsTheLast):
        assert_caught(partial(law_of_scrapes, mutant, openmetrics=openmetrics))


def test_a_few_numbers_as_they_are_read() -> None:
    """What the names and labels look like in the end, and what they say."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, clock=clock)
    limiter = RateLimiter(1.0, 1, name="own name", clock=clock)
    registry = scraped(Policy(breaker, limiter, name="search"))
    permit = breaker.try_admit()
    assert permit is not None
    permit.failure()
    breaker_labels = {"guard": "search", "kind": "circuit_breaker"}

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("resilience_admissions_total", **breaker_labels, decision="admitted") == 1
    assert value("resilience_outcomes_total", **breaker_labels, outcome="failed") == 1
    state = "resilience_circuit_breaker_state"
    assert value(state, **breaker_labels, **{state: "open"}) == 1
    assert value(state, **breaker_labels, **{state: "closed"}) == 0
    moved = "resilience_circuit_breaker_transitions_total"
    assert value(moved, **breaker_labels, **{"from": "closed", "to": "open"}) == 1
    assert value("resilience_waiting", guard="own name", kind="rate_limiter") == 0


UNITS = ("milliseconds", "ms", "minutes", "hours", "kilobytes", "megabytes", "percent", "ratio_percent")
ABBREVIATED = re.compile(r"(^|_)(s|ms|us|ns|sec|kb|mb)($|_)")


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
def test_names_keep_the_rules_of_promtool(openmetrics: bool) -> None:  # noqa: FBT001 - as above
    """`_total` for counters alone, base units, help for all, no type in a name, no reserved label or suffix."""
    families = parsed(scraped(*one_of_each().values()), openmetrics=openmetrics)
    assert len(families) == len(METRICS)
    for family in families:
        assert family.documentation
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not re.search(r"gauge|histogram|summary|counter", family.name)
        assert not ABBREVIATED.search(family.name)
        assert not any(unit in family.name.split("_") for unit in UNITS)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_created", "_info"))
        labelled = {frozenset(sample.labels) for sample in family.samples}
        assert len(labelled) == 1, "the same labels on all of a family's series"
        for sample in family.samples:
            assert sample.name == family.name + ("_total" if family.type == "counter" else "")
            assert not {"le", "quantile", "job", "instance"} & set(sample.labels)
            assert not any(label.startswith("__") for label in sample.labels)
            assert all(sample.labels.values())


def test_types_are_those_of_the_table() -> None:
    """What a metric is, OpenMetrics says; its state sets are gauges in the older format."""
    types = {family.name: family.type for family in parsed(scraped(*one_of_each().values()), openmetrics=True)}
    kinds = {Instrument.COUNTER: "counter", Instrument.STATES: "stateset"}
    for metric in METRICS:
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        assert types[name] == kinds.get(metric.instrument, "gauge")


def test_metric_without_numbers_is_not_there() -> None:
    """What no guard tells anything about takes no line."""
    families = parsed(scraped(Bulkhead(1)), openmetrics=True)
    assert {family.name.split("_")[1] for family in families} == {"admissions", "waiting", "permits", "lock"}


def test_default_registry_takes_it_and_lets_it_go() -> None:
    """Registering reads no guard; a second collector would tell the same metrics twice, and is refused."""
    guard = Counting("counting")
    ours = collector(guard)
    REGISTRY.register(ours)
    try:
        assert guard.reads == 0
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            REGISTRY.register(collector(Own("other")))
        ours.add(Own("later"))
        text = generate_latest(REGISTRY).decode()
        assert 'guard="counting"' in text
        assert 'guard="later"' in text
        assert guard.reads == 1
    finally:
        REGISTRY.unregister(ours)
    assert 'guard="counting"' not in generate_latest(REGISTRY).decode()
    REGISTRY.register(ours)
    REGISTRY.unregister(ours)


def test_guard_that_is_exported_is_the_same_guard() -> None:
    """Nothing is hooked into it, subscribed or replaced: between two scrapes it cannot cost anything."""
    guard = Bulkhead(1, name="exported")
    before = {name: getattr(guard, name) for name in ("_lock", "_events", "_admitted", "admit", "settle")}
    scraped(guard)
    assert {name: getattr(guard, name) for name in before} == before
    assert SUBSCRIBERS.listeners == ()
    assert "__dict__" not in dir(guard)


def test_guards_may_be_added_with_names_of_their_own_only() -> None:
    """The rules are those for the first ones, and what is refused changes nothing."""
    ours = collector(Bulkhead(1, name="db"))
    with pytest.raises(ValueError, match="are both called 'db'"):
        ours.add(Own("new"), Bulkhead(1, name="db"))
    registry = CollectorRegistry()
    registry.register(ours)
    assert {sample.labels["guard"] for family in registry.collect() for sample in family.samples} == {"db"}


def test_scrapes_beside_work_see_counters_grow() -> None:
    """TE1: while threads use the guards and others scrape, no scrape sees a counter lower than the one before."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, name="limiter", clock=clock)
    breaker = CircuitBreaker(2, 1.0, name="breaker", clock=clock)
    bulkhead = Bulkhead(2, name="bulkhead", clock=clock)
    registry = scraped(limiter, breaker, bulkhead)
    wrong: list[object] = []
    rounds, start = 150, threading.Barrier(4)

    def work() -> None:
        start.wait()
        for number in range(rounds):
            limiter.try_acquire()
            clock.advance(0.5)
            permit = breaker.try_admit()
            if permit is not None:
                (permit.failure if number % 3 else permit.success)()
            held = bulkhead.try_admit()
            if held is not None:
                held.success()

    def scrape() -> None:
        start.wait()
        before: Series = {}
        for _ in range(30):
            now = series(list(registry.collect()))
            wrong.extend(key for key, value in before.items() if key[0].endswith("_total") and now[key] < value)
            open_states = [value for (name, _), value in now.items() if name == "resilience_circuit_breaker_state"]
            if sum(open_states) != 1:
                wrong.append(open_states)
            before = now

    threads = [threading.Thread(target=target) for target in (work, work, scrape, scrape)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    decisions = [
        value
        for (name, labels), value in series(list(registry.collect())).items()
        if name == "resilience_admissions_total" and ("guard", "limiter") in labels
    ]
    assert sum(decisions) == 2 * rounds


@pytest.mark.parametrize(
    ("module", "library", "sentence"),
    [
        (
            "prometheus",
            "prometheus_client",
            "resilience.telemetry.prometheus needs prometheus-client: pip install 'stormguard[prometheus]'",
        ),
        (
            "otel",
            "opentelemetry",
            "resilience.telemetry.otel needs opentelemetry-api: pip install 'stormguard[otel]'",
        ),
    ],
)
def test_exporter_without_its_library_says_what_to_install(module: str, library: str, sentence: str) -> None:
    """One sentence, with the command in it; everything else of `resilience.telemetry` is there."""
    program = (
        f"import sys\nsys.modules[{library!r}] = None\nimport resilience.telemetry\n"
        f"try:\n    import resilience.telemetry.{module}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{sentence}\n"
