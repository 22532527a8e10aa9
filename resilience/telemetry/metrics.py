"""The metrics, as data: which numbers of which statistics there are, what they are called, and what they mean.

Rules of this module:

* One table for all exporters, the documentation and the tests. Each field of a statistics class is in it, or in
  `LEFT_OUT` with the reason why; a test sees to that.
* Names are OpenTelemetry's, with dots and a unit; each exporter derives its own from them.
* Labels are bounded: who a guard is (its name and kind), and values that are listed here. No key, argument or
  exception ever becomes a label.

It reads snapshots by the names of their fields, and knows neither guards nor exporters.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import attrs

from resilience.machines.breaker import TRANSITIONS, CircuitState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilience.describing import LayerKind

__all__ = ["LEFT_OUT", "METRICS", "Instrument", "Kind", "Labelled", "Metric", "One", "Pairs", "Point", "States"]


class Instrument(enum.Enum):
    """What the numbers of a metric are good for."""

    #: They only grow: look at their rate.
    COUNTER = "counter"
    #: They go up and down, and their sum over guards and processes means something.
    SUMMABLE = "up-down counter"
    #: They go up and down, and their sum means nothing.
    GAUGE = "gauge"
    #: One for each state: 1 for the state that there is, 0 for the others.
    STATES = "state set"


class Kind(enum.StrEnum):
    """What it is that has statistics: the value of the label `kind`. A guard of the user's own is OTHER."""

    RATE_LIMITER = "rate_limiter"
    CIRCUIT_BREAKER = "circuit_breaker"
    STORM_GUARD = "storm_guard"
    BULKHEAD = "bulkhead"
    ADAPTIVE_LIMITER = "adaptive_limiter"
    RETRY = "retry"
    TIMEOUT = "timeout"
    FALLBACK = "fallback"
    HEDGE = "hedge"
    CHAOS = "chaos"
    OTHER = "other"
    DEQUE = "deque"
    KEYED = "keyed"
    RETRY_BUDGET = "retry_budget"
    COALESCER = "coalescer"

    @classmethod
    def of_layer(cls, kind: LayerKind) -> Kind:
        """Return the kind of a layer that says it is of that kind."""
        return cls.__members__.get(kind.name, cls.OTHER)


Point: TypeAlias = tuple[tuple[str, ...], float]
"""The values of a metric's own labels, and the number that goes with them."""


@attrs.frozen
class _OfOneField:
    """What is read of one field."""

    field: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are read."""
        return (self.field,)


@attrs.frozen
class One(_OfOneField):
    """A field that is a number; where it is None there is nothing to tell."""

    labels: ClassVar[tuple[str, ...]] = ()

    def points(self, snapshot: object, fields: Sequence[str]) -> Iterator[Point]:
        """Yield what a snapshot says in those of the fields."""
        for field in fields:
            value = getattr(snapshot, field)
            if value is not None:
                yield (), value


@attrs.frozen
class Labelled:
    """Fields that are parts of one whole; the value of the label is the name of the field."""

    label: str
    fields: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The metric's own labels."""
        return (self.label,)

    def points(self, snapshot: object, fields: Sequence[str]) -> Iterator[Point]:
        """Yield what a snapshot says in those of the fields."""
        for field in fields:
            yield (field,), getattr(snapshot, field)


@attrs.frozen
class States(_OfOneField):
    """A field that holds one of several states."""

    labels: tuple[str, ...]
    states: tuple[str, ...]

    def points(self, snapshot: object, fields: Sequence[str]) -> Iterator[Point]:
        """Yield a number for each state."""
        for field in fields:
            now = getattr(snapshot, field)
            yield from (((state,), int(state == now)) for state in self.states)


@attrs.frozen
class Pairs(_OfOneField):
    """A field that maps pairs to counts; a pair that has not been yet is told too, so that its first is seen."""

    labels: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def points(self, snapshot: object, fields: Sequence[str]) -> Iterator[Point]:
        """Yield a number for each pair."""
        for field in fields:
            counts = getattr(snapshot, field)
            yield from ((pair, counts.get(pair, 0)) for pair in self.pairs)


@attrs.frozen(kw_only=True, eq=False)
class Metric:
    """One metric: its name and unit as in OpenTelemetry, and where its numbers are found."""

    name: str
    instrument: Instrument
    unit: str
    help: str
    kinds: tuple[Kind, ...]
    read: One | Labelled | States | Pairs

    def fields(self, kind: Kind) -> tuple[str, ...]:
        """Return the fields that are read of a snapshot of this kind."""
        if kind not in self.kinds:
            return ()
        left_out = LEFT_OUT.get(kind, {})
        return tuple(field for field in self.read.fields if field not in left_out)


