"""The instruments for OpenTelemetry, in the SDK that collects them."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from opentelemetry.metrics import NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

from resilience import Bulkhead
from resilience.telemetry import otel
from resilience.telemetry.metrics import METRICS, Instrument, Metric
from resilience.telemetry.otel import _Collections, instrument
from resilience.telemetry.watching import Watched
from tests.resilience.support import Door, assert_caught, in_thread
from tests.resilience.telemetry.samples import Counting, Own, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions
    from opentelemetry.sdk.metrics.export import Metric as Collected
    from opentelemetry.util.types import Attributes

    from resilience.telemetry.watching import Readings, Watchable

#: A number, by the name of its metric and its attributes.
Series = dict[tuple[str, frozenset[tuple[str, object]]], float]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """Return what collects when a test says so."""
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """Return a provider of its own, not the global one."""
    made = MeterProvider([reader], shutdown_on_exit=False)
    yield made
    made.shutdown()


def collected(reader: InMemoryMetricReader) -> list[Collected]:
    """Return what one collection brings."""
    data = reader.get_metrics_data()
    if data is None:
        return []
    return [
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]


def series(metrics: list[Collected]) -> Series:
    """Return every number."""
    return {
        (metric.name, frozenset((point.attributes or {}).items())): point.value  # type: ignore[union-attr]
        for metric in metrics
        for point in metric.data.data_points
    }


def admitted(reader: InMemoryMetricReader) -> dict[object, float]:
    """Return how many calls each guard has admitted."""
    return {
        dict(attributes)["resilience.guard.name"]: value
        for (name, attributes), value in series(collected(reader)).items()
        if name == "resilience.admissions" and ("resilience.decision", "admitted") in attributes
    }


def expected(guards: tuple[Watchable, ...]) -> Series:
    """Return every number that the guards have to tell."""
    found: Series = {}
    for metric, samples in Watched(guards).read().items():
        for sample in samples:
            attributes: dict[str, object] = {
                "resilience.guard.name": sample.guard,
                "resilience.guard.kind": sample.kind.value,
            }
            attributes |= {
                f"resilience.{key}": value for key, value in zip(metric.read.labels, sample.labels, strict=True)
            }
            found[metric.name, frozenset(attributes.items())] = sample.value
    return found


def law_of_what_is_collected(begin: Callable[..., object]) -> None:
    """What is collected is what the guards say at that time: each number of theirs, and no other (TE7)."""
    guards = tuple(one_of_each().values())
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    begin(*guards, meter_provider=provider)
    seen = series(collected(reader))
    provider.shutdown()
    assert seen == expected(guards)


def test_what_is_collected_is_what_the_guards_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """TE7: every number of every kind is collected; a mutant whose numbers of one guard run into one is caught."""
    law_of_what_is_collected(instrument)
    right = otel._callback

    def unlabelled(metric: Metric, collections: _Collections) -> Callable[..., Iterable[Observation]]:
        def observe(options: CallbackOptions) -> list[Observation]:
            return [
                Observation(each.value, _only_guard(each.attributes)) for each in right(metric, collections)(options)
            ]

        return observe

    monkeypatch.setattr(otel, "_callback", unlabelled)
    assert_caught(partial(law_of_what_is_collected, instrument))


def _only_guard(attributes: Attributes) -> Attributes:
    return {key: value for key, value in (attributes or {}).items() if key.startswith("resilience.guard.")}


def test_metrics_say_what_they_are(provider: MeterProvider, reader: InMemoryMetricReader) -> None:
    """Units, descriptions, and which of them grow, which add up, and which do neither."""
    instrument(*one_of_each().values(), meter_provider=provider)
    found = {metric.name: metric for metric in collected(reader)}
    assert set(found) == {metric.name for metric in METRICS}
    for metric in METRICS:
        there = found[metric.name]
        assert (there.unit, there.description) == (metric.unit, metric.help)
        if metric.instrument is Instrument.GAUGE:
            assert isinstance(there.data, Gauge)
        else:
            assert isinstance(there.data, Sum)
            assert there.data.is_monotonic == (metric.instrument is Instrument.COUNTER)


def law_of_collections(collections: type[_Collections]) -> None:
    """Each guard is read once for a collection, and anew for each: in one thread and in several at once (TE4)."""
    guard = Counting("counting")
    ours = collections(Watched((guard,)))
    for reads in (1, 2, 3):
        for metric in METRICS:
            ours.ask(metric)
        assert guard.reads == reads
    # One that stops half way, as for a timeout, leaves nothing behind for the next.
    ours.ask(METRICS[0])
    ours.ask(METRICS[0])
    assert guard.reads == 5
    # Another thread's collection comes in between.
    first = ours.ask(METRICS[1])
    other = in_thread(partial(ours.ask, METRICS[1]))
    assert ours.ask(METRICS[2]) is first
    assert other is not first
    assert guard.reads == 6


class _ReadsForEach(_Collections):
    """A mutant: reads the guards for each instrument."""

    def ask(self, metric: Metric) -> Readings:  # noqa: ARG002 - the bug
        return self._watched.read()


class _ReadsOnce(_Collections):
    """A mutant: reads the guards, and never again."""

    def ask(self, metric: Metric) -> Readings:
        self._thread.told.clear()
        return super().ask(metric)


class _Shared(_Collections):
    """A mutant: takes all threads for one."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)

        @attrs.define
        class Collection:
            readings: Readings | None = None
            told: set[Metric] = attrs.field(factory=set)

        self._thread = Collection()  # type: ignore[assignment]


