"""What a proof covered, in figures that can be compared and added up.

Rules of this module: a report counts what was done and claims nothing else. It knows none of the instruments that
write it. Two schedules are distinct if they are different sequences of decisions; a schedule that was run twice counts
twice in `schedules` and once in `distinct`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from resilience.machines.checks import string, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["Report"]


def _name(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not string(attribute.name, value):
        msg = f"{attribute.name} must be a name that is not empty, not {value!r}"
        raise ValueError(msg)


def _count(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    whole_number(attribute.name, value)


def _seed(_instance: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None:
        whole_number(attribute.name, value)


@attrs.frozen(kw_only=True)
class Report:
    """What one proof covered. Reports add up: `Report.total("all", reports)`.

    Args:
        name: what was proved.
        schedules: the interleavings that were run to their end, or that merging states showed to be like one that was.
        distinct: how many different ones there were among them, told by their hashes.
        histories: the histories that were judged, each the record of one run, or of all runs that share a state.
        states: the different states that were met; 0 where states are not compared.
        cancel_points: the points at which something was cancelled.
        faults: the faults that were injected (a clock that stalls or jumps, an early timer, a loop that is closed …).
        seed: what the random choices were drawn from; None where nothing was drawn.
        complete: whether every schedule within the stated bounds was covered, rather than a sample of them.

    """

    name: str = attrs.field(validator=_name)
    schedules: int = attrs.field(default=0, validator=_count)
    distinct: int = attrs.field(default=0, validator=_count)
    histories: int = attrs.field(default=0, validator=_count)
    states: int = attrs.field(default=0, validator=_count)
    cancel_points: int = attrs.field(default=0, validator=_count)
    faults: int = attrs.field(default=0, validator=_count)
    seed: int | None = attrs.field(default=None, validator=_seed)
    complete: bool = False

    @classmethod
    def total(cls, name: str, reports: Iterable[Self]) -> Self:
        """Add up the reports of different programs: complete if all of them are, seeded as the first that was.

        Schedules of different programs are different schedules, so `distinct` may be added like the rest.
        """
        parts = list(reports)
        return cls(
            name=name,
            schedules=sum(part.schedules for part in parts),
            distinct=sum(part.distinct for part in parts),
            histories=sum(part.histories for part in parts),
            states=sum(part.states for part in parts),
            cancel_points=sum(part.cancel_points for part in parts),
            faults=sum(part.faults for part in parts),
            seed=next((part.seed for part in parts if part.seed is not None), None),
            complete=bool(parts) and all(part.complete for part in parts),
        )

    def __str__(self) -> str:
        """Return one line with the figures that are not zero."""
        figures = {
            "schedules": self.schedules,
            "distinct": self.distinct,
            "histories": self.histories,
            "states": self.states,
            "cancel points": self.cancel_points,
            "faults": self.faults,
        }
        parts = [f"{count:,} {what}" for what, count in figures.items() if count]
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        parts.append("complete" if self.complete else "a sample")
        return f"{self.name}: {', '.join(parts)}"