_GUARDS = (
    Kind.RATE_LIMITER, Kind.CIRCUIT_BREAKER, Kind.STORM_GUARD, Kind.BULKHEAD, Kind.ADAPTIVE_LIMITER, Kind.OTHER,
)  # fmt: skip
_HEARS_ENDS = (Kind.RATE_LIMITER, Kind.CIRCUIT_BREAKER, Kind.ADAPTIVE_LIMITER, Kind.OTHER)
_WITH_QUEUE = (Kind.RATE_LIMITER, Kind.BULKHEAD, Kind.ADAPTIVE_LIMITER, Kind.OTHER)
_WITH_PERMITS = (Kind.BULKHEAD, Kind.ADAPTIVE_LIMITER, Kind.OTHER)

_COUNTER, _SUMMABLE = Instrument.COUNTER, Instrument.SUMMABLE


def _metric(  # noqa: PLR0917 - a row of the table
    name: str,
    instrument: Instrument,
    unit: str,
    read: One | Labelled | States | Pairs,
    kinds: tuple[Kind, ...],
    text: str,
) -> Metric:
    return Metric(name=f"resilience.{name}", instrument=instrument, unit=unit, read=read, kinds=kinds, help=text)


METRICS: tuple[Metric, ...] = (
    _metric(
        "admissions", _COUNTER, "{call}", Labelled("decision", ("admitted", "rejected", "sampled")), _GUARDS,
        "Calls, by what the guard decided.",
    ),
    _metric(
        "outcomes", _COUNTER, "{call}",
        Labelled("outcome", ("succeeded", "failed", "ignored", "cancelled", "late")), _HEARS_ENDS,
        "Admitted calls that have ended, by how, where the guard minds.",
    ),
    _metric("waiting", _SUMMABLE, "{call}", One("waiting"), _WITH_QUEUE, "Calls that wait to be admitted."),
    _metric("permits.in_use", _SUMMABLE, "{permit}", One("in_use"), _WITH_PERMITS, "Permits that are out."),
    _metric("permits.limit", _SUMMABLE, "{permit}", One("limit"), _WITH_PERMITS, "Permits that may be out."),
    _metric(
        "lock.contentions", _COUNTER, "{acquisition}", One("contended"), (*_GUARDS, Kind.DEQUE),
        "How often the guard's lock was found taken.",
    ),
    _metric(
        "circuit_breaker.state", Instrument.STATES, "1",
        States("state", ("state",), tuple(state.value for state in CircuitState)), (Kind.CIRCUIT_BREAKER,),
        "1 for the state that the circuit is in, 0 for the others.",
    ),
    _metric(
        "circuit_breaker.transitions", _COUNTER, "{transition}",
        Pairs("transitions", ("from", "to"), tuple((old.value, new.value) for old, new in TRANSITIONS)),
        (Kind.CIRCUIT_BREAKER,),
        "Changes from one state to another.",
    ),
    _metric(
        "circuit_breaker.probes", _SUMMABLE, "{probe}", One("in_use"), (Kind.CIRCUIT_BREAKER,),
        "Probes under way.",
    ),
    _metric(
        "storm_guard.window", _SUMMABLE, "{event}", One("in_use"), (Kind.STORM_GUARD,),
        "Events in the window that ends now.",
    ),
    _metric(
        "storm_guard.over_share", _COUNTER, "{event}", One("over_share"), (Kind.STORM_GUARD,),
        "Events for which the window had room, but whose key had had its share.",
    ),
    _metric("storm_guard.storms", _COUNTER, "{storm}", One("storms"), (Kind.STORM_GUARD,), "Storms that have begun."),
    _metric(
        "storm_guard.in_storm", _SUMMABLE, "1", One("in_storm"), (Kind.STORM_GUARD,), "1 during a storm, 0 otherwise.",
    ),
    _metric("storm_guard.keys", _SUMMABLE, "{key}", One("keys"), (Kind.STORM_GUARD,), "Keys that are remembered."),
    _metric(
        "coalescer.events", _COUNTER, "{event}",
        Labelled("fate", ("passed", "released", "merged", "dropped")), (Kind.COALESCER,),
        "Events, by what became of them.",
    ),
    _metric("coalescer.held", _SUMMABLE, "{key}", One("held"), (Kind.COALESCER,), "Keys of which an event is held."),
    _metric(
        "deque.items", _COUNTER, "{item}", Labelled("operation", ("put", "got", "dropped", "removed")), (Kind.DEQUE,),
        "Items, by what was done with them.",
    ),
    _metric("deque.depth", _SUMMABLE, "{item}", One("depth"), (Kind.DEQUE,), "Items in the deque."),
    _metric(
        "deque.waiting", _SUMMABLE, "{task}", Labelled("side", ("getters", "putters")), (Kind.DEQUE,),
        "Tasks that wait for an item, or for room.",
    ),
    _metric("keyed.keys", _SUMMABLE, "{key}", One("keys"), (Kind.KEYED,), "Keys that are known."),
    _metric("keyed.awake", _SUMMABLE, "{key}", One("awake"), (Kind.KEYED,), "Keys whose guard is an object."),
    _metric("keyed.guards_made", _COUNTER, "{guard}", One("made"), (Kind.KEYED,), "Guards that the factory made."),
    _metric("keyed.evictions", _COUNTER, "{key}", One("evicted"), (Kind.KEYED,), "Keys dropped to make room."),
    _metric("keyed.rejections", _COUNTER, "{key}", One("rejected"), (Kind.KEYED,), "Keys that there was no room for."),
    _metric(
        "retry.retries", _COUNTER, "{attempt}", One("retried"), (Kind.RETRY,),
        "Attempts that were followed by another.",
    ),
    _metric(
        "retry.given_up", _COUNTER, "{call}", One("given_up"), (Kind.RETRY,),
        "Calls that had used up what attempts, time or budget they had.",
    ),
    _metric(
        "hedge.hedges", _COUNTER, "{attempt}", One("hedged"), (Kind.HEDGE,), "Attempts begun besides the first.",
    ),
    _metric("hedge.wins", _COUNTER, "{attempt}", One("won"), (Kind.HEDGE,), "Hedges that ended their calls well."),
    _metric(
        "hedge.delay", Instrument.GAUGE, "s", One("delay"), (Kind.HEDGE,),
        "After how long a call that began now would be hedged.",
    ),
    _metric(
        "retry_budget.requests", _COUNTER, "{attempt}", Labelled("decision", ("paid", "refused")),
        (Kind.RETRY_BUDGET,),
        "Retries and hedges that the budget was asked for.",
    ),
    _metric(
        "retry_budget.available", _SUMMABLE, "{attempt}", One("available"), (Kind.RETRY_BUDGET,),
        "Retries and hedges that could be paid for now.",
    ),
    _metric("fallback.fallbacks", _COUNTER, "{call}", One("fell_back"), (Kind.FALLBACK,), "Calls that fell back."),
    _metric(
        "chaos.calls", _COUNTER, "{call}", One("calls"), (Kind.CHAOS,), "Calls that came while chaos was enabled.",
    ),
    _metric(
        "chaos.injections", _COUNTER, "{injection}",
        Labelled("injection", ("latencies", "hangs", "faults", "results")), (Kind.CHAOS,),
        "Calls made to go wrong, by how.",
    ),
    _metric("timeout.timeouts", _COUNTER, "{call}", One("timed_out"), (Kind.TIMEOUT,), "Calls that were ended."),
)  # fmt: skip


def _does_not_mind(*fields: str) -> dict[str, str]:
    return dict.fromkeys(fields, "how a call ends is nothing to it")


LEFT_OUT: Mapping[Kind, Mapping[str, str]] = {
    Kind.RATE_LIMITER: {
        **_does_not_mind("succeeded", "failed", "cancelled"),
        **dict.fromkeys(("in_use", "limit"), "it has no permits that come back"),
    },
    Kind.CIRCUIT_BREAKER: {"waiting": "nobody waits for it", "limit": "it limits nothing but probes, by a setting"},
    Kind.STORM_GUARD: {
        **_does_not_mind("succeeded", "failed", "ignored", "cancelled"),
        "waiting": "nobody waits for it",
        "limit": "its limit is a setting",
    },
    Kind.BULKHEAD: _does_not_mind("succeeded", "failed", "ignored", "cancelled"),
    Kind.COALESCER: {"received": "it is the sum of the others"},
}
"""The fields that are no metric, for each kind, and why."""