def test_each_guard_is_read_once_for_a_collection() -> None:
    """TE4: the numbers of one collection are of one instant each guard; three mutants that mix them are caught."""
    law_of_collections(_Collections)
    for mutant in (_ReadsForEach, _ReadsOnce, _Shared):
        assert_caught(partial(law_of_collections, mutant))


def test_the_sdk_collects_as_it_is_thought_to() -> None:
    """TE4: with two readers, each collection of either reads each guard once, and tells what was read then."""
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    guard = Counting("counting")
    instrument(guard, meter_provider=provider)
    for reads, reader in enumerate((readers[0], readers[0], readers[1], readers[0]), 1):
        assert admitted(reader) == {"counting": reads}
        assert guard.reads == reads
    provider.shutdown()


def test_instrumenting_reads_no_guard(provider: MeterProvider) -> None:
    """Before somebody collects, nothing is read; and where nobody ever will, the API takes it all the same."""
    guard = Counting("counting")
    instrument(guard, meter_provider=provider)
    instrument(guard, meter_provider=NoOpMeterProvider())
    assert guard.reads == 0


def test_what_is_stopped_says_nothing(provider: MeterProvider, reader: InMemoryMetricReader) -> None:
    """Its guards are gone from the next collection; the others stay, and so they do if it is stopped again."""
    one = instrument(Own("one"), meter_provider=provider)
    other = instrument(Own("other"), meter_provider=provider)
    assert admitted(reader) == {"one": 0, "other": 0}
    one.stop()
    one.stop()
    assert admitted(reader) == {"other": 0}
    other.stop()
    assert admitted(reader) == {}
    instrument(Own("one"), meter_provider=provider)
    assert admitted(reader) == {"one": 0}


def test_meter_that_is_gone_holds_no_guard() -> None:
    """Whoever drops the provider need not stop anything first."""
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    guard = Own("forgotten")
    instrument(guard, meter_provider=provider)
    found = weakref.ref(guard)
    provider.shutdown()
    del guard, provider
    gc.collect()
    assert found() is None


def law_of_sharing(begin: Callable[..., object]) -> None:
    """Whoever is measured by a meter that has its instruments already is measured too (TE6)."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("ours")
    begin(Own("one"), meter=meter)
    begin(Own("other"), meter=meter)
    seen = admitted(reader)
    provider.shutdown()
    assert seen == {"one": 0, "other": 0}


def test_one_meter_serves_all_who_are_measured_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TE6: the SDK forgets the callbacks of an instrument that there is; a mutant that trusts it is caught."""
    law_of_sharing(instrument)

    def trusting(*guards: Watchable, meter: object) -> None:
        monkeypatch.setattr(otel, "_WATCHED", {})
        instrument(*guards, meter=meter)  # type: ignore[arg-type]

    assert_caught(partial(law_of_sharing, trusting))


def law_of_sharing_at_once(monkeypatch: pytest.MonkeyPatch, *, locks: bool = True) -> None:
    """Two threads that are the first to be measured by a meter are both measured (TE6)."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("ours")
    stopped_or_done = threading.Event()
    threads: list[threading.Thread] = []
    create = otel._create

    def begin() -> None:
        instrument(Own("other"), meter=meter)
        stopped_or_done.set()

    def interrupted(*arguments: Any) -> object:  # noqa: ANN401 - handed on
        created = create(*arguments)
        if not threads:
            threads.append(threading.Thread(target=begin))
            threads[0].start()
            stopped_or_done.wait()
        return created

    with monkeypatch.context() as patch:
        patch.setattr(otel, "_create", interrupted)
        patch.setattr(otel, "_CREATING", Door(stopped_or_done, locks=locks))
        instrument(Own("one"), meter=meter)
        threads[0].join()
    seen = admitted(reader)
    provider.shutdown()
    assert seen == {"one": 0, "other": 0}


def test_one_meter_serves_threads_that_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TE6: one thread makes the instruments, and the other finds them made; without a lock some would read nothing."""
    law_of_sharing_at_once(monkeypatch)
    assert_caught(partial(law_of_sharing_at_once, monkeypatch, locks=False))


def test_two_guards_of_one_name_are_refused_whoever_brings_them(
    provider: MeterProvider, reader: InMemoryMetricReader
) -> None:
    """In one call or in two, on one meter; another meter is another matter."""
    instrument(Bulkhead(1, name="db"), meter_provider=provider)
    for guards in ([Bulkhead(2, name="db")], [Bulkhead(2, name="x"), Bulkhead(3, name="x")]):
        with pytest.raises(ValueError, match="guards must have names of their own"):
            instrument(*guards, meter_provider=provider)
    assert admitted(reader) == {"db": 0}
    instrument(Bulkhead(2, name="db"), meter=provider.get_meter("another"))


def test_meter_is_given_once(provider: MeterProvider) -> None:
    """A meter and a provider at once contradict each other."""
    with pytest.raises(ValueError, match=r"^meter_provider must be left out where meter is given, not "):
        instrument(meter_provider=provider, meter=provider.get_meter("ours"))


def test_collections_beside_work_see_counters_grow(provider: MeterProvider, reader: InMemoryMetricReader) -> None:
    """TE1: while a thread uses a guard, no collection sees fewer calls than the one before, nor permits it has not."""
    bulkhead = Bulkhead(2, name="bulkhead")
    instrument(bulkhead, meter_provider=provider)
    done = threading.Event()

    def work() -> None:
        for _ in range(3_000):
            with bulkhead:
                pass
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    counts: list[float] = []
    while not done.is_set():
        counts += admitted(reader).values()
    thread.join()
    counts += admitted(reader).values()
    assert counts == sorted(counts)
    assert counts[-1] == 3_000
