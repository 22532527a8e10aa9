"""What commands print, and how they end.

Rules of this module: text that came from elsewhere, from a receiver's peer or a file, is made printable before it gets
to a terminal, which it could otherwise command.
"""

from __future__ import annotations

import json
import sys

from rich.console import Console

__all__ = ["CommandError", "fail", "printable", "say", "sentence_of", "tell_json"]

_MAX_SHOWN = 200


class CommandError(Exception):
    """A command could not do what it was asked; the message is one sentence for people."""


def say(text: str) -> None:
    """Print a line for people."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def tell_json(told: dict[str, object]) -> None:
    """Print one line of JSON, at once: somebody may be reading along."""
    print(json.dumps(told), flush=True)


def fail(text: str) -> None:
    """Print what went wrong to standard error."""
    print(text, file=sys.stderr)


def printable(text: str) -> str:
    """Return `text` with whatever could command a terminal escaped, and cut to what fits a line or two."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"


def sentence_of(error: BaseException) -> str:
    """Return one sentence about an error, the first one if it is a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        name = f" {error.filename!r}" if error.filename is not None else ""
        return f"{error.strerror}{name}."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
