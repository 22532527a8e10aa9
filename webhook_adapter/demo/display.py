"""What is shown while the demonstration runs, and at its end.

Rules of this module: it shows what it is given and knows nothing of how it came about. On a terminal there is a bar for
each receiver; elsewhere there are plain lines; asked for figures alone, there is nothing until the end.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from webhook_adapter.demo.accounts import Account

__all__ = ["Display", "Quiet", "closing", "display_for"]

_LINE_EVERY = 1.0


class Display(Protocol):
    """Tells people how it goes."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *_: object) -> None:
        """End."""
        ...

    def say(self, sentence: str) -> None:
        """Tell of something that has happened."""
        ...

    def expect(self, expected: Mapping[str, int]) -> None:
        """Tell how many messages each receiver is to get so far."""
        ...

    def progress(self, delivered: Mapping[str, int]) -> None:
        """Tell how many messages each receiver has answered with 2xx."""
        ...


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def say(self, sentence: str) -> None:
        """Say nothing."""

    def expect(self, expected: Mapping[str, int]) -> None:
        """Show nothing."""

    def progress(self, delivered: Mapping[str, int]) -> None:
        """Show nothing."""


class Lines(Quiet):
    """Plain lines, for logs and pipes: what has happened, and about once a second how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._next = 0.0
        self._expected: Mapping[str, int] = {}

    def say(self, sentence: str) -> None:
        """Print a line."""
        self._line(sentence)

    def expect(self, expected: Mapping[str, int]) -> None:
        """Remember what is expected."""
        self._expected = dict(expected)

    def progress(self, delivered: Mapping[str, int]) -> None:
        """Print a line, unless one was printed just now."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_EVERY
            parts = [f"{name} {delivered.get(name, 0)}/{self._expected.get(name, 0)}" for name in self._expected]
            self._line("  delivered: " + ", ".join(parts))

    def _line(self, text: str) -> None:
        stamp = f"{time.monotonic() - self._began:5.1f} s  "
        self._console.print(stamp + text, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar for each receiver, and what has happened above them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Begin."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print("• " + sentence, markup=False, highlight=False)

    def expect(self, expected: Mapping[str, int]) -> None:
        """Make the bars as long as what is expected."""
        for name, total in expected.items():
            task = self._tasks.get(name)
            if task is None:
                self._tasks[name] = self._progress.add_task(name, total=total)
            else:
                self._progress.update(task, total=total)

    def progress(self, delivered: Mapping[str, int]) -> None:
        """Move the bars."""
        for name, count in delivered.items():
            if name in self._tasks:
                self._progress.update(self._tasks[name], completed=count)


def display_for(*, quiet: bool) -> Display:
    """Return what suits the standard output."""
    if quiet:
        return Quiet()
    console = Console()
    return Bars(console) if sys.stdout.isatty() else Lines(console)


def closing(account: Account) -> None:
    """Print the closing tables."""
    console = Console()
    endpoints = Table(title="What the receivers have seen", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    endpoints.add_column("receiver", no_wrap=True)
    for title in ("events", "delivered", "retried", "dead", "duplicates", "lost", "p50", "p99"):
        endpoints.add_column(title, justify="right")
    for each in account.endpoints:
        endpoints.add_row(
            each.name,
            f"{each.expected:,}",
            f"{each.delivered:,}",
            f"{each.retried:,}",
            f"{each.dead:,}",
            f"{each.duplicates:,}",
            f"{each.lost:,}",
            _duration(each.p50),
            _duration(each.p99),
        )
    totals = Table(title="The account", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    totals.add_column("figure", no_wrap=True)
    totals.add_column("value", justify="right")
    totals.add_column("computed from")
    for row in _totals(account):
        totals.add_row(*row)
    console.print()
    console.print(endpoints)
    console.print(totals)
    verdict = "Nothing was lost." if account.sound else "SOMETHING WENT WRONG: the figures above do not add up."
    console.print(f"{verdict} {account.elapsed:.1f} s in all.", markup=False, highlight=False)


def _totals(account: Account) -> list[tuple[str, str, str]]:
    transitions = "\n".join(f"{name}: {count}" for name, count in account.breaker_transitions.items()) or "none"
    return [
        ("accepted", f"{account.accepted:,} of {account.published:,}", "store, by each event's number"),
        ("delivered", f"{account.delivered:,} of {account.deliveries:,}", "receivers (2xx), store"),
        ("retried", f"{account.retried:,}", "receivers"),
        ("deferred", f"{account.deferred:,}", "store (given a later turn)"),
        ("dead, then revived", f"{account.dead:,}, {account.revived:,}", "store"),
        ("breaker transitions", transitions, "breakers, in both processes"),
        ("limiter hits", f"{account.limiter_hits:,}", "the limiter's own count"),
        ("storm guard hits", f"{account.storm_hits:,}", "the storm guard's own count"),
        ("latency p50, p99", f"{_duration(account.p50)}, {_duration(account.p99)}", "store (due), receivers (2xx)"),
        ("processes killed", str(account.kills), "SIGKILL"),
        ("duplicates", f"{account.duplicates:,}", "receivers"),
        ("bad signatures", f"{account.unverified:,}", "receivers"),
        ("disagreements", f"{account.disagreements:,}", "receivers against store"),
        ("lost", f"{account.lost:,}", "receivers, events published"),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
