"""Statistics for Prometheus: a collector that reads the guards when it is scraped.

Rules of this module: names, help and labels come from `metrics`, what is read from `watching`; here is what Prometheus
wants them to look like: underscores, base units, `_total`, and states as a state set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from resilience.telemetry.metrics import METRICS, Instrument, Metric
from resilience.telemetry.watching import Watched

try:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily
except ModuleNotFoundError as _missing:
    _message = "resilience.telemetry.prometheus needs prometheus-client: pip install 'stormguard[prometheus]'"
    raise ImportError(_message) from _missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilience.telemetry.watching import Sample, Watchable

__all__ = ["GuardCollector", "collector"]

_Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | StateSetMetricFamily


class GuardCollector:
    """A collector of the statistics of guards, made by `collector`; one for each registry."""

    __slots__ = ("__weakref__", "_watched")

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def add(self, *guards: Watchable) -> None:
        """Collect from these too. Any thread.

        Raises:
            ValueError: as `collector` does; nothing has changed.

        """
        self._watched.add(guards)

    def describe(self) -> Iterator[_Family]:
        """Yield every metric that there may be, without numbers: registering reads no guard."""
        return map(_family, METRICS)

    def collect(self) -> Iterator[_Family]:
        """Read every guard once, and yield the metrics that any of them has."""
        for metric, samples in self._watched.read().items():
            if samples:
                family = _family(metric)
                _fill(family, samples)
                yield family


def collector(*guards: Watchable) -> GuardCollector:
    """Return a collector for a registry: `REGISTRY.register(collector(limiter, policy, hosts))`.

    Guards, strategies, a Policy for all its layers, a Keyed as a whole, deques, coalescers and retry budgets are read
    when the registry is scraped, once each; until then, this costs nothing. They are held for as long as the registry
    holds the collector. One registry takes one collector; `add` gives it more guards. Any thread.

    A guard's label `guard` is its name, or else that of the Policy it was found in, or else its class's.

    Raises:
        ValueError: something has no statistics, or two guards of one kind have the same name.

    """
    return GuardCollector(Watched(guards))


def _family(metric: Metric) -> _Family:
    name = metric.name.replace(".", "_")
    labels = ["guard", "kind"]
    match metric.instrument:
        case Instrument.COUNTER:
            return CounterMetricFamily(name, metric.help, labels=[*labels, *metric.read.labels], unit=_unit(metric))
        case Instrument.SUMMABLE | Instrument.GAUGE:
            return GaugeMetricFamily(name, metric.help, labels=[*labels, *metric.read.labels], unit=_unit(metric))
        case Instrument.STATES:
            # The label that tells the state has, in a state set, the metric's own name.
            return StateSetMetricFamily(name, metric.help, labels=labels)
        case _:
            assert_never(metric.instrument)


def _unit(metric: Metric) -> str:
    """Return the base unit as Prometheus spells it; things that are counted have none."""
    return {"s": "seconds"}.get(metric.unit, "")


def _fill(family: _Family, samples: list[Sample]) -> None:
    if not isinstance(family, StateSetMetricFamily):
        for sample in samples:
            family.add_metric([sample.guard, sample.kind, *sample.labels], sample.value)
        return
    states: dict[tuple[str, str], dict[str, bool]] = {}
    for sample in samples:
        states.setdefault((sample.guard, sample.kind), {})[sample.labels[0]] = bool(sample.value)
    for labels, values in states.items():
        family.add_metric(labels, values)
