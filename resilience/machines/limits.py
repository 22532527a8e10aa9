"""How many calls at a time a callee can bear, learnt from how long they take: Gradient2, Vegas and AIMD.

Rules of this module: a configuration is a frozen value that is validated when it is made; `start` gives the small
machine that learns. A sample goes in (when a call was admitted and when it ended, how many were in flight at its
admission, and whether it was dropped), the limit comes out, always within [min_limit, max_limit]. Memory is fixed.

Theory. By Little's law a callee that works on C calls at a time answers in its bare latency as long as no more than C
are in flight; beyond that the rest queue, and latency grows with them. So latency over its bare value, the *baseline*,
tells how long the queue is. Gradient2 scales the limit by that ratio and leaves room for a few calls to queue; Vegas
estimates the queue and holds it between two bounds; AIMD looks at losses alone, as the first TCPs did.

Source: Netflix's concurrency-limits, whose parameters these are, and Brakmo and Peterson, "TCP Vegas" (1995). Three
things are done otherwise, since there a stationary load makes the limit drift:

* The baseline is never learnt from a full house. There, an average (Gradient2) or a renewed minimum (Vegas) of what is
  measured under load takes the queue for the callee's own latency and lets the limit grow, and the queue with it, for
  ever. Here it is learnt from windows in which less than half of the limit was in use. Where none comes about and
  latency has been away from the baseline for `probe_every` windows, a *probe* makes one: a quarter of the limit, for
  two round trips or three. (BBR and Envoy probe for the same reason.)
* The limit moves once in a window of calls, about a round trip, by their mean latency: that of one call is noise.
* A dropped call weighs as one call of its window, by the worst that latency could say of it. Its own latency says
  nothing: a refused connection is quick. So a callee that fails one call in a hundred keeps its limit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, TypeAlias, cast

import attrs

from resilience.machines.checks import positive, positive_int

__all__ = ["AIMD", "Gradient2", "LimitAlgorithm", "LimitMachine", "Notes", "Vegas"]

_NANOSECONDS = 1_000_000_000
# A window that is this far from the baseline, either way, makes one doubt the baseline.
_DOUBTFUL = 1.25
# A newly measured baseline this far from the old one is another callee, not noise.
_OTHER = 2.0
# The weight of a new measurement of the baseline.
_WEIGHT = 0.3
# The share of the limit that a probe leaves: whatever the algorithms allow to queue, below it nothing does.
_PROBE = 4


Notes: TypeAlias = "tuple[float | None, ...]"
"""What was learnt, as plain numbers: another machine of the same configuration can take it up."""


class LimitMachine(Protocol):
    """What learns the limit; not locked."""

    limit: int
    """The limit that holds now."""

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        """Take the sample of one call; return the limit that holds from now on."""
        ...

    def notes(self) -> Notes | None:
        """Return what was learnt so far, as plain numbers; None if that takes more to tell."""
        ...

    def resume(self, notes: Notes, now_ns: int) -> None:
        """Have learnt what another machine of the same configuration had. No call has been recorded yet."""
        ...


def _positive_int(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    positive_int(attribute.name, value)


def _positive(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    positive(attribute.name, value)


def _share(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if positive(attribute.name, value) > 1:
        msg = f"{attribute.name} must be a share above 0 and at most 1, not {value!r}"
        raise ValueError(msg)


def _at_least_one(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if positive(attribute.name, value) < 1:
        msg = f"{attribute.name} must be at least 1, not {value!r}"
        raise ValueError(msg)


def _below_one(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if positive(attribute.name, value) >= 1:
        msg = f"{attribute.name} must be a share above 0 and below 1, not {value!r}"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class _Bounded:
    initial_limit: int = attrs.field(default=20, validator=_positive_int)
    min_limit: int = attrs.field(default=1, validator=_positive_int)
    max_limit: int = attrs.field(default=1000, validator=_positive_int)

    def __attrs_post_init__(self) -> None:
        if self.min_limit > self.max_limit:
            msg = f"min_limit must be at most max_limit, which is {self.max_limit}, not {self.min_limit!r}"
            raise ValueError(msg)
        if not self.min_limit <= self.initial_limit <= self.max_limit:
            msg = (
                f"initial_limit must be between min_limit and max_limit, which are {self.min_limit} and"
                f" {self.max_limit}, not {self.initial_limit!r}"
            )
            raise ValueError(msg)


@attrs.frozen(kw_only=True)
class _Measuring(_Bounded):
    window: int = attrs.field(default=30, validator=_positive_int)
    probe_every: int = attrs.field(default=100, validator=_positive_int)


@attrs.frozen(kw_only=True)
class Gradient2(_Measuring):
    """Scale the limit by baseline over latency, and leave room for `queue_size` calls to queue.

    Steady, and the default. Saturated, it settles near `tolerance` times what the callee works on at a time, and
    `queue_size`. Latency may be up to `tolerance` times its baseline before the limit shrinks, so it suits calls whose
    latencies differ. It never settles below twice `queue_size`. `smoothing` is the share of a change that is made at
    once; a window is `window` calls, or as many as the limit if that is more.
    """

    queue_size: int = attrs.field(default=4, validator=_positive_int)
    tolerance: float = attrs.field(default=1.5, validator=_at_least_one)
    smoothing: float = attrs.field(default=0.2, validator=_share)

    def start(self) -> LimitMachine:
        """Return the machine that learns, at `initial_limit`."""
        return _Gradient(self)


@attrs.frozen(kw_only=True)
class Vegas(_Measuring):
    """Hold the queue at the callee, in calls, between `alpha` and `beta` times the decimal logarithm of the limit.

    Quick to grow, and close: saturated, it settles at what the callee works on at a time, and the queue. For calls that
    take much the same time each.
    """

    alpha: float = attrs.field(default=3.0, validator=_positive)
    beta: float = attrs.field(default=6.0, validator=_positive)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.alpha >= self.beta:
            msg = f"alpha must be below beta, which is {self.beta!r}, not {self.alpha!r}"
            raise ValueError(msg)

    def start(self) -> LimitMachine:
        """Return the machine that learns, at `initial_limit`."""
        return _Vegas(self)


@attrs.frozen(kw_only=True)
class AIMD(_Bounded):
    """Add one to the limit for each full round of good calls; multiply it by `backoff_ratio` when calls are dropped.

    It needs losses to learn from: a call that fails, or takes longer than `timeout` seconds.
    """

    backoff_ratio: float = attrs.field(default=0.9, validator=_below_one)
    timeout: float = attrs.field(default=5.0, validator=_positive)

    def start(self) -> LimitMachine:
        """Return the machine that learns, at `initial_limit`."""
        return _Aimd(self)


LimitAlgorithm: TypeAlias = Gradient2 | Vegas | AIMD


class _Samples:
    """The calls of one window."""

    __slots__ = ("_latency_ns", "answered", "calls", "most_in_flight")

    def __init__(self) -> None:
        self.calls = self.answered = self.most_in_flight = self._latency_ns = 0

    def add(self, latency_ns: int, in_flight: int, *, dropped: bool) -> None:
        self.calls += 1
        if in_flight > self.most_in_flight:  # noqa: PLR1730 - max() costs as much as all the rest of this
            self.most_in_flight = in_flight
        if not dropped:
            self.answered += 1
            # Less than the clock can tell is not nothing.
            self._latency_ns += max(1, latency_ns)

    def notes(self) -> tuple[int, ...]:
        return self.calls, self.answered, self.most_in_flight, self._latency_ns

    def resume(self, notes: tuple[int, int, int, int]) -> None:
        self.calls, self.answered, self.most_in_flight, self._latency_ns = notes

    @property
    def mean_ns(self) -> float | None:
        """The mean latency; None if every call was dropped."""
        return self._latency_ns / self.answered if self.answered else None


class _Baseline:
    """The latency of a callee that is not loaded.

    Before it could be measured, what a loaded one showed first stands in for it.
    """

    __slots__ = ("latency_ns", "measured")

    def __init__(self) -> None:
        self.latency_ns: float | None = None
        self.measured = False

    def measure(self, mean_ns: float) -> None:
        """Learn from a window without load."""
        old = self.latency_ns
        if old is None or not self.measured or max(mean_ns, old) > _OTHER * min(mean_ns, old):
            self.latency_ns = mean_ns
        else:
            self.latency_ns = old + _WEIGHT * (mean_ns - old)
        self.measured = True

    def compare(self, mean_ns: float) -> float:
        """Return the baseline over the mean of a window under load: 1 if there is no queue, less if there is."""
        if self.latency_ns is None:
            self.latency_ns = mean_ns
        return self.latency_ns / mean_ns


class _Learner(ABC):
    """Windows, the baseline and the probes; a subclass says what to make of a window."""

    __slots__ = ("_baseline", "_config", "_doubts", "_estimate", "_probing_since_ns", "_samples", "_settling", "limit")

    def __init__(self, config: _Measuring) -> None:
        self._config = config
        self.limit = config.initial_limit
        self._estimate = float(config.initial_limit)
        self._samples = _Samples()
        self._baseline = _Baseline()
        self._doubts = 0
        self._probing_since_ns: int | None = None
        self._settling = 0

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        """Take the sample of one call; return the limit that holds from now on."""
        since_ns = self._probing_since_ns
        if since_ns is not None:
            if started_ns < since_ns or in_flight > self.limit:
                return self.limit  # admitted to the full house of before
            if self._settling:
                # The first to come back are the quick ones; not before a round trip is over do all count alike.
                self._settling -= 1
                return self.limit
        samples = self._samples
        samples.add(ended_ns - started_ns, in_flight, dropped=dropped)
        if samples.calls >= self._config.window and samples.calls >= self.limit:
            self._samples = _Samples()
            self._judge(samples, ended_ns)
        return self.limit

    def notes(self) -> Notes | None:
        """Return the estimate, the doubts about the baseline, the baseline, and the window; None during a probe."""
        if self._probing_since_ns is not None:
            return None
        baseline = self._baseline
        return self._estimate, self._doubts, baseline.latency_ns, baseline.measured, *self._samples.notes()

    def resume(self, notes: Notes, now_ns: int) -> None:  # noqa: ARG002 - it notes no instant
        """Go on from there."""
        estimate, doubts, latency_ns, measured, *samples = notes
        self._estimate = cast("float", estimate)
        self.limit = int(self._estimate)
        self._doubts = cast("int", doubts)
        self._baseline.latency_ns = latency_ns
        self._baseline.measured = bool(measured)
        self._samples.resume(cast("tuple[int, int, int, int]", tuple(samples)))

    def _judge(self, samples: _Samples, now_ns: int) -> None:
        mean_ns = samples.mean_ns
        if self._probing_since_ns is not None:
            self._probing_since_ns = None
            self.limit = int(self._estimate)
            self._measure(mean_ns)
        elif samples.most_in_flight * 2 < self._estimate:
            # Nobody needs a higher limit, and nobody would notice a lower one: the limit stays.
            self._measure(mean_ns)
        else:
            self._adjust(1.0 if mean_ns is None else self._baseline.compare(mean_ns), samples.answered / samples.calls)
            if self._doubts >= self._config.probe_every or not (mean_ns is None or self._baseline.measured):
                self._probe(now_ns)

    def _measure(self, mean_ns: float | None) -> None:
        self._doubts = 0
        if mean_ns is not None:
            self._baseline.measure(mean_ns)

    def _adjust(self, ratio: float, answered: float) -> None:
        estimate = self._estimate_after(ratio, answered)
        # At odds with the baseline, or kept from growing by it.
        self._doubts += estimate <= self._estimate or not 1 / _DOUBTFUL <= ratio <= _DOUBTFUL
        self._estimate = max(self._config.min_limit, min(self._config.max_limit, estimate))
        self.limit = int(self._estimate)

    def _probe(self, now_ns: int) -> None:
        self._probing_since_ns = now_ns
        self.limit = max(self._config.min_limit, self.limit // _PROBE)
        self._settling = self.limit

    @abstractmethod
    def _estimate_after(self, ratio: float, answered: float) -> float:
        """Return the limit for baseline over latency, and the share of calls that were not dropped."""


class _Gradient(_Learner):
    __slots__ = ()
    _config: Gradient2

    def _estimate_after(self, ratio: float, answered: float) -> float:
        config = self._config
        # At most by half in one window, whatever an outlier says.
        gradient = max(0.5, min(1.0, config.tolerance * ratio)) * answered + 0.5 * (1 - answered)
        wanted = self._estimate * gradient + config.queue_size
        return self._estimate + config.smoothing * (wanted - self._estimate)


class _Vegas(_Learner):
    __slots__ = ()
    _config: Vegas

    def _estimate_after(self, ratio: float, answered: float) -> float:
        config, limit = self._config, self._estimate
        queued = limit * (1 - min(1.0, ratio) * answered)
        step = max(1.0, math.log10(limit))
        if queued <= step:
            return limit + config.beta * step
        if queued < config.alpha * step:
            return limit + step
        if queued > config.beta * step:
            return limit - step
        return limit


class _Aimd:
    __slots__ = ("_backed_off_ns", "_config", "_good", "_timeout_ns", "limit")

    def __init__(self, config: AIMD) -> None:
        self._config = config
        self._timeout_ns = round(config.timeout * _NANOSECONDS)
        self._backed_off_ns: int | None = None
        self._good = 0
        self.limit = config.initial_limit

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        """Take the sample of one call; return the limit that holds from now on."""
        if dropped or ended_ns - started_ns > self._timeout_ns:
            # Calls that were admitted before the limit was cut say nothing about the lower one.
            if self._backed_off_ns is None or started_ns >= self._backed_off_ns:
                self._backed_off_ns = ended_ns
                self._good = 0
                self.limit = max(self._config.min_limit, int(self.limit * self._config.backoff_ratio))
        elif in_flight * 2 >= self.limit:
            self._good += 1
            if self._good >= self.limit:
                self._good = 0
                self.limit = min(self._config.max_limit, self.limit + 1)
        return self.limit

    def notes(self) -> Notes:
        """Return the limit, the good calls of this round, and when the limit was cut."""
        return self.limit, self._good, self._backed_off_ns

    def resume(self, notes: Notes, now_ns: int) -> None:
        """Go on from there; should the clock have fallen back meanwhile, the limit was not cut later than now."""
        limit, good, backed_off_ns = cast("tuple[int, int, int | None]", notes)
        self.limit = limit
        self._good = good
        self._backed_off_ns = None if backed_off_ns is None else min(backed_off_ns, now_ns)
