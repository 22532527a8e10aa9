"""Where the events come from: the history of this very repository, or its files, and then a storm.

Rules of this module: an event is a type and data, and its data has a number by which the account finds it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from webhook_adapter.model import JsonValue

__all__ = ["Event", "SourcedEvents", "real_events", "storm"]

_PACKAGE = Path(__file__).parent.parent
_GIT_WITHIN = 5.0
_FIELDS = 4


@attrs.frozen
class Event:
    """Something that happened: `number` is unique in one run."""

    number: int
    type: str
    data: dict[str, JsonValue] = attrs.field(hash=False)

    @property
    def payload(self) -> dict[str, JsonValue]:
        """Its data, with its number."""
        return {"number": self.number, **self.data}


@attrs.frozen
class SourcedEvents:
    """Events, and where they were found, for people."""

    source: str
    events: tuple[Event, ...]


def real_events(limit: int = 24, *, root: Path | None = None) -> SourcedEvents:
    """Return up to `limit` events: the last commits, and where there are fewer, the package's files as well. Blocks.

    Args:
        limit: how many.
        root: the folder whose history is read; by default the one that the package lies in. Without a history of its
            own (no `.git` in it, no git, an error of git), the files alone serve.
    """
    folder = _PACKAGE.parent if root is None else root
    found: list[tuple[str, dict[str, JsonValue]]] = [("repository.commit", each) for each in _commits(folder, limit)]
    commits = len(found)
    for each in _files():
        if len(found) >= limit:
            break
        found.append(("repository.file", each))
    files = len(found) - commits
    parts = [f"{count} {name}" for count, name in ((commits, "commits"), (files, "files")) if count]
    return SourcedEvents(
        " and ".join(parts) + " of this project",
        tuple(Event(number, kind, data) for number, (kind, data) in enumerate(found)),
    )


def storm(count: int, *, first: int) -> Iterator[Event]:
    """Make up `count` orders, numbered from `first`: of ten, eight are placed, one is paid and one is shipped."""
    kinds = ("order.placed",) * 4 + ("order.paid",) + ("order.placed",) * 4 + ("order.shipped",)
    for number in range(first, first + count):
        yield Event(number, kinds[number % len(kinds)], {"order": number, "amount": f"{number % 997}.90"})


def _commits(folder: Path, limit: int) -> list[dict[str, JsonValue]]:
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return []
    # Variables of a git hook that runs this would point git elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [git, "-C", str(folder), "log", f"--max-count={limit}", "--format=%H%x1f%an%x1f%aI%x1f%s"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, capture_output=True, check=True, timeout=_GIT_WITHIN, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return []
    commits: list[dict[str, JsonValue]] = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        fields = line.split("\x1f")
        if len(fields) == _FIELDS:
            commits.append({"commit": fields[0], "author": fields[1], "at": fields[2], "subject": fields[3]})
    return commits


def _files() -> Iterator[dict[str, JsonValue]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        digest = hashlib.sha256(content).hexdigest()
        yield {"path": path.relative_to(_PACKAGE).as_posix(), "bytes": len(content), "sha256": digest}
