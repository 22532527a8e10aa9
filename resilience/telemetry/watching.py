"""What is exported: guards by name and kind, each read once whenever somebody looks.

Rules of this module:

* Nothing here is called by a guard. A guard that is watched does what it always does; to be read is all that it costs.
* Guards are held, not watched from afar: the counts of one that was lost would vanish, and a new one's of the same name
  would seem to go back. Whoever is done with a guard is done with its exporter too.
* A name and kind belong to one guard. Two that share them are refused: summed, they could not be told apart, and
  apart, they would be one series with two values.
* One that cannot be read is logged, and hides none of the others.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import attrs

from resilience import AsyncGuardedDeque, Coalescer, Guard, Keyed, Layer, Policy, RetryBudget, Strategy
from resilience.telemetry.metrics import METRICS, Kind, Metric, Point

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Readings", "Sample", "Source", "Watchable", "Watched"]

_logger = logging.getLogger("resilience")


@runtime_checkable
class _Measured(Protocol):
    def statistics(self) -> object: ...


Watchable: TypeAlias = Layer | _Measured
"""What can be exported: guards, strategies, policies, a Keyed, a deque, a coalescer, a retry budget."""


@attrs.frozen
class Sample:
    """One number of one guard."""

    guard: str
    kind: Kind
    labels: tuple[str, ...]
    """The values of the metric's own labels."""
    value: float


Readings: TypeAlias = dict[Metric, list[Sample]]
"""What all guards said at one time, by metric."""


@attrs.frozen(eq=False)
class Source:
    """One guard, or other thing with statistics, and what it is called."""

    name: str
    kind: Kind
    measured: _Measured

    def read(self) -> list[tuple[Metric, Point]]:
        """Read its statistics once, and return what they say."""
        snapshot = self.measured.statistics()
        return [
            (metric, point)
            for metric, fields in _READ[self.kind]
            # The statistics of a user's own guard need not have all the fields.
            for point in metric.read.points(snapshot, [field for field in fields if hasattr(snapshot, field)])
        ]


# Worked out beforehand: it is most of what reading a guard would cost.
_READ = {kind: [(metric, fields) for metric in METRICS for fields in [metric.fields(kind)] if fields] for kind in Kind}


class Watched:
    """The guards that one exporter exports. Any thread."""

    __slots__ = ("_lock", "sources")

    def __init__(self, guards: tuple[Watchable, ...]) -> None:
        self._lock = threading.Lock()
        #: Replaced whole, so that reading it needs no lock.
        self.sources: tuple[Source, ...] = ()
        self.add(guards)

    def add(self, guards: tuple[Watchable, ...]) -> tuple[Source, ...]:
        """Watch these too, and return what is new; a guard that is watched already stays as it is.

        Raises:
            ValueError: something has no statistics, or two guards of one kind have the same name. Nothing has changed.

        """
        with self._lock:
            known = {(source.kind, source.name): source for source in self.sources}
            seen = {id(source.measured) for source in self.sources}
            for guard in guards:
                for source in _named(guard):
                    if id(source.measured) in seen:
                        continue
                    other = known.setdefault((source.kind, source.name), source)
                    if other is not source:
                        msg = (
                            f"guards must have names of their own, but {other.measured!r} and {source.measured!r} "
                            f"are both called {source.name!r}; give one of them, or its Policy, a name"
                        )
                        raise ValueError(msg)
                    seen.add(id(source.measured))
            new = tuple(known.values())[len(self.sources) :]
            self.sources += new
        return new

    def remove(self, sources: tuple[Source, ...]) -> None:
        """Watch these no more, and hold them no more; those that are not watched are left alone."""
        with self._lock:
            self.sources = tuple(source for source in self.sources if source not in sources)

    def read(self) -> Readings:
        """Read every guard once. A metric that no guard has anything to say about is empty."""
        readings: Readings = {metric: [] for metric in METRICS}
        for source in self.sources:
            try:
                found = source.read()
            except Exception:
                _logger.exception("the statistics of %s %r cannot be read; the others are", source.kind, source.name)
                continue
            for metric, (labels, value) in found:
                readings[metric].append(Sample(source.name, source.kind, labels, value))
        return readings


def _named(guard: object) -> list[Source]:
    """Return what there is to read of what somebody wants to have watched, or raise ValueError if that is nothing."""
    sources = list(_sources(guard, ""))
    if not sources and not isinstance(guard, Policy):
        msg = f"guards must have statistics, and {guard!r} has none"
        raise ValueError(msg)
    return sources


def _sources(thing: object, policy: str) -> Iterator[Source]:
    """Yield what there is to read of something that may consist of several layers; `policy` names what it is in."""
    match thing:
        case Guard() | Strategy():
            measured = thing.measured
            if measured is not thing:
                yield from _sources(measured, policy)
            elif isinstance(measured, _Measured):
                yield _source(measured, Kind.of_layer(thing.kind), policy)
        case Layer():
            name = getattr(thing, "name", "") or policy
            for layer in thing.layers if isinstance(thing, Policy) else thing.parts:
                yield from _sources(layer, name)
        case AsyncGuardedDeque():
            yield _source(thing, Kind.DEQUE, policy)
        case Keyed():
            yield _source(thing, Kind.KEYED, policy)
        case RetryBudget():
            yield _source(thing, Kind.RETRY_BUDGET, policy)
        case Coalescer():
            yield Source(thing.guard.label, Kind.COALESCER, thing)
        case _:
            msg = f"guards must be layers, or have statistics that are known here, not {thing!r}"
            raise ValueError(msg)


def _source(measured: _Measured, kind: Kind, policy: str) -> Source:
    return Source(getattr(measured, "name", "") or policy or type(measured).__name__, kind, measured)
