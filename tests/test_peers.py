"""The comparison with other libraries: whom we are measured by, and that an adapter which does nothing is found out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from benchmarks.adapters import ours
from benchmarks.conformance.case import use
from benchmarks.conformance.library import Circuit
from benchmarks.guarantees import Guarantees, verify
from benchmarks.offers import OURS, Kind, Offer, Terms
from benchmarks.peers import Row, missed, table
from benchmarks.ratios import Ratio
from tests.careless import LOOSE, STIFF
from tests.resilience.worlds import VirtualLoop, World

if TYPE_CHECKING:
    from benchmarks.offers import Work

ALL = Guarantees(threads=True, loops=True, cancels=True)
FEWER = Guarantees(threads=False, loops=True, cancels=True)


def row(library: str, kind: Kind, nanoseconds: float, guarantees: Guarantees = ALL) -> Row:
    """Make a row of the comparison."""
    return Row(library, kind, guarantees, Ratio(library, nanoseconds, nanoseconds / 100))


def rows(**instead: list[Row]) -> list[Row]:
    """Make a comparison of every kind, in which we are alone but where something else is given."""
    return [each for kind in Kind for each in instead.get(kind.name, [row(OURS, kind, 100)])]


def test_a_layer_is_measured_by_the_fastest_that_guarantees_the_same() -> None:
    """Who guarantees less may be faster."""
    retry = [row(OURS, Kind.RETRY, 100), row("quick", Kind.RETRY, 50, FEWER), row("good", Kind.RETRY, 110)]
    assert missed(rows(RETRY=retry)) == []
    retry.append(row("better", Kind.RETRY, 90))
    (found,) = missed(rows(RETRY=retry))
    assert "better" in found


def test_the_composition_is_measured_by_the_fastest_of_all() -> None:
    """Whatever that guarantees; and it has to be well below."""
    five = [row(OURS, Kind.FIVE, 100), row("good", Kind.FIVE, 200), row("quick", Kind.FIVE, 170, FEWER)]
    assert missed(rows(FIVE=five)) == []
    five.append(row("quicker", Kind.FIVE, 160, FEWER))
    (found,) = missed(rows(FIVE=five))
    assert "quicker" in found


def test_another_row_of_ours_is_no_rival() -> None:
    """We are not measured by ourselves."""
    assert missed(rows(BREAKER=[row(OURS, Kind.BREAKER, 100), row(f"{OURS}, other", Kind.BREAKER, 50)])) == []


def test_every_row_of_ours_is_measured() -> None:
    """Not only the form that is the fastest."""
    breakers = [row(OURS, Kind.BREAKER, 50), row(f"{OURS}, other", Kind.BREAKER, 100), row("good", Kind.BREAKER, 90)]
    assert missed(rows(BREAKER=breakers)) == ["CircuitBreaker, closed, other: more than 1.05 times good"]


def test_nothing_is_missed_without_a_comparison() -> None:
    """The peers may not be installed."""
    assert missed([]) == []


def test_the_table_tells_who_is_slower_and_who_offers_nothing() -> None:
    """A block for each kind; what is missed is marked."""
    printed = table(rows(RETRY=[row(OURS, Kind.RETRY, 100), row("tenacity", Kind.RETRY, 80)]))
    (line,) = (line for line in printed.splitlines() if line.strip().startswith("tenacity"))
    assert "1.25 x" in line
    assert line.endswith("at most 1.05")
    (line,) = (line for line in printed.splitlines() if "MISSED" in line)
    assert line.strip().startswith(OURS)
    assert line.endswith("MISSED: more than 1.05 times tenacity")
    assert printed.count("not offered on asyncio by") == len(Kind)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
def test_an_adapter_that_does_nothing_is_found_out(kind: Kind) -> None:
    """It would be the fastest of all."""

    def make(work: Work, _: Terms) -> Work:
        return work

    offer = Offer(library="nothing", kind=kind, make=make, threads=True)
    with (
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
        pytest.raises(AssertionError, match="nothing does not do its work"),
    ):
        runner.run(verify(offer))


def careless(kind: Kind, work: Work, terms: Terms) -> Work:
    """Make a layer that does its work, and does not know what a cancellation is."""
    match kind:
        case Kind.BREAKER:
            breaker = STIFF.breaker(Circuit(failures=terms.failures, recovery=terms.recovery))
            return partial(breaker.call, work)
        case Kind.BULKHEAD:
            return partial(STIFF.bulkhead(limit=terms.concurrent).call, work)
        case Kind.TIMEOUT:
            return partial(use, STIFF.timeout(seconds=terms.seconds)(work))
        case _:
            return partial(use, LOOSE.fallback(answer=True)(work))


@pytest.mark.parametrize(
    "kind", [Kind.BREAKER, Kind.BULKHEAD, Kind.TIMEOUT, Kind.FALLBACK], ids=lambda kind: kind.name.lower()
)
def test_a_layer_that_is_careless_of_cancellation_is_found_out(kind: Kind) -> None:
    """What was taken is kept, or the call does not end as cancelled."""
    offer = Offer(library="careless", kind=kind, make=partial(careless, kind), threads=True)
    assert not World("asyncio", "system").run(lambda _: verify(offer)).cancels


@pytest.mark.parametrize("offer", ours.OFFERS, ids=lambda offer: f"{offer.library}-{offer.kind.name}")
def test_our_layers_do_their_work_and_are_safe_to_cancel(offer: Offer) -> None:
    """Each of them, in all that is tried out."""
    assert World("asyncio", "system").run(lambda _: verify(offer)).cancels
