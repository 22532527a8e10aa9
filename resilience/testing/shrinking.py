"""Shrinking: a schedule that fails, made as plain as it gets.

Rules of this module: it knows schedules as sequences of choices, and nothing of what they do. Choice 0 is what would
happen anyway, so the fewer choices are other than 0, the less there is to understand; how many there are at all comes
second, and how large they are third.

Hypothesis shrinks what it has drawn itself. This is for a failure that was found in another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["plainer", "shrink"]


def shrink(
    choices: tuple[int, ...], attempt: Callable[[tuple[int, ...]], tuple[int, ...] | None], *, attempts: int = 500
) -> tuple[int, ...]:
    """Return choices that fail as these do, with as few of them out of the plain order as were found.

    Args:
        choices: what failed.
        attempt: runs choices and returns those that were made, if they failed in the same way, else None.
        attempts: how often that is called at most.

    """
    best = trimmed(choices)
    left = attempts

    def better(candidate: tuple[int, ...]) -> bool:
        nonlocal best, left
        if left == 0 or not plainer(candidate, best):
            return False
        left -= 1
        made = attempt(trimmed(candidate))
        if made is None or not plainer(trimmed(made), best):
            return False
        best = trimmed(made)
        return True

    changed = True
    while changed and left:
        changed = False
        # First all that comes after some point; then, in ever smaller parts, what comes before.
        size = len(best)
        while size:
            at = 0
            while at < len(best):
                if better(best[:at] + (0,) * size + best[at + size :]) or better(best[:at] + best[at + size :]):
                    changed = True
                else:
                    at += size
            size //= 2
        for at, choice in enumerate(best):
            if choice > 1 and better((*best[:at], 1, *best[at + 1 :])):
                changed = True
                break
    return best


def trimmed(choices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the choices up to the last that is not the plain one."""
    end = len(choices)
    while end and not choices[end - 1]:
        end -= 1
    return choices[:end]


def plainer(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether one sequence of choices is plainer than the other."""
    return _measure(one) < _measure(other)


def _measure(choices: tuple[int, ...]) -> tuple[int, int, int]:
    return sum(map(bool, choices)), len(trimmed(choices)), sum(choices)
