"""Statistics for OpenTelemetry: observable instruments that read the guards when their metrics are collected.

Rules of this module: names, units, descriptions and labels come from `metrics`, what is read from `watching`; here is
how a collection, which asks each instrument for itself, reads each guard once. Only the API is used; which SDK there
is, if any, is the application's choice.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, TypeAlias, assert_never

from resilience.telemetry.metrics import METRICS, Instrument, Metric
from resilience.telemetry.watching import Watched

try:
    from opentelemetry.metrics import Observation, get_meter
except ModuleNotFoundError as _missing:
    _message = "resilience.telemetry.otel needs opentelemetry-api: pip install 'stormguard[otel]'"
    raise ImportError(_message) from _missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider

    from resilience.telemetry.watching import Readings, Source, Watchable

    Callback: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]

__all__ = ["Instrumentation", "instrument"]


class Instrumentation:
    """Guards that are measured, made by `instrument`."""

    __slots__ = ("_sources", "_watched")

    def __init__(self, watched: Watched, sources: tuple[Source, ...]) -> None:
        self._watched = watched
        self._sources = sources

    def stop(self) -> None:
        """Measure these guards no more, and hold them no longer; again does nothing. Any thread.

        OpenTelemetry cannot take instruments back; they stay with the meter and serve whoever is measured by it next.
        """
        self._watched.remove(self._sources)
        self._sources = ()


def instrument(
    *guards: Watchable, meter_provider: MeterProvider | None = None, meter: Meter | None = None
) -> Instrumentation:
    """Measure guards by observable instruments: `instrument(limiter, policy, hosts)`.

    Guards, strategies, a Policy for all its layers, a Keyed as a whole, deques, coalescers and retry budgets are read
    when metrics are collected, once each for a collection; until then, this costs nothing. They are held until `stop()`
    of what is returned. Any thread; as often as you like, but only once before the global provider is set.

    Args:
        guards: what to measure. The attribute `resilience.guard.name` is its name, or else that of the Policy it was
            found in, or else its class's.
        meter_provider: whose meter "resilience" to use; None: the global one's.
        meter: the meter itself, instead.

    Raises:
        ValueError: something has no statistics, two guards of one kind have the same name, or both a meter and a
            provider were given.

    """
    if meter is None:
        meter = get_meter("resilience", meter_provider=meter_provider)
    elif meter_provider is not None:
        msg = f"meter_provider must be left out where meter is given, not {meter_provider!r}"
        raise ValueError(msg)
    # Before the meter is touched: what is refused leaves nothing behind.
    alone = Watched(guards)
    with _CREATING:
        watched = _instruments(meter, alone)
    return Instrumentation(watched, alone.sources if watched is alone else watched.add(guards))


# What the instruments of each meter read. A meter makes an instrument once: asked again, it returns the one that there
# is, and forgets the new callback without a word. So whoever is measured by the same meter shares one Watched.
_WATCHED: weakref.WeakKeyDictionary[object, Watched] = weakref.WeakKeyDictionary()
_CREATING = threading.Lock()


def _instruments(meter: Meter, watched: Watched) -> Watched:
    """See to it that the meter has its instruments; return what they read: `watched`, if they are new."""
    collections = _Collections(watched)
    for metric in METRICS:
        created = _create(meter, metric, _callback(metric, collections))
        there = _WATCHED.setdefault(created, watched)
        if there is not watched:
            return there
    return watched


def _create(meter: Meter, metric: Metric, callback: Callback) -> object:
    match metric.instrument:
        case Instrument.COUNTER:
            return meter.create_observable_counter(metric.name, [callback], metric.unit, metric.help)
        case Instrument.SUMMABLE | Instrument.STATES:
            # Of states too the sum means something: how many circuits are open.
            return meter.create_observable_up_down_counter(metric.name, [callback], metric.unit, metric.help)
        case Instrument.GAUGE:
            return meter.create_observable_gauge(metric.name, [callback], metric.unit, metric.help)
        case _:
            assert_never(metric.instrument)


def _callback(metric: Metric, collections: _Collections) -> Callback:
    names = ("guard.name", "guard.kind", *metric.read.labels)
    keys = tuple(f"resilience.{name}" for name in names)

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(sample.value, dict(zip(keys, (sample.guard, sample.kind.value, *sample.labels), strict=True)))
            for sample in collections.ask(metric)[metric]
        ]

    return observe


class _Collections:
    """What the guards said, for one collection after the other, in each thread that collects.

    A collection asks every instrument once. So an instrument that asks again for what it was told already begins
    another one. It asks in one thread; what others collect meanwhile does not get mixed up with it.
    """

    __slots__ = ("_thread", "_watched")

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._thread = _Collection()

    def ask(self, metric: Metric) -> Readings:
        """Return what the guards say in the collection that asks for this metric now."""
        collection = self._thread
        if collection.readings is None or metric in collection.told:
            collection.readings = self._watched.read()
            collection.told = set()
        collection.told.add(metric)
        return collection.readings


class _Collection(threading.local):
    """The collection under way in the current thread: what the guards said, and the metrics that were told so."""

    readings: Readings | None = None

    def __init__(self) -> None:
        self.told: set[Metric] = set()
