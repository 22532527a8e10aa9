"""Our layers beside those of other libraries: what a call costs through each, and what each guarantees.

Rules of this module:

* Everything is timed in one run, in turns with the bare await (see `ratios`), after every offer has been seen to do
  its work (see `guarantees`).
* A single layer, in each form in which we offer it, has to be at least as fast as the fastest that guarantees the
  same, as far as one run can tell them apart; the five in one have to be well below the fastest composition of all,
  whatever that guarantees.
* The peers are an environment of their own. Without it there is nothing to compare with, and that is said.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING

import attrs

from benchmarks import ratios
from benchmarks.conformance import board
from benchmarks.guarantees import Guarantees, verify
from benchmarks.offers import OURS, Kind, Offer, Terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Row", "compare", "missed", "offers", "table"]

FIVE_AT_MOST = 0.6
"""How much of what the fastest composition costs ours may cost."""

AS_FAST = 1.05
"""How much of what the fastest layer of its kind costs ours may cost. From run to run, equals differ by as much."""

_PEERS = frozenset(entrant.name for entrant in board.LIBRARIES if entrant != board.OURS)


@attrs.frozen
class Row:
    """What one offer costs, and what it guarantees."""

    library: str
    kind: Kind
    guarantees: Guarantees
    cost: ratios.Ratio


def offers() -> tuple[Offer, ...] | None:
    """Return what is compared, ours first; None if the peers are not installed."""
    try:
        modules = [importlib.import_module(f"benchmarks.adapters.{name}") for name in ("ours", "toolkits", "single")]
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in {"benchmarks", OURS}:
            raise
        return None
    return tuple(itertools.chain.from_iterable(module.OFFERS for module in modules))


async def _answer() -> bool:
    return True


async def compare(entrants: Sequence[Offer], *, rounds: int = 100) -> list[Row]:
    """Try the offers out, then time them in turns; return a row for each, in their order.

    Runs on asyncio. Raises AssertionError if one of them does not do its work.
    """
    guarantees = [await verify(offer) for offer in entrants]
    cases = [
        ratios.Case(f"{offer.library}: {offer.kind.value}", ratios.repeated(offer.make(_answer, Terms())))
        for offer in entrants
    ]
    _, *costs = await ratios.measure(cases, rounds=rounds)
    return [
        Row(offer.library, offer.kind, its, cost) for offer, its, cost in zip(entrants, guarantees, costs, strict=True)
    ]


def _of_kind(rows: Iterable[Row], kind: Kind) -> tuple[Row, list[Row]]:
    """Return our row of this kind, and the others', the fastest first."""
    own, *others = sorted(
        (row for row in rows if row.kind is kind), key=lambda row: (row.library != OURS, row.cost.nanoseconds)
    )
    return own, others


def _rival(own: Row, others: Iterable[Row]) -> tuple[Row | None, float]:
    """Return whom we have to be measured by, and how much of its cost ours may be."""
    foreign = (row for row in others if not row.library.startswith(OURS))
    if own.kind is Kind.FIVE:
        return next(foreign, None), FIVE_AT_MOST
    return next((row for row in foreign if row.guarantees.covers(own.guarantees)), None), AS_FAST


def _shortfall(own: Row, others: Iterable[Row]) -> str | None:
    """Return what one of our rows is, and must not be; None if it is where it has to be."""
    rival, at_most = _rival(own, others)
    if rival is None or own.cost.nanoseconds <= at_most * rival.cost.nanoseconds:
        return None
    return f"more than {at_most:g} times {rival.library}"


def missed(rows: Sequence[Row]) -> list[str]:
    """Return what we promise about our place among the others and do not keep."""
    found = []
    for kind in Kind if rows else ():
        own, others = _of_kind(rows, kind)
        for each in (own, *(row for row in others if row.library.startswith(OURS))):
            shortfall = _shortfall(each, others)
            if shortfall is not None:
                found.append(f"{kind.value}{each.library.removeprefix(OURS)}: {shortfall}")
    return found


def table(rows: Sequence[Row]) -> str:
    """Lay the comparison out, a block for each kind; whom ours is measured by is marked, and what is missed."""
    width = max(len(row.library) for row in rows)
    lines = []
    for kind in Kind:
        own, others = _of_kind(rows, kind)
        rival, at_most = _rival(own, others)
        lines.append(kind.value)
        lines.append(f"  {'':<{width}}  {'ns':>8}  {'x bare':>7}  {'ours is':>7}  threads  loops  cancels")
        for row in (own, *others):
            share = own.cost.nanoseconds / row.cost.nanoseconds
            shortfall = _shortfall(row, others) if row.library.startswith(OURS) else None
            mark = f"  at most {at_most:g}" if row is rival else f"  MISSED: {shortfall}" if shortfall else ""
            holds = (row.guarantees.threads, row.guarantees.loops, row.guarantees.cancels)
            threads, loops, cancels = ("yes" if it else "no" for it in holds)
            lines.append(
                f"  {row.library:<{width}}  {row.cost.nanoseconds:>8.0f}  {row.cost.ratio:>7.1f}  "
                f"{'' if row is own else f'{share:.2f} x':>7}  {threads:>7}  {loops:>5}  {cancels:>7}{mark}"
            )
        without = sorted(_PEERS - {row.library.split(",")[0] for row in others})
        lines.append(f"  not offered on asyncio by {', '.join(without)}\n")
    return "\n".join(lines)
